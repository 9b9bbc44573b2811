//! The interceptor before a generated client, over a real connection.

#![allow(clippy::unwrap_used)] // in the helpers, too

#[path = "support/grpc.rs"]
mod grpc;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use longrunning::{
    AuthInterceptor, CallCredentials, Credentials, Token,
    proto::{
        CancelOperationRequest, GetOperationRequest, operations_client::OperationsClient as Stub,
    },
};
use tonic::{
    Code, Request, Status,
    service::{Interceptor as _, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use self::grpc::GrpcServer;

/// A source that counts, and takes its time.
struct Counting(Arc<AtomicUsize>);

#[tonic::async_trait]
impl CallCredentials for Counting {
    async fn token(&self) -> Result<Token, Status> {
        let n = self.0.fetch_add(1, SeqCst) + 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let end = Instant::now() + Duration::from_secs(3600);
        Ok(Token::bearer(&format!("token-{n}"))?
            .and_header("x-tenant", "t")?
            .expires_at(end))
    }
}

fn channel(server: &GrpcServer) -> Channel {
    Endpoint::try_from(format!("http://{}", server.address))
        .unwrap()
        .connect_lazy()
}

fn stub(
    server: &GrpcServer,
    auth: &AuthInterceptor,
) -> Stub<InterceptedService<Channel, AuthInterceptor>> {
    Stub::with_interceptor(channel(server), auth.clone())
}

#[tokio::test]
async fn ten_thousand_calls_at_a_cold_start_share_one_token() {
    let server = GrpcServer::start().await;
    let fetches = Arc::default();
    let auth = Credentials::custom(Counting(Arc::clone(&fetches)))
        .interceptor_lazy()
        .unwrap();
    let stub = stub(&server, &auth);
    // In portions that fit the streams of one connection, all of them begun before the token is
    // there.
    let room = Arc::new(tokio::sync::Semaphore::new(100));
    let calls: Vec<_> = (0..10_000)
        .map(|_| {
            let (auth, mut stub, room) = (auth.clone(), stub.clone(), Arc::clone(&room));
            tokio::spawn(async move {
                auth.ready().await.unwrap();
                let _place = room.acquire().await.unwrap();
                stub.cancel_operation(CancelOperationRequest::default())
                    .await
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(fetches.load(SeqCst), 1);
    assert_eq!(server.seen("authorization"), vec!["Bearer token-1"; 10_000]);
    assert_eq!(server.seen("x-tenant").len(), 10_000);
}

#[tokio::test]
async fn two_clients_share_the_token_of_one_interceptor() {
    let (one, other) = (GrpcServer::start().await, GrpcServer::start().await);
    let fetches = Arc::default();
    let auth = Credentials::custom(Counting(Arc::clone(&fetches)))
        .interceptor()
        .await
        .unwrap();
    for server in [&one, &other] {
        stub(server, &auth)
            .get_operation(GetOperationRequest::default())
            .await
            .unwrap();
        assert_eq!(server.seen("authorization"), ["Bearer token-1"]);
    }
    assert_eq!(fetches.load(SeqCst), 1);
}

#[tokio::test]
async fn a_rejection_of_the_server_is_the_callers_and_brings_a_new_token() {
    let server = GrpcServer::start().await;
    let fetches = Arc::default();
    let auth = Credentials::custom(Counting(Arc::clone(&fetches)))
        .interceptor()
        .await
        .unwrap();
    let mut stub = stub(&server, &auth);
    server.refuse(true);
    let request = GetOperationRequest::default();
    let status = stub.get_operation(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(status.message(), "");
    auth.mark_rejected();
    server.refuse(false);
    let start = Instant::now();
    while fetches.load(SeqCst) < 2 {
        stub.get_operation(request.clone()).await.unwrap(); // nobody waits for it
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        start.elapsed() < Duration::from_secs(12),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn without_a_token_a_call_is_refused_and_nothing_is_sent() {
    let server = GrpcServer::start().await;
    let auth = Credentials::custom(Counting(Arc::default()))
        .interceptor_lazy()
        .unwrap();
    let request = GetOperationRequest::default();
    let status = stub(&server, &auth)
        .get_operation(request)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        status.message(),
        "credentials: the first token has not been fetched yet"
    );
    assert!(server.seen("content-type").is_empty());
}

/// The headers that these credentials put on a call. No runtime is needed for those that are never
/// renewed.
fn headers(credentials: Credentials, request: Request<()>) -> Vec<(String, String, bool)> {
    let mut auth = futures_executor::block_on(credentials.interceptor()).unwrap();
    let request = auth.call(request).unwrap();
    let mut headers: Vec<_> = request
        .metadata()
        .clone()
        .into_headers()
        .iter()
        .map(|(name, value)| {
            let text = value.to_str().unwrap().to_owned();
            (name.to_string(), text, value.is_sensitive())
        })
        .collect();
    headers.sort();
    headers
}

fn secret(name: &str, value: &str) -> (String, String, bool) {
    (name.to_owned(), value.to_owned(), true)
}

#[test]
fn fixed_credentials_need_no_runtime() {
    let request = || Request::new(());
    assert!(Credentials::none().is_none());
    assert_eq!(headers(Credentials::none(), request()), []);
    assert_eq!(
        headers(Credentials::api_key("key"), request()),
        [secret("x-goog-api-key", "key")]
    );
    let bearer = Credentials::bearer_token("token");
    assert!(!bearer.is_none());
    assert_eq!(
        headers(bearer.clone(), request()),
        [secret("authorization", "Bearer token")]
    );
    assert_eq!(
        headers(bearer.quota_project("project"), request()),
        [
            secret("authorization", "Bearer token"),
            secret("x-goog-user-project", "project"),
        ]
    );
}

#[test]
fn a_call_keeps_its_own_quota_project_but_not_its_own_authorization() {
    let mut request = Request::new(());
    let metadata = request.metadata_mut();
    metadata.insert("x-goog-user-project", "of-the-call".parse().unwrap());
    metadata.insert("authorization", "of-the-call".parse().unwrap());
    let credentials = Credentials::bearer_token("token").quota_project("project");
    assert_eq!(
        headers(credentials, request),
        [
            secret("authorization", "Bearer token"),
            (
                "x-goog-user-project".to_owned(),
                "of-the-call".to_owned(),
                false
            ),
        ]
    );
}

/// A source whose tokens have a quota project.
struct WithQuotaProject;

#[tonic::async_trait]
impl CallCredentials for WithQuotaProject {
    async fn token(&self) -> Result<Token, Status> {
        Token::bearer("token")?.and_header("x-goog-user-project", "of-the-token")
    }
}

#[tokio::test]
async fn the_quota_project_of_a_call_precedes_that_of_the_client_and_that_of_the_token() {
    let credentials = Credentials::custom(WithQuotaProject);
    let table = [
        (None, None, "of-the-token"),
        (None, Some("of-the-client"), "of-the-client"),
        (Some("of-the-call"), None, "of-the-call"),
        (Some("of-the-call"), Some("of-the-client"), "of-the-call"),
    ];
    for (call, client, expected) in table {
        let mut credentials = credentials.clone();
        if let Some(project) = client {
            credentials = credentials.quota_project(project);
        }
        let mut request = Request::new(());
        if let Some(project) = call {
            let project = project.parse().unwrap();
            request
                .metadata_mut()
                .insert("x-goog-user-project", project);
        }
        let mut auth = credentials.interceptor().await.unwrap();
        let request = auth.call(request).unwrap();
        let projects = request.metadata().get_all("x-goog-user-project");
        assert_eq!(projects.iter().collect::<Vec<_>>(), [expected]);
    }
}

#[test]
fn what_cannot_stand_in_a_header_is_refused_at_once() {
    let header = |name: &str| {
        format!(
            "credentials: the value for the header {name:?} has characters that no header can \
             hold: look for a line break or a space at its end"
        )
    };
    for (credentials, expected) in [
        (
            Credentials::api_key(""),
            "credentials: the API key is empty",
        ),
        (
            Credentials::bearer_token(""),
            "credentials: the access token is empty",
        ),
        (Credentials::api_key("a\n"), &header("x-goog-api-key")),
        (
            Credentials::bearer_token("a\r\nb"),
            &header("authorization"),
        ),
        (Credentials::bearer_token("a "), &header("authorization")),
        (Credentials::bearer_token("ä"), &header("authorization")),
        (
            Credentials::bearer_token("a").quota_project("p\n"),
            &header("x-goog-user-project"),
        ),
    ] {
        let status = futures_executor::block_on(credentials.interceptor()).unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(status.message(), expected);
    }
    for name in ["", "a,b", "a-bin", ":authority"] {
        let status = Token::header(name, "value").unwrap_err();
        assert_eq!(
            status.message(),
            format!("credentials: {name:?} is not the name of a text header")
        );
    }
    for name in [
        "te",
        "host",
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
        "content-type",
        "Content-Length",
        "grpc-timeout",
        "grpc-encoding",
    ] {
        let status = Token::header(name, "value").unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(
            status.message(),
            format!(
                "credentials: the header {name:?} is reserved by HTTP/2 or gRPC: use \
                 \"authorization\" or a header that the service defines"
            )
        );
    }
}

#[cfg(feature = "google-authz")]
#[tokio::test]
async fn invalid_scopes_are_refused_immediately() {
    for (scopes, expected) in [
        (
            vec![],
            "credentials: the list of scopes is empty: name at least one",
        ),
        (
            vec!["a b"],
            "credentials: \"a b\" is not a scope: give one such as \
             \"https://www.googleapis.com/auth/cloud-platform\"",
        ),
    ] {
        let credentials = Credentials::application_default().scopes(scopes);
        let status = credentials.interceptor_lazy().unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(status.message(), expected);
    }
}

#[cfg(not(any(feature = "google-authz", feature = "google-cloud-auth")))]
#[tokio::test]
async fn googles_sources_name_the_feature_that_they_need() {
    for credentials in [
        Credentials::application_default(),
        Credentials::file("key.json"),
        Credentials::json("{}"),
        Credentials::metadata_server(),
    ] {
        let status = credentials.interceptor().await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(
            status.message(),
            "credentials: Google's credentials need the feature google-authz or google-cloud-auth \
             of the crate longrunning"
        );
    }
}

#[test]
fn a_secret_that_stands_where_the_name_should_is_not_shown() {
    for secret in [
        "Bearer ya29.secret",
        "a-secret-without-spaces-but-@-and-long",
    ] {
        let status = Token::header(secret, "authorization").unwrap_err();
        assert_eq!(
            status.message(),
            "credentials: the first argument is not the name of a text header: give the name, and \
             then the value"
        );
    }
}

#[test]
fn a_bearer_token_that_includes_its_scheme_is_refused() {
    for token in ["Bearer ya29.c", "bearer ya29.c"] {
        let status = Token::bearer(token).unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(
            status.message(),
            "credentials: the access token begins with \"Bearer\", which is added to it: give the token \
             alone"
        );
    }
    assert!(Token::bearer("bearerya29.c").is_ok());
    assert!(Token::bearer("b\u{e4}rer").is_err());
}
