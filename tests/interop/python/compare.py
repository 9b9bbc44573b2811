"""Compares what others say with what the crate says, a line for each case.

compare.py scripts CLIENT FILE | names RUST PYTHON NODE | descriptors FILE | http-codes FILE PROTOS
"""

import json
import pathlib
import re
import sys

from google.api_core import exceptions
from google.api_core.gapic_v1 import routing_header
from google.longrunning import operations_proto_pb2
from google.protobuf import descriptor_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

HERE = pathlib.Path(__file__).parent.parent


def case(name, found, expected):
    if found == expected:
        print(f"ok   {name}")
    else:
        print(f"FAIL {name}: {found!r}, not {expected!r}")


def load(file):
    return json.loads(pathlib.Path(file).read_text())


def scripts(client, file):
    found = load(file)
    for script in load(HERE / "scripts.json"):
        name = script["script"]
        case(f"scripts/{client}/{name.replace(' ', '_')}", found.get(name), script["outcomes"])


def names(rust, python, node):
    """Holds the routing headers against each other.

    AIP-4222 has the value percent-encoded as in RFC 6570, section 3.2.2, where all but the unreserved
    characters A-Z a-z 0-9 - . _ ~ are. The peers deviate from it, and in nothing else from us:

    - google-api-core leaves "/" as it is, and writes " " as "+" (urlencode of a form).
    - google-gax leaves ! ' ( ) * as they are (querystring, as encodeURIComponent).
    """
    rust, python, node = load(rust), load(python), load(node)
    for number, name in enumerate(load(HERE / "names.json")):
        encoded = "name=" + "".join(
            chr(byte) if re.fullmatch(rb"[A-Za-z0-9._~-]", bytes([byte])) else f"%{byte:02X}" for byte in name.encode())
        pythons = encoded.replace("%2F", "/").replace("%20", "+")
        nodes = re.sub("%(21|27|28|29|2A)", lambda match: chr(int(match[1], 16)), encoded)
        found = {
            "ours": rust[number],
            "python's helper": routing_header.to_routing_header({"name": name}),
            "python's client": python[number],
            "node's helper": node["helper"][number],
        }
        expected = {
            "ours": [name, encoded],
            "python's helper": pythons,
            "python's client": [name, pythons],
            "node's helper": nodes,
        }
        case(f"names/{json.dumps(name)}", found, expected)


def descriptors(file):
    """Holds the vendored files against those of googleapis-common-protos."""
    vendored = descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(file).read_bytes())
    vendored = {file.name: shape(file) for file in vendored.file}
    for module in (operations_proto_pb2, code_pb2, error_details_pb2, status_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        # There, operations.proto has another name.
        name = file.name.replace("operations_proto.proto", "operations.proto")
        expected = shape(file)
        found = vendored.get(name, {})
        case(f"descriptors/{name}/has_just_the_published_items", sorted(found), sorted(expected))
        for item in sorted(expected):
            case(f"descriptors/{name}/{item}", found.get(item), expected[item])


def shape(file):
    """What of a file counts on the wire, and for those who call it by name."""
    shapes = {"package": (file.package, file.syntax)}

    def field(field, message):
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
        return (field.name, field.number, field.Type.Name(field.type), field.Label.Name(field.label), field.type_name,
                field.extendee, oneof, field.proto3_optional, field.options.packed, field.json_name or camel(field.name))

    def add_message(scope, message):
        name = f"{scope}.{message.name}"
        shapes[f"message {name}"] = (
            sorted(field(each, message) for each in message.field),
            [oneof.name for oneof in message.oneof_decl],
            message.options.map_entry,
            sorted((each.start, each.end) for each in message.reserved_range),
        )
        for nested in message.nested_type:
            add_message(name, nested)
        for nested in message.enum_type:
            add_enum(name, nested)

    def add_enum(scope, enum):
        shapes[f"enum {scope}.{enum.name}"] = sorted((value.number, value.name) for value in enum.value)

    for each in file.message_type:
        add_message(file.package, each)
    for each in file.enum_type:
        add_enum(file.package, each)
    for each in file.extension:
        shapes[f"extension {file.package}.{each.name}"] = field(each, None)
    for service in file.service:
        for method in service.method:
            shapes[f"rpc {file.package}.{service.name}.{method.name}"] = (
                method.input_type, method.output_type, method.client_streaming, method.server_streaming)
    return shapes


def camel(name):
    return re.sub("_(.)", lambda match: match[1].upper(), name)


def http_codes(file, protos):
    """Holds the HTTP codes against google-api-core's, and those of google.rpc.Code's comments."""
    text = (pathlib.Path(protos) / "google/rpc/code.proto").read_text()
    documented = re.findall(r"HTTP Mapping: (\d+)[^;]*?\n\s*([A-Z_]+) = (\d+);", text)
    documented = {int(number): (name, int(http)) for http, name, number in documented}
    for code in load(file):
        number, name, http = code["code"], code["name"], code["http"]
        found, expected = {"documented": (name, http)}, {"documented": documented.get(number)}
        if name not in ("OK", "UNKNOWN", "DATA_LOSS"):  # for which Python has none
            found["python's exception"] = http
            expected["python's exception"] = exceptions.from_grpc_status(number, "").code
        case(f"http-codes/{name}", found, expected)


{"scripts": scripts, "names": names, "descriptors": descriptors, "http-codes": http_codes}[sys.argv[1]](*sys.argv[2:])
