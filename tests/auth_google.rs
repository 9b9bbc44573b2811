//! Tokens from Google's sources, end to end on loopback, each in a process of its own, because environment
//! variables decide.
#![cfg(feature = "google-authz")]
#![allow(clippy::unwrap_used)] // in the helpers, too

#[path = "support/child.rs"]
mod child;
#[path = "support/google.rs"]
mod google;
#[path = "support/http.rs"]
mod http;
#[path = "support/trace.rs"]
mod trace;

#[cfg(feature = "tls-ring")]
use std::io;
use std::{
    path::Path,
    time::{Duration, Instant},
};

#[cfg(feature = "tls-ring")]
use {
    hyper_util::rt::TokioIo,
    longrunning::{Credentials, OperationsClient},
    tokio::net::TcpStream,
    tonic::Code,
};

use self::{
    child::Process,
    google::{KEY, MetadataServer, ROTATED_KEY, TokenEndpoint},
    http::Reply,
};

/// Runs in the child processes that the tests start.
#[test]
fn child() {
    child::obey();
}

#[tokio::test]
async fn a_service_account_signs_for_its_token() {
    let endpoint = TokenEndpoint::start().await;
    let file = endpoint.key_file(KEY);
    let credentials = format!("file:{}", file.display());
    let mut process = Process::start(&credentials, &[("SSL_CERT_FILE", &endpoint.ca())]);
    assert_eq!(process.tell("new").await, "authorization: Bearer token-1");
    process.end().await;
}

#[tokio::test]
async fn ten_thousand_calls_at_a_cold_start_make_one_request() {
    let endpoint = TokenEndpoint::start().await;
    endpoint
        .desk
        .answer(Reply::Late(Duration::from_millis(300), String::new()));
    let file = endpoint.key_file(KEY);
    let credentials = format!("file:{}", file.display());
    let mut process = Process::start(&credentials, &[("SSL_CERT_FILE", &endpoint.ca())]);
    assert_eq!(process.tell("burst").await, "authorization: Bearer token-1");
    assert_eq!(endpoint.desk.count(), 1);
    process.end().await;
}

#[tokio::test]
async fn application_default_is_the_file_of_the_variable_first() {
    let endpoint = TokenEndpoint::start().await;
    let metadata = MetadataServer::start().await;
    let mut process = Process::start(
        "adc",
        &[
            ("GOOGLE_APPLICATION_CREDENTIALS", &endpoint.key_file(KEY)),
            ("GCE_METADATA_HOST", Path::new(&metadata.host())),
            ("SSL_CERT_FILE", &endpoint.ca()),
        ],
    );
    assert_eq!(process.tell("ready").await, "authorization: Bearer token-1");
    assert_eq!(metadata.desk.count(), 0);
    process.end().await;
}

#[tokio::test]
async fn application_default_is_gclouds_file_next() {
    let endpoint = TokenEndpoint::start().await;
    let home = tempfile::tempdir().unwrap();
    let gcloud = home.path().join(".config/gcloud");
    std::fs::create_dir_all(&gcloud).unwrap();
    let file = gcloud.join("application_default_credentials.json");
    std::fs::copy(endpoint.key_file(KEY), &file).unwrap();
    for variable in ["HOME", "CLOUDSDK_CONFIG"] {
        let folder = match variable {
            "HOME" => home.path(),
            _ => &gcloud,
        };
        let mut process = Process::start(
            "adc",
            &[
                (variable, folder),
                ("GOOGLE_APPLICATION_CREDENTIALS", Path::new("")),
                ("SSL_CERT_FILE", &endpoint.ca()),
            ],
        );
        let answer = process.tell("ready").await;
        assert!(
            answer.starts_with("authorization: Bearer token-"),
            "{answer}"
        );
        process.end().await;
    }
}

#[tokio::test]
async fn application_default_is_the_metadata_server_last() {
    let metadata = MetadataServer::start().await;
    let host = metadata.host();
    let empty = tempfile::tempdir().unwrap();
    for home in [
        None,
        Some(("HOME", empty.path())),
        Some(("HOME", Path::new(""))),
    ] {
        let mut variables = vec![("GCE_METADATA_HOST", Path::new(&host))];
        variables.extend(home);
        let mut process = Process::start("adc", &variables);
        let answer = process.tell("ready").await;
        assert!(
            answer.starts_with("authorization: Bearer token-"),
            "{answer}"
        );
        process.end().await;
    }
    // Each of them has made one request, on one connection.
    assert_eq!(metadata.server.connections(), 3);
    let target = "/computeMetadata/v1/instance/service-accounts/default/token?\
        scopes=https%3A%2F%2Fwww.googleapis.com%2Fauth%2Fcloud-platform";
    assert_eq!(*metadata.targets.lock().unwrap(), [target; 3]);
}

#[tokio::test]
async fn the_metadata_server_is_asked_for_the_account() {
    let metadata = MetadataServer::start().await;
    let host = metadata.host();
    let variables = [("GCE_METADATA_HOST", Path::new(&host))];
    let mut process = Process::start("metadata:me@p.iam.gserviceaccount.com", &variables);
    assert_eq!(process.tell("ready").await, "authorization: Bearer token-1");
    let target = metadata.targets.lock().unwrap().pop().unwrap();
    assert!(
        target.contains("/me@p.iam.gserviceaccount.com/token"),
        "{target}"
    );
    process.end().await;
}

#[tokio::test]
async fn a_token_of_the_metadata_server_costs_one_request() {
    for kind in ["adc", "metadata"] {
        let metadata = MetadataServer::start().await;
        let host = metadata.host();
        let variables = [("GCE_METADATA_HOST", Path::new(&host))];
        let mut process = Process::start(kind, &variables);
        assert_eq!(process.tell("ready").await, "authorization: Bearer token-1");
        // Nothing that was started beside the fetch can still send anything now.
        process.end().await;
        let target = "/computeMetadata/v1/instance/service-accounts/default/token?\
            scopes=https%3A%2F%2Fwww.googleapis.com%2Fauth%2Fcloud-platform";
        assert_eq!(*metadata.targets.lock().unwrap(), [target]);
        assert_eq!(metadata.server.connections(), 1);
    }
}

#[tokio::test]
async fn a_self_signed_token_needs_no_endpoint() {
    let endpoint = TokenEndpoint::start().await;
    for (key, other) in [(KEY, ROTATED_KEY), (ROTATED_KEY, KEY)] {
        let file = endpoint.key_file(key);
        let credentials = format!("self_signed:{}", file.display());
        let mut process = Process::start(&credentials, &[("SSL_CERT_FILE", &endpoint.ca())]);
        let header = process.tell("new").await;
        process.end().await;
        let token = header.strip_prefix("authorization: Bearer ").unwrap();
        google::check_self_signed(token, key).unwrap();
        let failure = google::check_self_signed(token, other);
        assert_eq!(failure, Err("Invalid JWT Signature."));
    }
    assert_eq!(endpoint.server.connections(), 0);
}

/// Calls an endpoint with a key file of the universe example.goog, whose private key is empty. Returns the
/// message of the failure.
#[cfg(feature = "tls-ring")]
async fn call_with_foreign_universe(endpoint: &str, authority: Option<&str>) -> String {
    let mut account = google::service_account("", "https://localhost:1/token");
    account["universe_domain"] = "example.goog".into();
    let mut builder = OperationsClient::builder(endpoint);
    if let Some(authority) = authority {
        builder = builder.authority(authority);
    }
    let client = builder
        .credentials(Credentials::json(account.to_string()))
        .timeout(Duration::from_secs(5))
        // Nothing leaves this machine.
        .connector(tower::service_fn(|_: ::http::Uri| async {
            Err::<TokioIo<TcpStream>, _>(io::Error::other("the test does not connect"))
        }))
        .connect_lazy()
        .unwrap();
    let status = client.get_operation("operations/1").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    status.message().to_owned()
}

#[cfg(feature = "tls-ring")]
#[tokio::test]
async fn credentials_of_another_universe_are_not_used() {
    let table = [
        ("automl.googleapis.com", None),
        ("automl.not-example.goog", None),
        ("automl.googleapis.com", Some("10.0.0.5")),
        ("automl.googleapis.com", Some("localhost")),
        ("automl.googleapis.com", Some("automl.example.goog")),
    ];
    for (host, address) in table {
        let endpoint = format!("https://{}", address.unwrap_or(host));
        let authority = address.map(|_| host);
        assert_eq!(
            call_with_foreign_universe(&endpoint, authority).await,
            format!(
                "credentials: credentials JSON: field \"universe_domain\" is \"example.goog\", but the endpoint \
                 is {host}: use credentials of the endpoint's universe"
            )
        );
    }
}

#[cfg(feature = "tls-ring")]
#[tokio::test]
async fn credentials_of_the_endpoints_universe_are_used() {
    let table = [
        ("https://automl.example.goog", None),
        ("https://10.0.0.5", Some("automl.example.goog:443")),
        ("https://localhost", None),
        ("https://automl.googleapis.com", Some("localhost")),
    ];
    for (endpoint, authority) in table {
        // The field that is checked next.
        assert_eq!(
            call_with_foreign_universe(endpoint, authority).await,
            "credentials: credentials JSON: field \"private_key\" is empty: download the file again"
        );
    }
}

#[tokio::test]
async fn the_quota_project_is_that_of_the_variable_or_else_of_the_file() {
    let endpoint = TokenEndpoint::start().await;
    let mut account = google::service_account(KEY, &endpoint.uri());
    account["quota_project_id"] = "of-the-file".into();
    let credentials = format!("json:{account}");
    let ca = endpoint.ca();
    let mut process = Process::start(&credentials, &[("SSL_CERT_FILE", &ca)]);
    assert_eq!(
        process.tell("ready").await,
        "authorization: Bearer token-1, x-goog-user-project: of-the-file"
    );
    process.end().await;
    let variable = ("GOOGLE_CLOUD_QUOTA_PROJECT", Path::new("of-the-variable"));
    let mut process = Process::start(&credentials, &[("SSL_CERT_FILE", &ca), variable]);
    assert_eq!(
        process.tell("ready").await,
        "authorization: Bearer token-2, x-goog-user-project: of-the-variable"
    );
    process.end().await;
}

#[tokio::test]
async fn a_token_that_expires_is_replaced_while_the_old_one_serves() {
    let metadata = MetadataServer::start().await;
    metadata.desk.live(8);
    let host = metadata.host();
    let variables = [("GCE_METADATA_HOST", Path::new(&host))];
    let mut process = Process::start("metadata", &variables);
    assert_eq!(process.tell("ready").await, "authorization: Bearer token-1");
    // Slower than a look, and faster than the 1.6 s or more that remain of the old token's life.
    let late = Reply::Late(Duration::from_millis(700), String::new());
    metadata.desk.answer(late);
    let mut last = String::new();
    while metadata.desk.count() < 4 {
        last = process.tell("look").await;
        assert!(last.starts_with("authorization: Bearer token-"), "{last}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_ne!(last, "authorization: Bearer token-1");
    process.end().await;
}

/// Looks until the token is no longer sent, and checks that this is when its life ends. `earliest` and `latest`
/// are times between which it was received. Returns the answer that came instead.
async fn end_of_token(
    process: &mut Process,
    token: &str,
    life: Duration,
    (earliest, latest): (Instant, Instant),
) -> String {
    loop {
        let asked = Instant::now();
        let answer = process.tell("look").await;
        if answer != token {
            assert!(earliest.elapsed() >= life, "{answer}");
            return answer;
        }
        assert!(asked < latest + life, "{answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_token_of_four_seconds_is_not_sent_for_longer() {
    let metadata = MetadataServer::start().await;
    let life = Duration::from_secs(4);
    metadata.desk.live(life.as_secs());
    let host = metadata.host();
    let mut process = Process::start("metadata", &[("GCE_METADATA_HOST", Path::new(&host))]);
    let earliest = Instant::now();
    let token = process.tell("ready").await;
    let received = (earliest, Instant::now());
    assert_eq!(token, "authorization: Bearer token-1");
    metadata.desk.answer(Reply::Cut);
    let failure = end_of_token(&mut process, &token, life, received).await;
    let expected =
        format!("Unavailable credentials: the metadata server {host} sent no usable response: ");
    assert!(failure.starts_with(&expected), "{failure}");
    process.end().await;
}

#[tokio::test]
async fn an_outage_is_reported_when_the_token_has_expired_and_ends_by_itself() {
    let metadata = MetadataServer::start().await;
    let life = Duration::from_secs(15);
    metadata.desk.live(life.as_secs());
    let host = metadata.host();
    let variables = [("GCE_METADATA_HOST", Path::new(&host))];
    let mut process = Process::start("metadata", &variables);
    let earliest = Instant::now();
    let token = process.tell("ready").await;
    let received = (earliest, Instant::now());
    assert_eq!(token, "authorization: Bearer token-1");
    metadata.desk.answer(Reply::status(500, "down"));
    let failure = end_of_token(&mut process, &token, life, received).await;
    assert_eq!(
        failure,
        format!(
            "Unavailable credentials: the metadata server {host} answered 500: the fetch will be retried"
        )
    );
    metadata.desk.live(3600);
    metadata.desk.answer(None);
    let answer = process.tell("ready").await;
    assert!(
        answer.starts_with("authorization: Bearer token-"),
        "{answer}"
    );
    process.end().await;
}

#[tokio::test]
async fn a_rotated_file_is_noticed_when_the_old_key_is_refused() {
    let endpoint = TokenEndpoint::start().await;
    let file = endpoint.key_file(KEY);
    let credentials = format!("file:{}", file.display());
    let mut process = Process::start(&credentials, &[("SSL_CERT_FILE", &endpoint.ca())]);
    assert_eq!(process.tell("ready").await, "authorization: Bearer token-1");
    *endpoint.key.lock().unwrap() = ROTATED_KEY;
    endpoint.key_file(ROTATED_KEY);
    process.tell("reject").await;
    process.until("look", "authorization: Bearer token-2").await;
    process.end().await;
}

#[tokio::test]
async fn an_invalid_grant_that_is_later_accepted_needs_no_restart() {
    let endpoint = TokenEndpoint::start().await;
    *endpoint.key.lock().unwrap() = ROTATED_KEY;
    let file = endpoint.key_file(KEY);
    let credentials = format!("file:{}", file.display());
    let mut process = Process::start(&credentials, &[("SSL_CERT_FILE", &endpoint.ca())]);
    assert_eq!(
        process.tell("ready").await,
        format!(
            "Unauthenticated credentials: credentials file {}: the token endpoint localhost:{} answered 400 \
             invalid_grant: check that the key or login is not revoked, that the account exists, \
             and that this machine's clock is right",
            file.display(),
            endpoint.server.address.port()
        )
    );
    *endpoint.key.lock().unwrap() = KEY;
    process
        .until("ready", "authorization: Bearer token-1")
        .await;
    process.end().await;
}

#[tokio::test]
async fn a_mended_file_needs_no_restart() {
    let endpoint = TokenEndpoint::start().await;
    let file = endpoint.key_file("");
    let credentials = format!("file:{}", file.display());
    let mut process = Process::start(&credentials, &[("SSL_CERT_FILE", &endpoint.ca())]);
    assert_eq!(
        process.tell("ready").await,
        format!(
            "Unauthenticated credentials: credentials file {}: field \"private_key\" is empty: \
             download the file again",
            file.display()
        )
    );
    endpoint.key_file(KEY);
    process
        .until("ready", "authorization: Bearer token-1")
        .await;
    process.end().await;
}
