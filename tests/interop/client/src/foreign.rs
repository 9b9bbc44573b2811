//! Our client against a server that others wrote, see `README.md` for what its names do.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Waker},
    time::{Duration, Instant},
};

use longrunning::{
    Credentials, Operation, OperationsClient, Origin, Outcome, RetryPolicy, GrpcStack, CallStatusExt,
    Transport,
    proto::{
        CancelOperationRequest, GetOperationRequest, ListOperationsRequest, WaitOperationRequest,
        rpc,
    },
};
use serde_json::Value;
use tokio::{task::JoinSet, time::timeout};
use tonic::{
    Code, IntoRequest, Request, Status,
    metadata::{AsciiMetadataValue, BinaryMetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::cases::Cases;

pub async fn run(server: &str, ports: &Value, certs: &Path) {
    let http = |which: &str| format!("http://127.0.0.1:{}", ports[which]);
    let https = |which: &str| format!("https://localhost:{}", ports[which]);

    let cases = Cases(format!("{server}-server/default"));
    let client = OperationsClient::builder(http("plain")).connect().await;
    let default = client.expect("a connection");
    every_stack(&cases, default.clone()).await;
    retries(&cases, default.clone()).await;
    large_status(&cases, default.clone()).await;
    own_stack(&cases, &http("narrow"), &http("aging")).await;
    bursts(&cases, http("plain")).await;
    // grpc-js does not compress answers.
    if ports.get("gzip").is_some() {
        let client = OperationsClient::builder(http("gzip")).connect().await;
        gzip(&cases, client.expect("a connection")).await;
    }
    let pem = |file: &str| fs::read(certs.join(file)).expect("a file of certs.py");
    credentials(
        &cases,
        https("mtls"),
        pem("ca.pem"),
        pem("client.pem"),
        pem("client.key"),
    )
    .await;
    let secure = |which, trust: Trust| {
        let url = https(which);
        async move {
            let builder = OperationsClient::builder(url).retry(RetryPolicy::none());
            let mut builder = builder.ca_certificate(trust.ca);
            if let Some((certificate, key)) = trust.identity {
                builder = builder.identity(certificate, key);
            }
            let client = builder.connect_lazy()?;
            get_echo(&client).await
        }
    };
    tls(&cases, certs, secure).await;

    let cases = Cases(format!("{server}-server/channel"));
    let endpoint = Endpoint::try_from(http("plain")).expect("a URL");
    let channel = endpoint.connect().await.expect("a connection");
    let channel = OperationsClient::<Channel>::new(channel);
    every_stack(&cases, channel.clone()).await;
    let secure = |which, trust: Trust| {
        let url = https(which);
        async move {
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(trust.ca));
            if let Some((certificate, key)) = trust.identity {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            let endpoint = Endpoint::try_from(url).expect("a URL").tls_config(tls);
            let channel = endpoint.expect("settings that are right").connect_lazy();
            get_echo(&OperationsClient::<Channel>::new(channel)).await
        }
    };
    tls(&cases, certs, secure).await;

    let cases = Cases(format!("{server}-server"));
    crash(&cases, default.retry(RetryPolicy::none()), channel).await;
}

/// What must hold whatever carries the calls.
async fn every_stack<S: GrpcStack + Sync>(cases: &Cases, client: OperationsClient<S>) {
    rpcs(cases, client.clone()).await;
    codes(cases, client.clone()).await;
    deadlines(cases, client.clone()).await;
    cancellation(cases, client.clone()).await;
    metadata(cases, client.clone()).await;
    load(cases, client).await;
}

async fn rpcs<S: GrpcStack + Sync>(cases: &Cases, client: OperationsClient<S>) {
    let c = client.clone();
    cases
        .case("cancel_ends_an_operation_as_cancelled", async move {
            let name = unique("run");
            assert!(!ok(c.get_operation(&name).await).done);
            ok(c.cancel_operation(&name).await);
            let operation = ok(c.get_operation(&name).await);
            assert_eq!(operation.name, name);
            let Outcome::Cancelled(status) = operation.outcome() else {
                panic!("{operation:?}");
            };
            assert_eq!(status.message(), "abgebrochen ✂");
            ok(c.cancel_operation(&operation).await); // again: nothing changes
            assert_eq!(ok(c.get_operation(&name).await), operation);
        })
        .await;

    let c = client.clone();
    cases
        .case("an_operation_can_complete_despite_a_cancel", async move {
            let name = unique("stubborn");
            ok(c.cancel_operation(&name).await);
            is_42(ok(c.get_operation(&name).await));
        })
        .await;

    let c = client.clone();
    cases
        .case(
            "a_failed_operation_tells_code_message_and_details",
            async move {
                let operation = ok(c.get_operation(unique("failed")).await);
                let Outcome::Failed(status) = operation.outcome() else {
                    panic!("{operation:?}");
                };
                is_failure(&status, Code::PermissionDenied);
            },
        )
        .await;

    let c = client.clone();
    cases
        .case("an_operation_can_be_done_without_a_result", async move {
            let operation = ok(c.get_operation(unique("noresult")).await);
            assert!(matches!(operation.outcome(), Outcome::DoneWithoutResult));
        })
        .await;

    let c = client.clone();
    cases
        .case("wait_returns_when_the_operation_ends", async move {
            is_42(ok(c.wait_operation(unique("ends-300")).await));
        })
        .await;

    let c = client.clone();
    cases
        .case("wait_returns_when_its_timeout_is_over", async move {
            let started = Instant::now();
            let request = WaitOperationRequest {
                name: unique("run"),
                timeout: Some(duration(Duration::from_millis(400))),
            };
            assert!(!ok(c.wait_operation(request).await).done);
            let took = started.elapsed();
            assert!(took >= Duration::from_millis(350), "{took:?}");
            assert!(took < Duration::from_secs(5), "{took:?}");
        })
        .await;

    let c = client.clone();
    cases
        .case("wait_sees_a_cancel_by_another_call", async move {
            let name = unique("run");
            let waiting = tokio::spawn({
                let (c, name) = (c.clone(), name.clone());
                async move { c.wait_operation(name).await }
            });
            tokio::time::sleep(Duration::from_millis(100)).await;
            ok(c.cancel_operation(&name).await);
            let operation = ok(waiting.await.expect("no panic"));
            assert!(matches!(operation.outcome(), Outcome::Cancelled(_)));
        })
        .await;

    let c = client.clone();
    cases
        .case("a_deleted_operation_is_not_found", async move {
            let name = unique("run");
            ok(c.delete_operation(&name).await);
            let status = c.get_operation(&name).await.expect_err("it is gone");
            assert_eq!(status.code(), Code::NotFound);
            assert_eq!(status.message(), format!("kenne '{name}' nicht"));
            assert_eq!(status.origin(), Some(Origin::Server));
            let status = c.cancel_operation(&name).await.expect_err("it is gone");
            assert_eq!(status.code(), Code::NotFound);
        })
        .await;

    let c = client;
    cases
        .case(
            "list_has_pages_a_filter_and_what_is_unreachable",
            async move {
                let parent = unique("list").replace("/operations/", "/");
                let name = |n: usize| format!("{parent}/operations/run-{n}");
                for n in 0..5 {
                    ok(c.get_operation(name(n)).await);
                }
                ok(c.cancel_operation(name(3)).await);
                let mut request = ListOperationsRequest {
                    name: parent.clone(),
                    page_size: 2,
                    ..ListOperationsRequest::default()
                };
                let mut pages = Vec::new();
                loop {
                    let page = ok(c.list_operations(request.clone()).await);
                    assert!(page.unreachable.is_empty());
                    pages.push(
                        page.operations
                            .into_iter()
                            .map(|o| o.name)
                            .collect::<Vec<_>>(),
                    );
                    if page.next_page_token.is_empty() {
                        break;
                    }
                    request.page_token = page.next_page_token;
                }
                assert_eq!(
                    pages,
                    [
                        vec![name(0), name(1)],
                        vec![name(2), name(3)],
                        vec![name(4)]
                    ]
                );
                let request = ListOperationsRequest {
                    name: parent.clone(),
                    filter: "done=true".to_owned(),
                    return_partial_success: true,
                    ..ListOperationsRequest::default()
                };
                let page = ok(c.list_operations(request).await);
                assert_eq!(page.operations.len(), 1);
                assert_eq!(page.operations[0].name, name(3));
                assert_eq!(page.unreachable, ["locations/ü"]);
            },
        )
        .await;
}

async fn codes<S: GrpcStack + Sync>(cases: &Cases, client: OperationsClient<S>) {
    for code in 1..=16 {
        // Time for all attempts, where UNAVAILABLE is tried again.
        let c = client.clone().timeout(Duration::from_secs(20));
        let code = Code::from_i32(code);
        let name = Status::new(code, "").code_name().to_lowercase();
        cases
            .case(&format!("every_method_brings_{name}_whole"), async move {
                let name = unique(&format!("code-{}", i32::from(code)));
                let (get, cancel, delete, wait, list) = tokio::join!(
                    c.get_operation(&name),
                    c.cancel_operation(&name),
                    c.delete_operation(&name),
                    c.wait_operation(&name),
                    c.list_operations(&name),
                );
                let statuses = [
                    get.expect_err("Get is refused"),
                    cancel.expect_err("Cancel is refused"),
                    delete.expect_err("Delete is refused"),
                    wait.expect_err("Wait is refused"),
                    list.expect_err("List is refused"),
                ];
                for status in statuses {
                    is_failure(&status, code);
                    assert_eq!(status.origin(), Some(Origin::Server));
                    let metadata = status.metadata();
                    let values = metadata.get_all("x-answer").iter();
                    let values: Vec<_> = values
                        .flat_map(|value| value.to_str().expect("ASCII").split(','))
                        .map(str::trim)
                        .collect();
                    assert_eq!(values, ["one", "two"]);
                    let bytes = metadata.get_bin("x-answer-bin").expect("it was sent");
                    let bytes = bytes.to_bytes().expect("base64");
                    assert_eq!(bytes[..], (0..=255).collect::<Vec<u8>>());
                }
            })
            .await;
    }

    cases
        .case("a_status_of_4_kb_arrives_whole", async move {
            is_fat(client.get_operation(unique("fat-4000")).await, 4000);
        })
        .await;
}

async fn deadlines<S: GrpcStack + Sync>(cases: &Cases, client: OperationsClient<S>) {
    let c = client.clone();
    cases
        .case("the_server_sees_the_timeout_of_the_request", async move {
            for millis in [500, 2_500, 90_000, 7_200_000, 100_000_000] {
                let mut request: Request<GetOperationRequest> = unique("echo").into_request();
                request.set_timeout(Duration::from_millis(millis));
                let seen = seen(ok(c.get_operation(request).await));
                let remaining: u64 = seen["remaining-ms"].parse().expect("a number");
                assert!(remaining <= millis + 1, "{remaining} of {millis}");
                assert!(remaining + 400 > millis, "{remaining} of {millis}");
            }
        })
        .await;

    let c = client.clone().timeout(Duration::from_secs(20));
    cases
        .case("the_server_sees_the_timeout_of_the_client", async move {
            let seen = seen(ok(c.get_operation(unique("echo")).await));
            let remaining: u64 = seen["remaining-ms"].parse().expect("a number");
            assert!((19_000..=20_000).contains(&remaining), "{remaining}");
        })
        .await;

    let c = client.clone();
    cases
        .case("a_late_answer_is_deadline_exceeded_in_time", async move {
            let started = Instant::now();
            let mut request: Request<GetOperationRequest> = unique("late-5000").into_request();
            request.set_timeout(Duration::from_millis(300));
            let status = c.get_operation(request).await.expect_err("it is late");
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
            let took = started.elapsed();
            assert!(took < Duration::from_secs(2), "{took:?}");
            assert!(took >= Duration::from_millis(250), "{took:?}");
        })
        .await;

    let c = client;
    cases
        .case("the_server_sees_a_call_end_at_its_deadline", async move {
            let (hang, twin) = hang();
            let mut request: Request<CancelOperationRequest> = hang.into_request();
            request.set_timeout(Duration::from_millis(200));
            let status = c.cancel_operation(request).await.expect_err("it hangs");
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
            is_42(ok(c.wait_operation(wait(twin)).await));
        })
        .await;
}

async fn cancellation<S: GrpcStack + Sync>(cases: &Cases, client: OperationsClient<S>) {
    let c = client.clone();
    cases
        .case("the_server_sees_a_dropped_call", async move {
            let (hang, twin) = hang();
            let call = c.get_operation(&hang);
            assert!(timeout(Duration::from_millis(200), call).await.is_err());
            is_42(ok(c.wait_operation(wait(twin)).await));
        })
        .await;

    let c = client;
    cases
        .case(
            "the_server_sees_100_dropped_calls_beside_100_others",
            async move {
                let mut calls = JoinSet::new();
                for n in 0..200 {
                    let c = c.clone();
                    calls.spawn(async move {
                        if n % 2 == 0 {
                            return is_42(ok(c.wait_operation(unique("ends-300")).await));
                        }
                        let (hang, twin) = hang();
                        let call = c.wait_operation(&hang);
                        assert!(timeout(Duration::from_millis(200), call).await.is_err());
                        is_42(ok(c.wait_operation(wait(twin)).await))
                    });
                }
                assert_eq!(calls.join_all().await.len(), 200);
            },
        )
        .await;
}

async fn metadata<S: GrpcStack + Sync>(cases: &Cases, client: OperationsClient<S>) {
    let c = client.clone();
    cases
        .case("the_server_sees_the_metadata_of_the_request", async move {
            let mut request: Request<GetOperationRequest> = unique("echo").into_request();
            let metadata = request.metadata_mut();
            metadata.insert(
                "x-plain",
                AsciiMetadataValue::from_static("a value ~!@#$%^&*()"),
            );
            metadata.append("x-twice", AsciiMetadataValue::from_static("one"));
            metadata.append("x-twice", AsciiMetadataValue::from_static("two"));
            let bytes: Vec<u8> = (0..=255).collect();
            metadata.insert_bin("x-bytes-bin", BinaryMetadataValue::from_bytes(&bytes));
            let seen = seen(ok(c.get_operation(request).await));
            assert_eq!(seen["x-plain"], "a value ~!@#$%^&*()");
            assert_eq!(seen["x-twice"], "one, two");
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(seen["x-bytes-bin"], hex);
        })
        .await;

    let c = client.clone();
    cases
        .case("the_server_sees_who_calls_and_where_to_route", async move {
            let name = unique("echo");
            let seen = seen(ok(c.get_operation(&name).await));
            let routing = format!("name={}", name.replace('/', "%2F"));
            assert_eq!(seen["x-goog-request-params"], routing);
            let agent = &seen["x-goog-api-client"];
            assert!(agent.starts_with("gl-rust/"), "{agent}");
            assert!(agent.contains(" gccl/"), "{agent}");
        })
        .await;

    let c = client;
    cases
        .case("wait_is_sent_without_a_routing_header", async move {
            let name = unique("echo");
            let request = WaitOperationRequest {
                name,
                timeout: Some(duration(Duration::from_millis(1))),
            };
            let seen = seen(ok(c.wait_operation(request).await));
            assert!(!seen.contains_key("x-goog-request-params"), "{seen:?}");
        })
        .await;
}

async fn load<S: GrpcStack + Sync>(cases: &Cases, client: OperationsClient<S>) {
    let c = client.clone();
    cases
        .case("1000_calls_at_once_are_all_answered", async move {
            let mut calls = JoinSet::new();
            for _ in 0..1000 {
                let c = c.clone();
                calls.spawn(async move {
                    let name = unique("late-200");
                    assert_eq!(ok(c.get_operation(&name).await).name, name);
                });
            }
            assert_eq!(calls.join_all().await.len(), 1000);
        })
        .await;

    let c = client.clone();
    cases
        .case("1000_cancels_at_once_are_all_done", async move {
            let mut calls = JoinSet::new();
            for _ in 0..1000 {
                let c = c.clone();
                calls.spawn(async move {
                    let name = unique("run");
                    ok(c.cancel_operation(&name).await);
                    let operation = ok(c.get_operation(&name).await);
                    assert!(matches!(operation.outcome(), Outcome::Cancelled(_)));
                });
            }
            assert_eq!(calls.join_all().await.len(), 1000);
        })
        .await;

    let c = client.clone();
    cases
        .case("a_list_just_under_the_limit_arrives", async move {
            let page = ok(c.list_operations("big/4000/1000").await);
            assert_eq!(page.operations.len(), 4000);
            let metadata = page.operations[3999].metadata.as_ref();
            assert_eq!(metadata.expect("padding").value, [b'x'; 1000]);
        })
        .await;

    let c = client.clone();
    cases
        .case("a_list_over_the_limit_is_resource_exhausted", async move {
            let list = c.list_operations("big/5000/1000").await;
            let status = list.expect_err("5 MB are more than 4 MiB");
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            assert_eq!(status.origin(), Some(Origin::Client));
            ok(c.get_operation(unique("run")).await); // the client goes on
        })
        .await;

    let c = client.max_decoding_message_size(64 << 20);
    cases
        .case(
            "a_list_of_32_mb_arrives_where_the_limit_is_raised",
            async move {
                let page = ok(c.list_operations("big/32/1000000").await);
                assert_eq!(page.operations.len(), 32);
            },
        )
        .await;
}

/// What only our own stack promises.
async fn own_stack(cases: &Cases, narrow: &str, aging: &str) {
    let connect = async |url: &str| {
        let client = OperationsClient::builder(url.to_owned()).connect_lazy();
        client.expect("settings that are right")
    };

    let c: OperationsClient<Transport> = connect(narrow).await;
    cases
        .case("200_calls_share_connections_of_10_streams", async move {
            let mut calls = JoinSet::new();
            for _ in 0..200 {
                let c = c.clone();
                calls.spawn(async move {
                    ok(c.get_operation(unique("late-50")).await);
                });
            }
            assert_eq!(calls.join_all().await.len(), 200);
        })
        .await;

    let c = connect(aging).await;
    cases
        .case(
            "connections_that_end_every_300_ms_fail_no_call",
            async move {
                let until = Instant::now() + Duration::from_secs(3);
                let mut callers = JoinSet::new();
                for _ in 0..8 {
                    let c = c.clone();
                    callers.spawn(async move {
                        let mut calls = 0_usize;
                        while Instant::now() < until {
                            ok(c.get_operation(unique("late-5")).await);
                            calls += 1;
                        }
                        calls
                    });
                }
                let calls: usize = callers.join_all().await.into_iter().sum();
                assert!(calls > 100, "{calls}");
            },
        )
        .await;
}

async fn bursts(cases: &Cases, url: String) {
    cases
        .case(
            "bursts_of_dropped_calls_do_not_end_the_connection",
            async move {
                let client = OperationsClient::builder(url)
                    .retry(RetryPolicy::none())
                    .max_connections(1)
                    .connect()
                    .await
                    .expect("a connection");
                let mut neighbour = JoinSet::new();
                let calls = client.clone();
                let name = unique("run");
                neighbour.spawn(async move {
                    loop {
                        ok(calls.get_operation(&name).await);
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                });
                let hang = unique("hang");
                for _ in 0..10 {
                    // Dropped before they are written, or most of them: the connection runs on another thread.
                    let calls = (0..1_000).map(|_| Box::pin(client.get_operation(&hang)));
                    for mut call in calls.collect::<Vec<_>>() {
                        let mut cx = Context::from_waker(Waker::noop());
                        assert!(call.as_mut().poll(&mut cx).is_pending());
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                for _ in 0..5 {
                    // Dropped after they were written.
                    let mut calls = JoinSet::new();
                    for _ in 0..90 {
                        let (client, hang) = (client.clone(), hang.clone());
                        calls.spawn(async move { client.get_operation(&hang).await });
                    }
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    calls.shutdown().await;
                }
                let hurried = client.clone().timeout(Duration::from_millis(50));
                let mut calls = JoinSet::new();
                for _ in 0..60 {
                    let (client, hang) = (hurried.clone(), hang.clone());
                    calls.spawn(async move { client.get_operation(&hang).await });
                }
                for result in calls.join_all().await {
                    let status = result.expect_err("it hangs");
                    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
                }
                ok(client.get_operation(unique("run")).await);
                assert!(neighbour.try_join_next().is_none(), "the neighbour failed");
            },
        )
        .await;
}

async fn retries(cases: &Cases, client: OperationsClient<Transport>) {
    let c = client.clone();
    cases
        .case(
            "an_unavailable_answer_is_tried_again_until_it_is_good",
            async move {
                let seen = seen(ok(c.get_operation(unique("flaky-2")).await));
                assert_eq!(seen["asked"], "3");
                assert_eq!(seen["grpc-previous-rpc-attempts"], "2");
                let remaining: u64 = seen["remaining-ms"].parse().expect("a number");
                assert!(remaining < 9_000, "{remaining} ms are left"); // one deadline for all
            },
        )
        .await;

    let c = client.retry(RetryPolicy::none());
    cases
        .case("without_retries_the_first_answer_counts", async move {
            let name = unique("flaky-1");
            let status = c.get_operation(&name).await.expect_err("the first fails");
            is_failure(&status, Code::Unavailable);
            assert_eq!(seen(ok(c.get_operation(&name).await))["asked"], "2");
        })
        .await;
}

async fn large_status(cases: &Cases, client: OperationsClient<Transport>) {
    cases
        .case(
            "a_status_of_100_kb_arrives_and_fails_no_other_call",
            async move {
                let mut others = JoinSet::new();
                for _ in 0..10 {
                    let c = client.clone();
                    others.spawn(async move { ok(c.get_operation(unique("late-300")).await) });
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                is_fat(client.get_operation(unique("fat-100000")).await, 100_000);
                assert_eq!(others.join_all().await.len(), 10);
            },
        )
        .await;
}

fn is_fat(answer: Result<Operation, Status>, bytes: usize) {
    let status = answer.expect_err("it is refused");
    is_failure(&status, Code::Aborted);
    let debug: rpc::DebugInfo = status.detail().expect("a DebugInfo");
    assert_eq!(debug.detail.len(), bytes);
}

/// A server that compresses, though we do not offer to read that, breaks
/// [gRPC's rule](https://github.com/grpc/grpc/blob/master/doc/compression.md).
async fn gzip(cases: &Cases, client: OperationsClient<Transport>) {
    let same = client.clone();
    cases
        .case("an_answer_compressed_unasked_is_internal", async move {
            let list = client.list_operations("big/100/1000").await;
            let status = list.expect_err("it cannot be read");
            assert_eq!(status.code(), Code::Internal, "{status:?}");
            assert_eq!(status.origin(), Some(Origin::Client));
            assert!(status.message().contains("gzip"), "{status:?}");
        })
        .await;
    cases
        .case(
            "a_message_with_compressed_flag_0_is_a_success",
            async move {
                ok(same.cancel_operation("operations/run-gzip").await);
            },
        )
        .await;
}

async fn credentials(cases: &Cases, url: String, ca: Vec<u8>, certificate: Vec<u8>, key: Vec<u8>) {
    cases
        .case(
            "the_server_sees_the_token_and_the_quota_project",
            async move {
                let credentials = Credentials::bearer_token("ya29.T0ken_~+/=");
                let builder = OperationsClient::builder(url)
                    .ca_certificate(ca)
                    .identity(certificate, key)
                    .credentials(credentials.quota_project("quota"));
                let client = ok(builder.connect().await);
                let seen = ok(get_echo(&client).await);
                assert_eq!(seen["authorization"], "Bearer ya29.T0ken_~+/=");
                assert_eq!(seen["x-goog-user-project"], "quota");
                assert_eq!(seen["peer"], "interop client");
            },
        )
        .await;
}

/// Ends the server.
async fn crash(
    cases: &Cases,
    default: OperationsClient<Transport>,
    channel: OperationsClient<Channel>,
) {
    cases
        .case("a_server_that_dies_is_unavailable_to_all", async move {
            let calls = {
                let (a, b) = (default.clone(), channel.clone());
                tokio::spawn(async move {
                    tokio::join!(
                        a.get_operation(unique("hang")),
                        b.get_operation(unique("hang"))
                    )
                })
            };
            tokio::time::sleep(Duration::from_millis(200)).await;
            let last = default.get_operation(unique("crash")).await;
            let (a, b) = calls.await.expect("no panic");
            let refused = tokio::join!(
                default.cancel_operation(unique("run")),
                channel.cancel_operation(unique("run")),
            );
            for error in [
                last.err(),
                a.err(),
                b.err(),
                refused.0.err(),
                refused.1.err(),
            ] {
                let status = error.expect("there is no server");
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert_eq!(status.origin(), Some(Origin::Transport), "{status:?}");
            }
        })
        .await;
}

/// Whom a client trusts, and as whom it shows itself.
struct Trust {
    ca: Vec<u8>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// `get` makes a connection to one of the server's ports, and returns what the server saw.
async fn tls<F>(cases: &Cases, certs: &Path, get: impl Fn(&'static str, Trust) -> F)
where
    F: Future<Output = Result<Seen, Status>> + Send + 'static,
{
    let pem = |file: &str| fs::read(certs.join(file)).expect("a file of certs.py");
    let trust = |ca: &str, identity: Option<&str>| Trust {
        ca: pem(&format!("{ca}.pem")),
        identity: identity.map(|it| (pem(&format!("{it}.pem")), pem(&format!("{it}.key")))),
    };
    let unavailable = |answer: Result<Seen, Status>| {
        let status = answer.expect_err("there can be no connection");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(status.origin(), Some(Origin::Transport), "{status:?}");
    };

    let answer = get("tls", trust("ca", None));
    cases
        .case("tls_with_a_private_ca", async move {
            assert!(!ok(answer.await).contains_key("peer"));
        })
        .await;
    let answer = get("tls", trust("stranger-ca", None));
    cases
        .case(
            "tls_with_a_ca_that_is_not_trusted_is_unavailable",
            async move {
                unavailable(answer.await);
            },
        )
        .await;
    let answer = get("elsewhere", trust("ca", None));
    cases
        .case(
            "tls_with_another_servers_certificate_is_unavailable",
            async move {
                unavailable(answer.await);
            },
        )
        .await;
    let answer = get("mtls", trust("ca", Some("client")));
    cases
        .case("mtls_tells_the_server_who_calls", async move {
            assert_eq!(ok(answer.await)["peer"], "interop client");
        })
        .await;
    let answer = get("mtls", trust("ca", None));
    cases
        .case("mtls_without_an_identity_is_unavailable", async move {
            unavailable(answer.await);
        })
        .await;
    let answer = get("mtls", trust("ca", Some("stranger")));
    cases
        .case(
            "mtls_with_a_strangers_identity_is_unavailable",
            async move {
                unavailable(answer.await);
            },
        )
        .await;
}

/// What the server saw of a call.
pub type Seen = BTreeMap<String, String>;

async fn get_echo<S: GrpcStack + Sync>(client: &OperationsClient<S>) -> Result<Seen, Status> {
    client.get_operation(unique("echo")).await.map(seen)
}

pub fn seen(operation: Operation) -> Seen {
    let seen = operation.metadata_as::<rpc::ErrorInfo>();
    ok(seen).expect("the server tells what it sees").metadata
}

/// A name that no other case uses, of the kind.
fn unique(kind: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("projects/p/locations/l/operations/{kind}-n{n}")
}

/// The names of a call that hangs, and of the operation that is done when the server saw it end.
fn hang() -> (String, String) {
    let hang = unique("hang");
    let twin = hang.replace("hang", "seen");
    (hang, twin)
}

fn wait(name: String) -> WaitOperationRequest {
    let timeout = Some(duration(Duration::from_secs(5)));
    WaitOperationRequest { name, timeout }
}

fn duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().expect("short")
}

pub fn ok<T>(result: Result<T, Status>) -> T {
    result.unwrap_or_else(|status| panic!("{status:?}"))
}

fn is_42(operation: Operation) {
    let response: prost_types::Duration = ok(operation.into_response());
    assert_eq!((response.seconds, response.nanos), (42, 0));
}

fn is_failure(status: &Status, code: Code) {
    assert_eq!(status.code(), code, "{status:?}");
    let name = status.code_name();
    assert_eq!(
        status.message(),
        format!("nicht möglich: {name} – 不行 🚫 100%")
    );
    let info: rpc::ErrorInfo = status.detail().expect("an ErrorInfo");
    assert_eq!(
        (&*info.reason, &*info.domain),
        ("INTEROP", "interop.example")
    );
    assert_eq!(info.metadata["schlüssel"], "wért");
    let text: rpc::LocalizedMessage = status.detail().expect("a LocalizedMessage");
    assert_eq!((&*text.locale, &*text.message), ("ja", "できません"));
}
