//! Metadata servers and token endpoints that fail: the message names the endpoint and the remedy, and nothing
//! hangs or panics.
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

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    time::{Duration, Instant},
};

use tokio::{net::TcpSocket, time::sleep};

use self::{
    child::{Process, set_up},
    google::{KEY, MetadataServer, TokenEndpoint, service_account},
    http::{Reply, Server},
};

/// Runs in the child processes that the tests start.
#[test]
fn child() {
    child::obey();
}

#[tokio::test]
async fn a_metadata_host_that_is_no_host() {
    for host in ["http://127.0.0.1", "a b", ":80", "a/b", "*"] {
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
async fn an_empty_metadata_host_counts_as_not_set() {
    let variables = [
        ("GCE_METADATA_HOST", Path::new("")),
        ("NO_GCE_CHECK", Path::new("true")),
    ];
    let (answer, _) = set_up("metadata", &variables).await;
    assert_eq!(
        answer,
        "Unauthenticated credentials: NO_GCE_CHECK says that there is no metadata server of Google Cloud"
    );
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

/// Takes a port that refuses connections until the socket listens.
fn refusing_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn refused(host: impl std::fmt::Display) -> String {
    format!(
        "Unavailable credentials: the metadata server {host} cannot be reached: Connection refused (os error \
         111)"
    )
}

fn silent(host: impl std::fmt::Display) -> String {
    format!(
        "Unavailable credentials: the metadata server {host} did not answer within 8s: the fetch will be \
         retried"
    )
}

#[tokio::test]
async fn an_endpoint_that_refuses_connections() {
    let (_socket, address) = refusing_port();
    let host = address.to_string();
    let mut process = Process::start("metadata", &[("GCE_METADATA_HOST", Path::new(&host))]);
    process.tell("look").await;
    process.until("look", &refused(address)).await;
    process.end().await;
}

#[tokio::test]
async fn a_named_metadata_server_is_required_by_application_default() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listening = listener.local_addr().unwrap();
    let (_socket, refusing) = refusing_port();
    for (address, expected) in [
        (listening, silent(listening)),
        (refusing, refused(refusing)),
    ] {
        let host = address.to_string();
        let variables = [
            ("GCE_METADATA_HOST", Path::new(&host)),
            ("NO_GCE_CHECK", Path::new("true")), // less specific
        ];
        let (answer, took) = set_up("adc", &variables).await;
        assert_eq!(answer, expected);
        assert!(took < Duration::from_secs(20), "{took:?}");
    }
}

#[tokio::test]
async fn a_metadata_server_that_starts_late_is_waited_for() {
    let (socket, address) = refusing_port();
    let host = address.to_string();
    let mut process = Process::start("adc", &[("GCE_METADATA_HOST", Path::new(&host))]);
    let start = async {
        sleep(Duration::from_millis(1500)).await;
        MetadataServer::start_on(socket.listen(16).unwrap())
    };
    let (answer, metadata) = tokio::join!(process.tell("new"), start);
    assert_eq!(answer, "authorization: Bearer token-1");
    assert_eq!(metadata.desk.count(), 1);
    // It is logged when a fetch fails.
    let log = process.end().await;
    assert!(!log.contains("cannot be reached"), "{log}");
}

#[tokio::test]
async fn a_metadata_server_at_localhost() {
    let metadata = MetadataServer::start().await;
    let port = metadata.server.address.port();
    for (n, name) in ["localhost", "localhost.", "LOCALHOST"].iter().enumerate() {
        let host = format!("{name}:{port}");
        let (answer, _) = set_up("metadata", &[("GCE_METADATA_HOST", Path::new(&host))]).await;
        assert_eq!(answer, format!("authorization: Bearer token-{}", n + 1));
    }
}

#[tokio::test]
async fn a_metadata_server_that_has_answered_before_is_waited_for() {
    let metadata = MetadataServer::start().await;
    metadata.desk.live(3);
    let host = metadata.host();
    let mut process = Process::start("adc", &[("GCE_METADATA_HOST", Path::new(&host))]);
    assert_eq!(process.tell("ready").await, "authorization: Bearer token-1");
    // It refuses connections from now on.
    drop(metadata);
    process.until("look", &refused(host)).await;
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

/// Returns the outcome of a set-up with a metadata server that answers this, and how long it took. `HOST` stands
/// for its address.
async fn set_up_with_metadata_server(reply: Reply) -> (String, Duration) {
    let metadata = MetadataServer::start().await;
    metadata.desk.answer(reply);
    let host = metadata.host();
    let variables = [("GCE_METADATA_HOST", Path::new(&host))];
    let (answer, took) = set_up("metadata", &variables).await;
    (answer.replace(&host, "HOST"), took)
}

#[tokio::test]
async fn an_endpoint_that_never_answers() {
    let (answer, took) = set_up_with_metadata_server(Reply::Silence).await;
    assert_eq!(answer, silent("HOST"));
    assert!(took < Duration::from_secs(12), "{took:?}");
}

#[tokio::test]
async fn a_token_endpoint_that_never_answers() {
    // The port takes connections, and TLS hangs.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let uri = format!("https://localhost:{port}/token");
    let endpoint = TokenEndpoint::start().await;
    let ca = endpoint.ca();
    let credentials = format!("json:{}", service_account(KEY, &uri));
    let (answer, took) = set_up(&credentials, &[("SSL_CERT_FILE", &ca)]).await;
    assert_eq!(
        answer,
        format!(
            "Unavailable credentials: credentials JSON: the token endpoint localhost:{port} did not answer \
             within 8s: the fetch will be retried"
        )
    );
    assert!(took < Duration::from_secs(12), "{took:?}");
}

#[tokio::test]
async fn an_endpoint_that_fails_for_a_while() {
    for (reply, expected) in [
        (
            Reply::status(500, "down"),
            "answered 500: the fetch will be retried",
        ),
        (
            Reply::status(429, ""),
            "answered 429: the fetch will be retried",
        ),
        (
            Reply::status(400, r#"{"error": "temporarily_unavailable"}"#),
            "answered 400: the fetch will be retried",
        ),
        (
            Reply::ok("<html>"),
            "returned no token: check that it is the right endpoint",
        ),
        (
            Reply::ok(google::token("", 3600)),
            "returned no token: check that it is the right endpoint",
        ),
        (
            Reply::ok(google::token("a\nb", 3600)),
            "returned no token: check that it is the right endpoint",
        ),
        (
            Reply::ok(google::token("token", 0)),
            "returned no token: check that it is the right endpoint",
        ),
    ] {
        let metadata = MetadataServer::start().await;
        metadata.desk.answer(reply);
        let host = metadata.host();
        let variables = [("GCE_METADATA_HOST", Path::new(&host))];
        let mut process = Process::start("metadata", &variables);
        let expected = format!("Unavailable credentials: the metadata server {host} {expected}");
        process.until("look", &expected).await;
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
            "answered 404: check that the account exists, and that this \
             machine may use it",
        ),
        (
            Reply::status(403, "no"),
            "answered 403: check what the account may do",
        ),
        (
            Reply::status(400, r#"{"error": "invalid_scope"}"#),
            "answered 400 invalid_scope: check the scopes set with \
             `Credentials::scopes`, and that the account is allowed to use them",
        ),
    ] {
        let (answer, took) = set_up_with_metadata_server(reply).await;
        assert_eq!(
            answer,
            format!("Unauthenticated credentials: the metadata server HOST {expected}")
        );
        assert!(took < Duration::from_secs(6), "{took:?}");
    }
}

#[tokio::test]
async fn a_redirect_of_the_metadata_server_is_not_followed() {
    let other = Server::start(None, |_| Reply::ok(google::token("other", 3600))).await;
    let location = format!("location: http://{}/token\r\n", other.address).leak();
    for status in [301, 302, 303, 307, 308] {
        let reply = Reply::Answer(status, location, google::token("redirect", 3600));
        let (answer, _) = set_up_with_metadata_server(reply).await;
        let expected = format!(
            "Unauthenticated credentials: the metadata server HOST answered {status}, a redirect, which is not \
             followed: "
        );
        assert!(answer.starts_with(&expected), "{answer}");
    }
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn a_response_of_more_than_64_kib_ends_the_fetch() {
    let metadata = MetadataServer::start().await;
    let padded = |length| {
        let token = google::token("padded", 3600);
        let padding = " ".repeat(length - token.len());
        token + &padding
    };
    metadata.desk.answer(Reply::ok(padded(64 * 1024 + 1)));
    let host = metadata.host();
    let mut process = Process::start("metadata", &[("GCE_METADATA_HOST", Path::new(&host))]);
    let expected = format!(
        "Unavailable credentials: the metadata server {host} sent no usable response: length limit exceeded"
    );
    process.until("look", &expected).await;
    metadata.desk.answer(Reply::ok(padded(64 * 1024)));
    let answer = process.tell("ready").await;
    assert_eq!(answer, "authorization: Bearer padded");
    process.end().await;
}

#[tokio::test]
async fn a_metadata_server_that_becomes_silent() {
    let metadata = MetadataServer::start().await;
    let life = Duration::from_secs(5);
    metadata.desk.live(life.as_secs());
    let host = metadata.host();
    let mut process = Process::start("metadata", &[("GCE_METADATA_HOST", Path::new(&host))]);
    let start = Instant::now();
    assert_eq!(process.tell("ready").await, "authorization: Bearer token-1");
    let fetched = Instant::now();
    metadata.desk.answer(Reply::Silence);
    let answer = loop {
        let asked = Instant::now();
        let answer = process.tell("look").await;
        if answer != "authorization: Bearer token-1" {
            break answer;
        }
        assert!(asked < fetched + life, "{:?}", asked - fetched);
        sleep(Duration::from_millis(50)).await;
    };
    assert!(start.elapsed() >= life, "{:?}", start.elapsed());
    assert_eq!(
        answer,
        "Unavailable credentials: the token has expired and is being renewed"
    );
    process.until("look", &silent(host)).await;
    metadata.desk.answer(None);
    let answer = process.tell("ready").await;
    assert!(
        answer.starts_with("authorization: Bearer token-"),
        "{answer}"
    );
    process.end().await;
}

#[tokio::test]
async fn the_delay_that_the_metadata_server_asks_for_is_kept() {
    let metadata = MetadataServer::start().await;
    let reply = Reply::Answer(429, "retry-after: 3\r\n", String::new());
    metadata.desk.answer(reply);
    let host = metadata.host();
    let mut process = Process::start("metadata", &[("GCE_METADATA_HOST", Path::new(&host))]);
    let expected = format!(
        "Unavailable credentials: the metadata server {host} answered 429: the fetch will be retried"
    );
    process.until("look", &expected).await;
    metadata.desk.answer(None);
    let answer = process.tell("ready").await;
    assert_eq!(answer, "authorization: Bearer token-2");
    let times = metadata.desk.times.lock().unwrap().clone();
    let delay = times[1] - times[0];
    assert!(delay >= Duration::from_secs(3), "{delay:?}");
    assert!(delay < Duration::from_secs(20), "{delay:?}");
    process.end().await;
}

#[tokio::test]
async fn a_wrong_token_endpoint_is_named_rather_than_the_account() {
    let endpoint = TokenEndpoint::start().await;
    let file = endpoint.key_file(KEY);
    let port = endpoint.server.address.port();
    let ca = endpoint.ca();
    let other = Server::start(None, |_| Reply::ok(google::token("other", 3600))).await;
    let location = format!("location: http://{}/token\r\n", other.address).leak();
    let remedy = "check the field \"token_uri\", and any proxy on the way";
    for (status, expected) in [
        (
            302,
            format!(", a redirect, which is not followed: {remedy}"),
        ),
        (404, format!(": {remedy}")),
        (405, format!(": {remedy}")),
        (
            407,
            ": a proxy in front of it requires authentication: let it pass".to_owned(),
        ),
    ] {
        let body = google::token("wrong", 3600);
        endpoint.desk.answer(Reply::Answer(status, location, body));
        let credentials = format!("file:{}", file.display());
        let (answer, _) = set_up(&credentials, &[("SSL_CERT_FILE", &ca)]).await;
        assert_eq!(
            answer,
            format!(
                "Unauthenticated credentials: credentials file {}: the token endpoint localhost:{port} \
                 answered {status}{expected}",
                file.display()
            )
        );
        assert!(!answer.contains("account"), "{answer}");
    }
    assert_eq!(other.connections(), 0);
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
                "Unavailable credentials: credentials file {}: the token endpoint localhost:{} cannot be \
                 reached: invalid peer certificate contents: invalid peer certificate: UnknownIssuer",
                file.display(),
                endpoint.server.address.port()
            ),
        )
        .await;
    process.end().await;
}
