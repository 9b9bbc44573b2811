//! Our client against answers that no gRPC server sends by itself, see `README.md` for the kinds.

use std::{
    fs,
    path::Path,
    process,
    sync::atomic::{AtomicUsize, Ordering},
};

use longrunning::{OperationsClient, RetryPolicy, Transport, proto::GetOperationRequest};
use serde_json::Value;
use tonic::{Code, IntoRequest, Request, Status, metadata::AsciiMetadataValue};

use crate::{
    cases::Cases,
    foreign::{ok, seen},
};

pub async fn run(server: &str, ports: &Value, certs: &Path) {
    let cases = Cases(format!("{server}-server/{GROUP}"));
    let http = |which: &str| format!("http://127.0.0.1:{}", ports[which]);
    let builder = OperationsClient::builder(http("raw"));
    let client = builder.connect().await.expect("a connection");
    compression(&cases, client.clone()).await;
    if cfg!(feature = "gzip") {
        let builder = OperationsClient::builder(http("plain"));
        let client = builder.connect().await.expect("a connection");
        negotiation(&cases, client).await;
    }
    responses(&cases, client.clone()).await;
    resets(&cases, client.clone()).await;
    retries(&cases, client.clone()).await;
    headers(&cases, client).await;
    let ca = fs::read(certs.join("ca.pem")).expect("a file of certs.py");
    scheme(&cases, ports["tls"].to_string(), ca).await;
}

const GROUP: &str = if cfg!(feature = "gzip") {
    "book-gzip"
} else {
    "book"
};

async fn compression(cases: &Cases, client: OperationsClient<Transport>) {
    let c = client.clone();
    if cfg!(feature = "gzip") {
        cases
            .case("a_gzip_message_is_decompressed", async move {
                let name = unique("gzip");
                assert_eq!(ok(c.get_operation(&name).await).name, name);
            })
            .await;
    } else {
        cases
            .case(
                "a_gzip_message_is_internal_and_names_the_feature",
                async move {
                    let status = refused(&c, "gzip").await;
                    assert_eq!(status.code(), Code::Internal, "{status:?}");
                    assert!(status.message().contains("gzip"), "{status:?}");
                    assert!(status.message().contains("feature"), "{status:?}");
                },
            )
            .await;
    }

    cases
        .case(
            "grpc_encoding_gzip_with_compressed_flag_0_is_ok",
            async move {
                let name = unique("flag0");
                assert_eq!(ok(client.get_operation(&name).await).name, name);
            },
        )
        .await;
}

/// grpc-go compresses only for a client that sends `grpc-accept-encoding`.
async fn negotiation(cases: &Cases, client: OperationsClient<Transport>) {
    cases
        .case("the_server_sees_that_gzip_is_accepted", async move {
            let name = unique("gzip");
            assert_eq!(ok(client.get_operation(&name).await).name, name);
        })
        .await;
}

async fn responses(cases: &Cases, client: OperationsClient<Transport>) {
    let c = client.clone();
    cases
        .case("two_messages_are_internal", async move {
            let status = refused(&c, "two-messages").await;
            assert_eq!(status.code(), Code::Internal, "{status:?}");
        })
        .await;

    cases
        .case("grpc_status_in_trailers_overrides_http_503", async move {
            let status = refused(&client, "http503-trailers").await;
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            assert_eq!(status.message(), "the quota is used up");
        })
        .await;
}

async fn resets(cases: &Cases, client: OperationsClient<Transport>) {
    let c = client.clone().retry(RetryPolicy::none());
    cases
        .case(
            "a_goaway_is_unavailable_and_the_message_has_its_reason",
            async move {
                let status = refused(&c, "goaway").await;
                let message = status.message();
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(
                    message.contains("ENHANCE_YOUR_CALM") || message.contains("too_many_pings"),
                    "{status:?}"
                );
                assert!(
                    !message.to_lowercase().contains("broken pipe"),
                    "{status:?}"
                );
            },
        )
        .await;

    let c = client.clone();
    cases
        .case("a_reset_with_stream_closed_is_internal", async move {
            let status = refused(&c, "stream-closed").await;
            assert_eq!(status.code(), Code::Internal, "{status:?}");
        })
        .await;

    cases
        .case("a_refused_stream_is_retried", async move {
            let name = unique("refused-once");
            ok(client.get_operation(&name).await);
            assert_eq!(requests(&client, &name).await, "2");
        })
        .await;
}

/// What the default retry policy does.
async fn retries(cases: &Cases, client: OperationsClient<Transport>) {
    let c = client.clone();
    cases
        .case("unavailable_after_headers_is_not_retried", async move {
            let name = unique("headers-then-unavailable");
            let status = c.get_operation(&name).await.expect_err("refused");
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert_eq!(requests(&c, &name).await, "1");
        })
        .await;

    let c = client.clone();
    cases
        .case("unavailable_in_trailers_only_is_retried", async move {
            let name = unique("trailers-only-unavailable-2");
            ok(c.get_operation(&name).await);
            assert_eq!(requests(&c, &name).await, "3");
        })
        .await;

    let c = client.clone();
    cases
        .case(
            "resource_exhausted_with_retry_info_is_retried",
            async move {
                let name = unique("quota-2");
                ok(c.get_operation(&name).await);
                assert_eq!(requests(&c, &name).await, "3");
            },
        )
        .await;

    cases
        .case(
            "resource_exhausted_without_retry_info_is_not_retried",
            async move {
                let name = unique("quota-bare");
                let status = client.get_operation(&name).await.expect_err("refused");
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                assert_eq!(requests(&client, &name).await, "1");
            },
        )
        .await;
}

/// The order of [Request-Headers](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests).
async fn headers(cases: &Cases, client: OperationsClient<Transport>) {
    const CALL_DEFINITION: [&str; 6] = [
        "grpc-timeout",
        "te",
        "content-type",
        "grpc-encoding",
        "grpc-accept-encoding",
        "user-agent",
    ];
    let c = client.clone();
    cases
        .case("custom_metadata_follows_the_call_definition", async move {
            let mut request: Request<GetOperationRequest> = unique("headers").into_request();
            let value = AsciiMetadataValue::from_static("custom");
            request.metadata_mut().insert("a-custom-key", value);
            let seen = seen(ok(c.get_operation(request).await));
            let names: Vec<&str> = seen["names"]
                .split(' ')
                .filter(|name| !name.starts_with(':'))
                .collect();
            let position = |name: &str| {
                let position = names.iter().position(|each| *each == name);
                position.unwrap_or_else(|| panic!("{name} in {names:?}"))
            };
            assert_eq!(position("grpc-timeout"), 0, "{names:?}");
            assert!(position("te") < position("content-type"), "{names:?}");
            assert!(
                position("content-type") < position("user-agent"),
                "{names:?}"
            );
            let custom = names
                .iter()
                .position(|name| !CALL_DEFINITION.contains(name));
            let custom = custom.expect("the request has metadata");
            assert!(position("user-agent") < custom, "{names:?}");
            assert!(position("a-custom-key") >= custom, "{names:?}");
        })
        .await;

    cases
        .case("user_agent_names_the_crate", async move {
            let seen = seen(ok(client.get_operation(unique("headers")).await));
            let agent = seen.get("user-agent").expect("a user-agent");
            assert!(agent.starts_with("grpc-rust-longrunning/"), "{agent}");
        })
        .await;
}

async fn scheme(cases: &Cases, port: String, ca: Vec<u8>) {
    cases
        .case(
            "plaintext_to_a_tls_port_is_unavailable_and_names_https",
            async move {
                let builder = OperationsClient::builder(format!("http://localhost:{port}"));
                let client = ok(builder.retry(RetryPolicy::none()).connect_lazy());
                let answer = client.get_operation("operations/run").await;
                let status = answer.expect_err("the server expects TLS");
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(status.message().contains("https://"), "{status:?}");

                // The remedy works.
                let builder = OperationsClient::builder(format!("https://localhost:{port}"));
                let client = ok(builder.ca_certificate(ca).connect().await);
                ok(client.get_operation("operations/run").await);
            },
        )
        .await;
}

/// Returns the status of a Get of the kind.
async fn refused(client: &OperationsClient<Transport>, kind: &str) -> Status {
    let answer = client.get_operation(unique(kind)).await;
    answer.expect_err("the call fails")
}

/// Returns how many requests the server has had for a name.
async fn requests(client: &OperationsClient<Transport>, name: &str) -> String {
    let operation = client.get_operation(format!("count/{name}")).await;
    seen(ok(operation))["asked"].clone()
}

/// Returns a name that no other case uses, of the kind, which here is all of its last segment.
fn unique(kind: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("projects/{}-{n}/operations/{kind}", process::id())
}
