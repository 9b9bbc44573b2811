//! The feature `metadata-server`, without the crates that the other features use.
#![cfg(all(
    feature = "metadata-server",
    not(any(feature = "google-authz", feature = "google-cloud-auth"))
))]
#![allow(clippy::unwrap_used)] // in the helpers, too

#[path = "support/child.rs"]
mod child;
#[path = "support/google.rs"]
mod google;
#[path = "support/http.rs"]
mod http;
#[path = "support/trace.rs"]
mod trace;

use std::path::Path;

use longrunning::Credentials;
use tonic::Code;

use self::{
    child::Process,
    google::{KEY, MetadataServer, service_account},
};

/// Runs in the child processes that the tests start.
#[test]
fn child() {
    child::obey();
}

#[tokio::test]
async fn the_metadata_server_is_used() {
    let metadata = MetadataServer::start().await;
    let host = metadata.host();
    let variables = [("GCE_METADATA_HOST", Path::new(&host))];
    for kind in ["adc", "metadata"] {
        let mut process = Process::start(kind, &variables);
        let token = process.tell("ready").await;
        assert!(token.starts_with("authorization: Bearer token-"), "{token}");
        process.end().await;
    }
    assert_eq!(metadata.server.connections(), 2);
}

#[tokio::test]
async fn the_error_for_a_file_names_the_feature_that_it_needs() {
    let mut file = service_account(KEY, "https://localhost:1/token");
    for (kind, feature) in [
        ("service_account", "google-authz or google-cloud-auth"),
        ("authorized_user", "google-authz or google-cloud-auth"),
        ("external_account", "google-cloud-auth"),
    ] {
        file["type"] = kind.into();
        let credentials = Credentials::json(file.to_string());
        let status = credentials.interceptor().await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        let expected = format!(
            "credentials: credentials JSON: field \"type\": \"{kind}\" needs the feature {feature} of the crate longrunning"
        );
        assert_eq!(status.message(), expected);
    }
}
