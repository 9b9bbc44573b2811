//! Endpoints that do not serve: each is told in words that name the endpoint and the remedy; none
//! hangs, and none panics.
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

use std::{ffi::OsString, net::TcpListener, path::Path, time::Duration};

use self::{
    child::{Process, set_up},
    google::{KEY, MetadataServer, TokenEndpoint, service_account},
    http::Reply,
};

/// What the tests start, in a process of its own.
#[test]
fn child() {
    child::obey();
}

#[tokio::test]
async fn a_metadata_host_that_is_no_host() {
    for host in ["", "http://127.0.0.1", "a b", ":80", "a/b", "*"] {
        let variable = ("GCE_METADATA_HOST", Path::new(host));
        let (answer, _) = set_up("metadata", &[variable]).await;
        assert_eq!(
            answer,
            "Unauthenticated credentials: GCE_METADATA_HOST is not a host, or a host and a port, \
             such as metadata.google.internal:80: set it so, or unset it",
            "{host:?}"
        );
    }
}

#[tokio::test]
async fn an_account_that_is_no_path_segment() {
    let (answer, _) = set_up("metadata:a/b?c", &[]).await;
    assert_eq!(
        answer,
        "Unauthenticated credentials: \"a/b?c\" is not an account of the metadata server: give an \
         email, or None"
    );
}

const REFUSED: &str = "Unavailable credentials: the metadata server cannot be asked: Connection \
                       refused (os error 111)";

#[tokio::test]
async fn an_endpoint_that_refuses_connections() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = OsString::from(port.local_addr().unwrap().to_string());
    drop(port);
    let mut process = Process::start("metadata", &[("GCE_METADATA_HOST", Path::new(&host))]);
    process.tell("look").await;
    process.until("look", REFUSED).await;
    process.end().await;
}

#[tokio::test]
async fn no_metadata_server_is_told_by_application_default_within_six_seconds() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let told = format!(
        "Unauthenticated credentials: no application default credentials: \
         GOOGLE_APPLICATION_CREDENTIALS is not set, there is no home directory to look for gcloud's \
         file in, and no metadata server of Google Cloud answers at {host}, which GCE_METADATA_HOST \
         names: run \"gcloud auth application-default login\", or set \
         GOOGLE_APPLICATION_CREDENTIALS to a key file"
    );
    let variables = [("GCE_METADATA_HOST", Path::new(&host))];
    let (answer, took) = set_up("adc", &variables).await;
    assert_eq!(answer, told);
    assert!(took < Duration::from_secs(6), "{took:?}");
    drop(silent); // now it refuses
    let (answer, took) = set_up("adc", &variables).await;
    assert_eq!(answer, told);
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn a_metadata_server_that_has_answered_before_is_waited_for() {
    let metadata = MetadataServer::start().await;
    metadata.desk.live(12);
    let host = metadata.host();
    let mut process = Process::start("adc", &[("GCE_METADATA_HOST", Path::new(&host))]);
    assert_eq!(process.tell("ready").await, "authorization: Bearer token-1");
    drop(metadata);
    process.until("look", REFUSED).await;
    process.end().await;
}

#[tokio::test]
async fn a_metadata_server_that_is_asked_for_by_name_is_waited_for() {
    let metadata = MetadataServer::start().await;
    let host = metadata.host();
    metadata.desk.answer(Reply::Cut);
    let mut process = Process::start("metadata", &[("GCE_METADATA_HOST", Path::new(&host))]);
    process.tell("look").await;
    while metadata.desk.count() < 2 {
        let answer = process.tell("look").await;
        assert!(answer.starts_with("Unavailable"), "{answer}");
    }
    metadata.desk.answer(None);
    let answer = process.tell("ready").await;
    assert!(answer.starts_with("authorization: Bearer "), "{answer}");
    process.end().await;
}

/// Set-up against a metadata server that does this, and what it says in the end.
async fn told_of_metadata_server(reply: Reply) -> (String, Duration) {
    let metadata = MetadataServer::start().await;
    metadata.desk.answer(reply);
    let host = OsString::from(metadata.host());
    set_up("metadata", &[("GCE_METADATA_HOST", Path::new(&host))]).await
}

#[tokio::test]
async fn an_endpoint_that_never_answers() {
    let (answer, took) = told_of_metadata_server(Reply::Silence).await;
    assert_eq!(
        answer,
        "Unavailable credentials: no token within 8s: the source does not answer"
    );
    assert!(took < Duration::from_secs(12), "{took:?}");
}

#[tokio::test]
async fn a_token_endpoint_that_never_answers() {
    // The port takes connections, and TLS hangs.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!(
        "https://localhost:{}/token",
        silent.local_addr().unwrap().port()
    );
    let endpoint = TokenEndpoint::start().await;
    let ca = endpoint.ca();
    let credentials = format!("json:{}", service_account(KEY, &uri));
    let (answer, took) = set_up(&credentials, &[("SSL_CERT_FILE", &ca)]).await;
    assert_eq!(
        answer,
        "Unavailable credentials: no token within 8s: the source does not answer"
    );
    assert!(took < Duration::from_secs(12), "{took:?}");
}

#[tokio::test]
async fn an_endpoint_that_fails_for_a_while() {
    for (reply, expected) in [
        (
            Reply::status(500, "down"),
            "the metadata server answered 500: it is tried again",
        ),
        (
            Reply::status(429, ""),
            "the metadata server answered 429: it is tried again",
        ),
        (
            Reply::status(400, r#"{"error": "temporarily_unavailable"}"#),
            "the metadata server answered 400: it is tried again",
        ),
        (
            Reply::ok("<html>"),
            "the metadata server answered what is no token: check that it is the right endpoint",
        ),
        (
            Reply::ok(google::token("", 3600)),
            "the metadata server answered what is no token: check that it is the right endpoint",
        ),
        (
            Reply::ok(google::token("a\nb", 3600)),
            "the metadata server answered what is no token: check that it is the right endpoint",
        ),
        (
            Reply::ok(google::token("token", 0)),
            "the metadata server answered what is no token: check that it is the right endpoint",
        ),
    ] {
        let metadata = MetadataServer::start().await;
        metadata.desk.answer(reply);
        let host = OsString::from(metadata.host());
        let variables = [("GCE_METADATA_HOST", Path::new(&host))];
        let mut process = Process::start("metadata", &variables);
        process
            .until("look", &format!("Unavailable credentials: {expected}"))
            .await;
        metadata.desk.answer(None);
        let answer = process.tell("ready").await;
        assert!(
            answer.starts_with("authorization: Bearer token-"),
            "{answer}"
        );
        process.end().await;
    }
}

#[tokio::test]
async fn an_endpoint_that_refuses_for_good() {
    for (reply, expected) in [
        (
            Reply::status(404, ""),
            "the metadata server answered 404: check that the account exists, and that this \
             machine may use it",
        ),
        (
            Reply::status(403, "no"),
            "the metadata server answered 403: check what the account may do",
        ),
        (
            Reply::status(400, r#"{"error": "invalid_scope"}"#),
            "the metadata server answered 400 invalid_scope: check the scopes that with_scopes \
             names, and that the account may have them",
        ),
    ] {
        let (answer, took) = told_of_metadata_server(reply).await;
        assert_eq!(answer, format!("Unauthenticated credentials: {expected}"));
        assert!(took < Duration::from_secs(6), "{took:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_trusted() {
    let endpoint = TokenEndpoint::start().await;
    let other = TokenEndpoint::start().await;
    let file = endpoint.key_file(KEY);
    let ca = other.ca();
    let credentials = format!("file:{}", file.display());
    let mut process = Process::start(&credentials, &[("SSL_CERT_FILE", &ca)]);
    process.tell("look").await;
    process
        .until(
            "look",
            &format!(
                "Unavailable credentials: credentials file {}: the token endpoint cannot be \
                 asked: invalid peer certificate contents: invalid peer certificate: \
                 UnknownIssuer",
                file.display()
            ),
        )
        .await;
    process.end().await;
}
