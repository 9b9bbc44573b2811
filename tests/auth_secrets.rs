//! No secret gets out. Marked ones are planted in every source and every failure; then all is
//! searched that a process says: `Debug`, `Display`, statuses, and what every crate logs at TRACE.
#![cfg(feature = "google-authz")]
#![allow(clippy::unwrap_used)] // in the helpers, too

#[path = "support/child.rs"]
mod child;
#[path = "support/google.rs"]
mod google;
#[path = "support/grpc.rs"]
mod grpc;
#[path = "support/http.rs"]
mod http;
#[path = "support/trace.rs"]
mod trace;

use std::path::Path;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::json;

use self::{
    child::Process,
    google::{KEY, MetadataServer, TokenEndpoint, service_account, token},
    grpc::GrpcServer,
    http::Reply,
};

/// What every planted secret contains.
const SECRET: &str = "PLANTED-SECRET";

/// Runs in the child processes that the tests start.
#[test]
fn child() {
    child::obey();
}

/// Makes a call with these credentials, and searches all that the process says.
async fn search(credentials: &str, variables: &[(&str, &Path)], expected: &str) {
    let server = GrpcServer::start().await;
    let mut process = Process::start(credentials, variables);
    let order = format!("call {}", server.address);
    let answer = process.tell(&order).await;
    assert!(answer.starts_with(expected), "{answer}");
    let said = process.end().await;
    if expected == "ok" {
        // Else nothing was sent that a crate could have logged.
        assert!(said.contains("TRACE h2::"), "the log is not complete");
    }
    let key = KEY.lines().nth(5).unwrap();
    // As it is, or as bytes that a log shows in another form.
    let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{:?}", SECRET.as_bytes());
    let base64 = BASE64_STANDARD.encode(SECRET);
    for secret in [
        SECRET,
        key,
        &hex,
        list.trim_matches(['[', ']']),
        &base64[..16],
    ] {
        if let Some(place) = said.find(secret) {
            let context = &said.as_bytes()[place.saturating_sub(300)..];
            let context = String::from_utf8_lossy(&context[..context.len().min(600)]);
            panic!("{credentials:.20}: a secret got out: {context}");
        }
    }
}

#[tokio::test]
async fn of_fixed_credentials() {
    search(&format!("api_key:{SECRET}"), &[], "ok").await;
    search(&format!("bearer:{SECRET}"), &[], "ok").await;
    // In a shell, a file's line break comes with its text.
    search(&format!("api_key:{SECRET}\u{1}"), &[], "Unauthenticated").await;
    search(&format!("bearer:{SECRET}\u{1}"), &[], "Unauthenticated").await;
}

#[tokio::test]
async fn of_a_service_account_that_works() {
    let endpoint = TokenEndpoint::start().await;
    endpoint.desk.answer(Reply::ok(token(SECRET, 3600)));
    let credentials = format!("json:{}", service_account(KEY, &endpoint.uri()));
    search(&credentials, &[("SSL_CERT_FILE", &endpoint.ca())], "ok").await;
}

#[tokio::test]
async fn of_a_token_endpoint_that_tells_all_it_knows() {
    let quoting = json!({"error": SECRET, "error_description": format!("{SECRET} {KEY}")});
    let grant = json!({"error": "invalid_grant", "error_description": format!("{SECRET} {KEY}")});
    for (reply, expected) in [
        (Reply::status(400, quoting.to_string()), "Unauthenticated"),
        (Reply::status(400, grant.to_string()), "Unauthenticated"),
        (Reply::status(401, SECRET), "Unauthenticated"),
        (
            Reply::Answer(403, "x-secret: PLANTED-SECRET\r\n", SECRET.to_owned()),
            "Unauthenticated",
        ),
    ] {
        let endpoint = TokenEndpoint::start().await;
        endpoint.desk.answer(reply);
        let credentials = format!("json:{}", service_account(KEY, &endpoint.uri()));
        let ca = endpoint.ca();
        search(&credentials, &[("SSL_CERT_FILE", &ca)], expected).await;
    }
}

#[tokio::test]
async fn of_answers_that_are_no_token() {
    let number = json!({"access_token": SECRET, "expires_in": SECRET, "token_type": "Bearer"});
    for reply in [
        Reply::ok(token(SECRET, 0)),
        Reply::ok(token(&format!("{SECRET}\n"), 3600)),
        Reply::ok(number.to_string()),
        Reply::ok(format!("\"{SECRET}\"")),
        Reply::ok(SECRET),
        Reply::Answer(500, "x-secret: PLANTED-SECRET\r\n", SECRET.to_owned()),
    ] {
        let metadata = MetadataServer::start().await;
        metadata.desk.answer(reply);
        let host = metadata.host();
        let mut process = Process::start("metadata", &[("GCE_METADATA_HOST", Path::new(&host))]);
        process.tell("look").await;
        while metadata.desk.count() < 3 {
            let answer = process.tell("look").await;
            assert!(answer.starts_with("Unavailable"), "{answer}");
        }
        let said = process.end().await;
        assert!(!said.contains(SECRET), "{said}");
    }
}

#[tokio::test]
async fn of_the_metadata_server() {
    let metadata = MetadataServer::start().await;
    metadata.desk.answer(Reply::ok(token(SECRET, 3600)));
    let host = metadata.host();
    search("adc", &[("GCE_METADATA_HOST", Path::new(&host))], "ok").await;
}

#[tokio::test]
async fn of_files_that_are_no_good() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.json");
    let account = |field: &str, value: serde_json::Value| {
        let mut account = service_account(KEY, "https://localhost:1/token");
        account[field] = value;
        account.to_string()
    };
    let user = |value: serde_json::Value| {
        json!({
            "type": "authorized_user",
            "client_id": "id",
            "client_secret": SECRET,
            "refresh_token": value,
        })
        .to_string()
    };
    let whole = account("private_key", json!(format!("{KEY}{SECRET}")));
    for text in [
        SECRET.to_owned(),
        format!("\"{SECRET}\""),
        whole[..whole.len() - 10].to_owned(),
        account("type", json!(SECRET)),
        account("type", json!({ "x": SECRET })),
        account("private_key", json!(SECRET)),
        account("private_key", json!([SECRET])),
        account("private_key", json!(KEY.replace("MII", SECRET))),
        account("token_uri", json!(format!("http://{SECRET}"))),
        account("quota_project_id", json!(format!("{SECRET}\n"))),
        user(json!([SECRET])),
        user(json!("")),
    ] {
        std::fs::write(&path, text).unwrap();
        let none = [("SSL_CERT_FILE", Path::new("/nonexistent.pem"))];
        let credentials = format!("file:{}", path.display());
        search(&credentials, &none, "Unauthenticated").await;
    }
    // A user's file that is whole, on a machine without certificates.
    let credentials = format!("json:{}", user(json!(SECRET)));
    let none = [("SSL_CERT_FILE", Path::new("/nonexistent.pem"))];
    search(&credentials, &none, "Unauthenticated").await;
}

#[tokio::test]
async fn of_a_text_that_is_taken_for_a_path() {
    let mut account = service_account(KEY, "https://localhost:1/token");
    account["client_id"] = SECRET.into();
    let text = account.to_string();
    search(&format!("file:{text}"), &[], "Unauthenticated").await;
    let variable = ("GOOGLE_APPLICATION_CREDENTIALS", Path::new(&text));
    search("adc", &[variable], "Unauthenticated").await;
}

#[tokio::test]
async fn of_a_token_that_is_taken_for_a_path() {
    let random = format!("c2VjcmV0{SECRET}LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldC1zZW");
    assert!(random.len() >= 60);
    for token in [
        format!("ya29.{SECRET}"),
        format!("Bearer ya29.{SECRET}"),
        format!("1//{SECRET}"),
        format!("eyJhbGciOiJSUzI1NiJ9.eyJ{SECRET}.c2ln"),
        format!("/run/secrets/eyJhbGciOiJSUzI1NiJ9.{SECRET}"),
        format!("AIza{SECRET}"),
        random,
    ] {
        search(&format!("file:{token}"), &[], "Unauthenticated").await;
        let variable = ("GOOGLE_APPLICATION_CREDENTIALS", Path::new(&token));
        search("adc", &[variable], "Unauthenticated").await;
    }
}
