//! The compiled protos are the published interface.

use std::collections::BTreeMap;

use longrunning::proto::{self, rpc};
use prost::{Message, Name};
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet, field_descriptor_proto,
};

/// Message, and its fields as `[repeated|optional] type name = number`, those of a oneof marked.
const MESSAGES: &[(&str, &[&str])] = &[
    (
        "google.longrunning.CancelOperationRequest",
        &["string name = 1"],
    ),
    (
        "google.longrunning.DeleteOperationRequest",
        &["string name = 1"],
    ),
    (
        "google.longrunning.GetOperationRequest",
        &["string name = 1"],
    ),
    (
        "google.longrunning.ListOperationsRequest",
        &[
            "string filter = 1",
            "int32 page_size = 2",
            "string page_token = 3",
            "string name = 4",
            "bool return_partial_success = 5",
        ],
    ),
    (
        "google.longrunning.ListOperationsResponse",
        &[
            "repeated .google.longrunning.Operation operations = 1",
            "string next_page_token = 2",
            "repeated string unreachable = 3",
        ],
    ),
    (
        "google.longrunning.Operation",
        &[
            "string name = 1",
            ".google.protobuf.Any metadata = 2",
            "bool done = 3",
            "result: .google.rpc.Status error = 4",
            "result: .google.protobuf.Any response = 5",
        ],
    ),
    (
        "google.longrunning.OperationInfo",
        &["string response_type = 1", "string metadata_type = 2"],
    ),
    (
        "google.longrunning.WaitOperationRequest",
        &["string name = 1", ".google.protobuf.Duration timeout = 2"],
    ),
    (
        "google.rpc.BadRequest",
        &["repeated .google.rpc.BadRequest.FieldViolation field_violations = 1"],
    ),
    (
        "google.rpc.BadRequest.FieldViolation",
        &[
            "string field = 1",
            "string description = 2",
            "string reason = 3",
            ".google.rpc.LocalizedMessage localized_message = 4",
        ],
    ),
    (
        "google.rpc.DebugInfo",
        &["repeated string stack_entries = 1", "string detail = 2"],
    ),
    (
        "google.rpc.ErrorInfo",
        &[
            "string reason = 1",
            "string domain = 2",
            "map<string, string> metadata = 3",
        ],
    ),
    (
        "google.rpc.Help",
        &["repeated .google.rpc.Help.Link links = 1"],
    ),
    (
        "google.rpc.Help.Link",
        &["string description = 1", "string url = 2"],
    ),
    (
        "google.rpc.LocalizedMessage",
        &["string locale = 1", "string message = 2"],
    ),
    (
        "google.rpc.PreconditionFailure",
        &["repeated .google.rpc.PreconditionFailure.Violation violations = 1"],
    ),
    (
        "google.rpc.PreconditionFailure.Violation",
        &[
            "string type = 1",
            "string subject = 2",
            "string description = 3",
        ],
    ),
    (
        "google.rpc.QuotaFailure",
        &["repeated .google.rpc.QuotaFailure.Violation violations = 1"],
    ),
    (
        "google.rpc.QuotaFailure.Violation",
        &[
            "string subject = 1",
            "string description = 2",
            "string api_service = 3",
            "string quota_metric = 4",
            "string quota_id = 5",
            "map<string, string> quota_dimensions = 6",
            "int64 quota_value = 7",
            "optional int64 future_quota_value = 8",
        ],
    ),
    (
        "google.rpc.RequestInfo",
        &["string request_id = 1", "string serving_data = 2"],
    ),
    (
        "google.rpc.ResourceInfo",
        &[
            "string resource_type = 1",
            "string resource_name = 2",
            "string owner = 3",
            "string description = 4",
        ],
    ),
    (
        "google.rpc.RetryInfo",
        &[".google.protobuf.Duration retry_delay = 1"],
    ),
    (
        "google.rpc.Status",
        &[
            "int32 code = 1",
            "string message = 2",
            "repeated .google.protobuf.Any details = 3",
        ],
    ),
];

const METHODS: &[(&str, &str, &str)] = &[
    (
        "ListOperations",
        ".google.longrunning.ListOperationsRequest",
        ".google.longrunning.ListOperationsResponse",
    ),
    (
        "GetOperation",
        ".google.longrunning.GetOperationRequest",
        ".google.longrunning.Operation",
    ),
    (
        "DeleteOperation",
        ".google.longrunning.DeleteOperationRequest",
        ".google.protobuf.Empty",
    ),
    (
        "CancelOperation",
        ".google.longrunning.CancelOperationRequest",
        ".google.protobuf.Empty",
    ),
    (
        "WaitOperation",
        ".google.longrunning.WaitOperationRequest",
        ".google.longrunning.Operation",
    ),
];

const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The files that the crate vendors, as the build compiled them.
fn vendored() -> FileDescriptorSet {
    let compiled = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    let mut set = FileDescriptorSet::decode(&compiled[..]).expect("descriptors");
    set.file
        .retain(|file| !file.package().starts_with("google.protobuf"));
    set
}

#[test]
fn the_messages_are_those_of_the_interface() {
    let mut found = BTreeMap::new();
    for file in &vendored().file {
        assert_eq!(file.syntax(), "proto3");
        for message in &file.message_type {
            describe(file.package(), message, &mut found);
        }
    }
    let expected: BTreeMap<_, Vec<_>> = MESSAGES
        .iter()
        .map(|(name, fields)| (name.to_string(), fields.to_vec()))
        .collect();
    let found: BTreeMap<_, Vec<_>> = found
        .iter()
        .map(|(name, fields): (&String, &Vec<String>)| {
            (name.clone(), fields.iter().map(String::as_str).collect())
        })
        .collect();
    assert_eq!(found, expected);
}

fn describe(scope: &str, message: &DescriptorProto, found: &mut BTreeMap<String, Vec<String>>) {
    let name = format!("{scope}.{}", message.name());
    let is_map = |nested: &&DescriptorProto| nested.options.as_ref().is_some_and(|o| o.map_entry());
    let maps: Vec<_> = message.nested_type.iter().filter(is_map).collect();
    for nested in message.nested_type.iter().filter(|nested| !is_map(nested)) {
        describe(&name, nested, found);
    }
    let fields = message.field.iter().map(|field| {
        let scoped =
            |entry: &&&DescriptorProto| field.type_name() == format!(".{name}.{}", entry.name());
        let (label, kind) = match maps.iter().find(scoped) {
            Some(entry) => (
                "",
                format!("map<{}, {}>", kind(&entry.field[0]), kind(&entry.field[1])),
            ),
            None if field.label() == field_descriptor_proto::Label::Repeated => {
                ("repeated ", kind(field))
            }
            None if field.proto3_optional() => ("optional ", kind(field)),
            None => ("", kind(field)),
        };
        let oneof = match field.oneof_index {
            Some(index) if !field.proto3_optional() => {
                format!("{}: ", message.oneof_decl[index as usize].name())
            }
            _ => String::new(),
        };
        format!("{oneof}{label}{kind} {} = {}", field.name(), field.number())
    });
    let fields = fields.collect();
    found.insert(name, fields);
}

fn kind(field: &FieldDescriptorProto) -> String {
    match field.type_name() {
        "" => field
            .r#type()
            .as_str_name()
            .trim_start_matches("TYPE_")
            .to_lowercase(),
        name => name.to_owned(),
    }
}

#[test]
fn the_service_has_the_five_unary_methods() {
    let set = vendored();
    let services: Vec<_> = set
        .file
        .iter()
        .flat_map(|file| file.service.iter().map(|service| (file.package(), service)))
        .collect();
    let [("google.longrunning", service)] = services[..] else {
        panic!("one service was expected: {services:?}");
    };
    assert_eq!(service.name(), "Operations");
    let methods: Vec<_> = service
        .method
        .iter()
        .map(|method| {
            assert!(!method.client_streaming() && !method.server_streaming());
            (method.name(), method.input_type(), method.output_type())
        })
        .collect();
    assert_eq!(methods, METHODS);
}

#[test]
fn the_codes_are_those_of_grpc() {
    let set = vendored();
    let enums: Vec<_> = set.file.iter().flat_map(|file| &file.enum_type).collect();
    let [codes] = enums[..] else {
        panic!("one enum was expected: {enums:?}");
    };
    assert_eq!(codes.name(), "Code");
    let values: Vec<_> = codes
        .value
        .iter()
        .map(|value| (value.number(), value.name()))
        .collect();
    let expected: Vec<_> = (0..).zip(CODES).collect();
    assert_eq!(values, expected);
}

#[test]
fn methods_can_be_annotated_with_their_operation_types() {
    let set = vendored();
    let extensions: Vec<_> = set.file.iter().flat_map(|file| &file.extension).collect();
    let [extension] = extensions[..] else {
        panic!("one extension was expected: {extensions:?}");
    };
    assert_eq!(extension.name(), "operation_info");
    assert_eq!(extension.number(), 1049);
    assert_eq!(extension.extendee(), ".google.protobuf.MethodOptions");
    assert_eq!(extension.type_name(), ".google.longrunning.OperationInfo");
}

/// Bytes that another implementation made, by the published definitions.
const GOLDEN: &[(&str, &str)] = &include!("golden/bytes.rs");

#[test]
fn every_message_reads_and_writes_the_bytes_of_another_implementation() {
    let mut seen: Vec<_> = GOLDEN
        .iter()
        .map(|(name, hex)| {
            let bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hexadecimal"))
                .collect();
            assert_eq!(round_trip(name, &bytes), bytes, "{name}");
            *name
        })
        .collect();
    seen.dedup();
    seen.sort();
    let top_level = MESSAGES.iter().map(|(name, _)| *name).filter(|name| {
        // The nested ones come within their parents.
        name.split('.')
            .filter(|part| part.starts_with(char::is_uppercase))
            .count()
            == 1
    });
    assert_eq!(seen, top_level.collect::<Vec<_>>());
}

fn round_trip(name: &str, bytes: &[u8]) -> Vec<u8> {
    fn through<M: Message + Name + Default>(name: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        (M::full_name() == name).then(|| M::decode(bytes).expect("decodes").encode_to_vec())
    }
    let kinds = [
        through::<proto::Operation>,
        through::<proto::GetOperationRequest>,
        through::<proto::ListOperationsRequest>,
        through::<proto::ListOperationsResponse>,
        through::<proto::CancelOperationRequest>,
        through::<proto::DeleteOperationRequest>,
        through::<proto::WaitOperationRequest>,
        through::<proto::OperationInfo>,
        through::<rpc::Status>,
        through::<rpc::ErrorInfo>,
        through::<rpc::RetryInfo>,
        through::<rpc::DebugInfo>,
        through::<rpc::QuotaFailure>,
        through::<rpc::PreconditionFailure>,
        through::<rpc::BadRequest>,
        through::<rpc::RequestInfo>,
        through::<rpc::ResourceInfo>,
        through::<rpc::Help>,
        through::<rpc::LocalizedMessage>,
    ];
    kinds
        .iter()
        .find_map(|through| through(name, bytes))
        .unwrap_or_else(|| panic!("{name}?"))
}
