//! The client shows its credentials, waits for them, and has them renewed.

use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use longrunning::{
    CallCredentials, CallStatusExt as _, Credentials, Delivery, OperationsClient, Origin, Token,
    emulator::{Call, Emulator, Method},
    proto::GetOperationRequest,
};
use tonic::{Code, IntoRequest as _, Request, Status, body::Body};
use tower::service_fn;

const NAME: &str = "operations/1";

async fn emulator() -> Emulator {
    let emulator = Emulator::start().await.expect("a free port");
    emulator.start_operation(NAME).expect("a new name");
    emulator
}

fn header<'a>(call: &'a Call, name: &str) -> &'a str {
    let value = call
        .metadata()
        .get(name)
        .unwrap_or_else(|| panic!("no {name}: {call:?}"));
    value.to_str().expect("ASCII")
}

/// A source that counts its fetches. Its tokens are `t1`, `t2` and so on.
#[derive(Clone, Default)]
struct Counting {
    fetches: Arc<AtomicUsize>,
    takes: Duration,
}

#[tonic::async_trait]
impl CallCredentials for Counting {
    async fn token(&self) -> Result<Token, Status> {
        let fetch = self.fetches.fetch_add(1, Ordering::Relaxed) + 1;
        tokio::time::sleep(self.takes).await;
        Token::bearer(&format!("t{fetch}"))
    }
}

/// A source that asks a server for its tokens.
struct Remote(OperationsClient);

#[tonic::async_trait]
impl CallCredentials for Remote {
    async fn token(&self) -> Result<Token, Status> {
        self.0.get_operation("tokens/1").await?;
        Token::bearer("t")
    }
}

/// A source that fails.
struct Failing(Status);

#[tonic::async_trait]
impl CallCredentials for Failing {
    async fn token(&self) -> Result<Token, Status> {
        Err(self.0.clone())
    }
}

#[tokio::test]
async fn every_call_shows_the_token_and_the_quota_project() {
    let emulator = emulator().await;
    let credentials = Credentials::bearer_token("secret").quota_project("payer");
    let client = OperationsClient::builder(emulator.endpoint()).credentials(credentials);
    let client = client.connect().await.expect("it is there");
    client.cancel_operation(NAME).await.expect("accepted");
    client.get_operation(NAME).await.expect("known");
    client.wait_operation(NAME).await.expect("done");
    client.list_operations("operations").await.expect("a page");
    client.delete_operation(NAME).await.expect("known");
    let calls = emulator.calls();
    assert_eq!(calls.len(), 5);
    for call in &calls {
        assert_eq!(header(call, "authorization"), "Bearer secret");
        assert_eq!(header(call, "x-goog-user-project"), "payer");
        let values = call.metadata().get_all("authorization").iter().count();
        assert_eq!(values, 1);
    }
}

#[tokio::test]
async fn an_api_key_is_sent_without_an_authorization_header() {
    let emulator = emulator().await;
    let client = OperationsClient::builder(emulator.endpoint())
        .credentials(Credentials::api_key("key"))
        .connect_lazy()
        .expect("a URL");
    client.get_operation(NAME).await.expect("known");
    let call = &emulator.calls()[0];
    assert_eq!(header(call, "x-goog-api-key"), "key");
    assert!(!call.metadata().contains_key("authorization"), "{call:?}");
}

#[tokio::test]
async fn the_same_interceptor_serves_a_stack_of_ones_own() {
    let emulator = emulator().await;
    let source = Counting::default();
    let interceptor = Credentials::custom(source.clone())
        .interceptor()
        .await
        .expect("a token");
    let own = OperationsClient::new(emulator.service()).auth(interceptor.clone());
    own.get_operation(NAME).await.expect("known");
    let raw = longrunning::proto::operations_client::OperationsClient::with_interceptor(
        emulator.service(),
        interceptor,
    );
    raw.clone().get_operation(NAME).await.expect("known");
    for call in emulator.calls() {
        assert_eq!(header(&call, "authorization"), "Bearer t1");
    }
    assert_eq!(source.fetches.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_calls_at_a_cold_start_make_one_token_request() {
    let emulator = emulator().await;
    let source = Counting {
        takes: Duration::from_millis(300),
        ..Counting::default()
    };
    let client = OperationsClient::builder(emulator.endpoint())
        .credentials(Credentials::custom(source.clone()))
        .timeout(Duration::from_secs(60))
        .connect_lazy()
        .expect("a URL");
    let calls: Vec<_> = (0..10_000)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get_operation(NAME).await })
        })
        .collect();
    for call in calls {
        call.await.expect("no panic").expect("known");
    }
    assert_eq!(source.fetches.load(Ordering::Relaxed), 1);
    assert_eq!(emulator.calls().len(), 10_000);
    assert!(
        emulator
            .calls()
            .iter()
            .all(|call| header(call, "authorization") == "Bearer t1")
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_token_tells_why_when_its_time_is_up() {
    let emulator = emulator().await;
    let failing = Credentials::custom(Failing(Status::unavailable("the vault is shut")));
    let interceptor = failing.interceptor_lazy().expect("a runtime");
    let client = OperationsClient::new(emulator.service())
        .auth(interceptor)
        .timeout(Duration::from_secs(3));
    let status = client.get_operation(NAME).await.expect_err("no token");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::Unavailable, Some(Origin::Client))
    );
    assert!(status.message().contains("the vault is shut"), "{status}");

    struct Silent;
    #[tonic::async_trait]
    impl CallCredentials for Silent {
        async fn token(&self) -> Result<Token, Status> {
            pending().await
        }
    }
    let silent = Credentials::custom(Silent)
        .interceptor_lazy()
        .expect("a runtime");
    let client = OperationsClient::new(emulator.service())
        .auth(silent)
        .timeout(Duration::from_secs(3));
    let status = client.get_operation(NAME).await.expect_err("no token");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::DeadlineExceeded, Some(Origin::Client))
    );
    assert_eq!(
        status.message(),
        "no answer to GetOperation within 3s: waited 3s for a token; not sent"
    );
    assert_eq!(emulator.calls().len(), 0);
}

#[tokio::test]
async fn what_a_person_has_to_mend_fails_the_call_at_once() {
    let emulator = emulator().await;
    let failing = Credentials::custom(Failing(Status::unauthenticated("the key is revoked")));
    let interceptor = failing.interceptor_lazy().expect("a runtime");
    // No deadline: it would hang if it waited.
    let client = OperationsClient::new(emulator.service()).auth(interceptor);
    let status = client.get_operation(NAME).await.expect_err("no token");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::Unauthenticated, Some(Origin::Client))
    );
    assert!(status.message().contains("the key is revoked"), "{status}");
    assert_eq!(emulator.calls().len(), 0);
}

#[tokio::test]
async fn a_refused_token_is_fetched_anew_and_the_caller_gets_the_servers_word() {
    let emulator = emulator().await;
    emulator.require(|call| match header(call, "authorization") {
        "Bearer t1" => Err(Status::unauthenticated("t1 is stale")),
        _ => Ok(()),
    });
    let source = Counting::default();
    let client = OperationsClient::builder(emulator.endpoint())
        .credentials(Credentials::custom(source.clone()))
        .connect()
        .await
        .expect("it is there");
    let status = client.get_operation(NAME).await.expect_err("refused");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::Unauthenticated, Some(Origin::Server))
    );
    assert_eq!(status.message(), "t1 is stale");
    // The refusal brings the second fetch within 10 seconds.
    let renewed = async {
        while client.get_operation(NAME).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), renewed)
        .await
        .expect("a new token");
    assert_eq!(source.fetches.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_deadline_waits_ten_seconds_for_a_token() {
    let emulator = emulator().await;
    let failing = Credentials::custom(Failing(Status::unavailable("the vault is shut")));
    let interceptor = failing.interceptor_lazy().expect("a runtime");
    let client = OperationsClient::new(emulator.service()).auth(interceptor);
    let begun = tokio::time::Instant::now();
    let status = client.get_operation(NAME).await.expect_err("no token");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("the vault is shut"), "{status}");
    assert_eq!(begun.elapsed().as_secs(), 10);
}

#[tokio::test]
async fn a_callers_own_authorization_stays() {
    let emulator = emulator().await;
    let client = OperationsClient::builder(emulator.endpoint())
        .credentials(Credentials::bearer_token("service"))
        .connect_lazy()
        .expect("a URL");
    let mut request: Request<GetOperationRequest> = NAME.into_request();
    request
        .metadata_mut()
        .insert("authorization", "Bearer tenant".parse().expect("legal"));
    client.get_operation(request).await.expect("known");
    assert_eq!(
        header(&emulator.calls()[0], "authorization"),
        "Bearer tenant"
    );
}

#[tokio::test]
async fn an_attempt_after_the_first_waits_for_a_token_that_ended_meanwhile() {
    /// Tokens that end before the next can be fetched.
    struct Brief(Counting);
    #[tonic::async_trait]
    impl CallCredentials for Brief {
        async fn token(&self) -> Result<Token, Status> {
            let end = std::time::Instant::now() + Duration::from_millis(300);
            Ok(self.0.token().await?.expires_at(end))
        }
    }
    let emulator = emulator().await;
    emulator.fail_next(None, 1, Status::unavailable("later"));
    let brief = Credentials::custom(Brief(Counting::default()));
    let builder = OperationsClient::builder(emulator.endpoint()).credentials(brief);
    let client = builder.connect().await.expect("it is there");
    client
        .get_operation(NAME)
        .await
        .expect("the second attempt");
    let shown = emulator.calls();
    let shown: Vec<_> = shown
        .iter()
        .map(|call| header(call, "authorization"))
        .collect();
    assert_eq!(shown, ["Bearer t1", "Bearer t2"]);
}

#[tokio::test]
async fn a_call_with_its_own_authorization_needs_no_token() {
    let emulator = emulator().await;
    let broken = Credentials::custom(Failing(Status::unauthenticated("mend it")));
    let builder = OperationsClient::builder(emulator.endpoint()).credentials(broken);
    let client = builder.connect_lazy().expect("a client");
    let mut request: Request<GetOperationRequest> = NAME.into_request();
    let own = "Bearer mine".parse().expect("ASCII");
    request.metadata_mut().insert("authorization", own);
    client.get_operation(request).await.expect("it has its own");
    let status = client.get_operation(NAME).await.expect_err("no token");
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_call_that_waited_for_a_stream_shows_the_token_of_then() {
    /// Tokens that live a second, and are renewed before that.
    struct Brief(Counting);

    #[tonic::async_trait]
    impl CallCredentials for Brief {
        async fn token(&self) -> Result<Token, Status> {
            let end = std::time::Instant::now() + Duration::from_millis(1500);
            Ok(self.0.token().await?.expires_at(end))
        }
    }

    let emulator = Emulator::builder().max_concurrent_streams(1).start().await;
    let emulator = emulator.expect("a free port");
    emulator.start_operation(NAME).expect("a new name");
    emulator.delay(Method::Get, Duration::from_secs(2));
    let client = OperationsClient::builder(emulator.endpoint())
        .credentials(Credentials::custom(Brief(Counting::default())))
        .max_connections(1)
        .connect()
        .await
        .expect("it is there");
    let (first, second) = tokio::join!(client.get_operation(NAME), client.get_operation(NAME));
    first.and(second).expect("known");
    let calls = emulator.calls();
    assert_eq!(header(&calls[0], "authorization"), "Bearer t1");
    assert_ne!(
        header(&calls[1], "authorization"),
        "Bearer t1",
        "it ended before"
    );
}

#[tokio::test(start_paused = true)]
async fn the_401_of_a_gateway_has_the_token_fetched_anew() {
    let gateway = service_fn(|_: http::Request<Body>| async {
        let mut response = http::Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::UNAUTHORIZED;
        Ok::<_, Infallible>(response)
    });
    let source = Counting::default();
    let interceptor = Credentials::custom(source.clone())
        .interceptor()
        .await
        .expect("a token");
    let client = OperationsClient::new(gateway).auth(interceptor);
    let status = client.get_operation(NAME).await.expect_err("refused");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::Unauthenticated, Some(Origin::Transport))
    );
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(source.fetches.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn connecting_fails_with_what_is_wrong_with_the_file() {
    let emulator = emulator().await;
    let builder = OperationsClient::builder(emulator.endpoint());
    let builder = builder.credentials(Credentials::file("/no/such/key.json"));
    let status = builder.connect().await.expect_err("no file");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::Unauthenticated, Some(Origin::Client))
    );
    assert!(status.message().contains("/no/such/key.json"), "{status}");
    assert_eq!(emulator.accepted_connections(), 0);
}

#[tokio::test]
async fn credentials_do_not_go_over_plaintext_unless_asked_for_by_name() {
    let builder = || {
        let builder = OperationsClient::builder("http://longrunning.invalid");
        builder.credentials(Credentials::bearer_token("secret"))
    };
    let status = builder().connect_lazy().expect_err("plaintext");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::FailedPrecondition, Some(Origin::Client))
    );
    assert_eq!(
        status.message(),
        "endpoint \"http://longrunning.invalid\": credentials over plaintext could be read on the way: use https, or allow it with credentials_in_plaintext()"
    );
    let status = builder().connect().await.expect_err("plaintext");
    assert_eq!(status.code(), Code::FailedPrecondition);
    builder()
        .credentials_in_plaintext()
        .connect_lazy()
        .expect("asked for by name");
    let nothing = OperationsClient::builder("http://longrunning.invalid");
    nothing.connect_lazy().expect("there is nothing to read");
}

#[tokio::test]
async fn what_a_source_heard_of_its_own_server_is_not_the_word_of_the_server_called() {
    let server = emulator().await;
    for (refusal, code) in [
        (
            Status::unauthenticated("who are you?"),
            Code::Unauthenticated,
        ),
        (
            Status::failed_precondition("not now"),
            // No call ends with FAILED_PRECONDITION because of credentials, see gRFC A54.
            Code::Unauthenticated,
        ),
    ] {
        let vault = Emulator::start().await.expect("a free port");
        let message = refusal.message().to_owned();
        vault.fail_next(None, 100, refusal);
        let asking = OperationsClient::builder(vault.endpoint());
        let asking = asking.connect().await.expect("it listens");
        let client = OperationsClient::builder(server.endpoint())
            .credentials(Credentials::custom(Remote(asking)))
            .connect_lazy()
            .expect("a good endpoint");
        let status = client.get_operation(NAME).await.expect_err("no token");
        assert_eq!((status.code(), status.message()), (code, &*message));
        assert_eq!(status.origin(), Some(Origin::Client));
        let mut cause = std::error::Error::source(&status);
        while let Some(error) = cause {
            if error
                .downcast_ref::<Status>()
                .and_then(|status| status.origin())
                == Some(Origin::Server)
            {
                break;
            }
            cause = error.source();
        }
        assert!(
            cause.is_some(),
            "its own server's word is kept as the cause: {status:?}"
        );
    }
    assert_eq!(server.calls().len(), 0);
}

#[tokio::test]
async fn credential_failures_have_the_codes_of_grfc_a54() {
    let server = emulator().await;
    for code in (1..=16).map(Code::from_i32) {
        let failing = || Credentials::custom(Failing(Status::new(code, "planted")));
        let builder = || OperationsClient::builder(server.endpoint()).credentials(failing());
        let client = builder().connect_lazy().expect("a good endpoint");
        let client = client.timeout(Duration::from_millis(300));
        let status = client.get_operation(NAME).await.expect_err("no token");
        let is_allowed = matches!(
            status.code(),
            Code::Unauthenticated | Code::Unavailable | Code::Internal
        );
        assert!(is_allowed, "{code:?}: {status:?}");
        assert!(status.message().contains("planted"), "{status:?}");

        // Any other generated client, too.
        let auth = failing().interceptor_lazy().expect("a runtime");
        let _ = tokio::time::timeout(Duration::from_secs(1), auth.ready()).await;
        let mut other = longrunning::proto::operations_client::OperationsClient::with_interceptor(
            client.stack().clone(),
            auth,
        );
        let request = longrunning::proto::GetOperationRequest::default();
        let status = other.get_operation(request).await.expect_err("no token");
        let is_allowed = matches!(
            status.code(),
            Code::Unauthenticated | Code::Unavailable | Code::Internal
        );
        assert!(is_allowed, "{code:?}: {status:?}");
    }
    // When connecting, FAILED_PRECONDITION is kept.
    let failing = Credentials::custom(Failing(Status::failed_precondition("not now")));
    let builder = OperationsClient::builder(server.endpoint()).credentials(failing);
    let status = builder.connect().await.expect_err("no token");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(server.calls().len(), 0);
}

/// `http://localhost` with the authority of another host may be the start of a tunnel.
#[tokio::test]
async fn credentials_are_not_sent_over_plaintext_if_the_authority_is_another_host() {
    let builder = |authority: &str| {
        OperationsClient::builder("http://localhost:1")
            .authority(authority)
            .credentials(Credentials::bearer_token("secret"))
    };
    let status = builder("automl.googleapis.com").connect_lazy();
    let status = status.expect_err("plaintext");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        status.message().contains("credentials over plaintext"),
        "{status}"
    );
    builder("automl.googleapis.com")
        .credentials_in_plaintext()
        .connect_lazy()
        .expect("it is allowed");
    builder("127.0.0.1:2")
        .connect_lazy()
        .expect("it is this machine");
    // The authority may contain a password.
    let builder = builder("me:secret@host");
    assert!(!format!("{builder:?}").contains("secret"), "{builder:?}");
    let status = builder.connect_lazy().expect_err("a user");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(!format!("{status:?}").contains("secret"), "{status:?}");
}

/// What a custom connector connects to is not known: `http://localhost` may be a tunnel.
#[tokio::test]
async fn credentials_do_not_go_over_plaintext_through_a_custom_connector() {
    let connector = |_: http::Uri| async {
        Err::<hyper_util::rt::TokioIo<tokio::net::TcpStream>, _>(std::io::Error::other("unused"))
    };
    let builder = |endpoint: &str| {
        let builder = OperationsClient::builder(endpoint);
        let builder = builder.connector(service_fn(connector));
        builder.credentials(Credentials::bearer_token("secret"))
    };
    let status = builder("http://localhost:1").connect_lazy();
    let status = status.expect_err("plaintext");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        status.message().contains("credentials over plaintext"),
        "{status}"
    );
    builder("http://localhost:1")
        .credentials_in_plaintext()
        .connect_lazy()
        .expect("it is allowed");
    builder("https://localhost:1")
        .connect_lazy()
        .expect("it is encrypted");
}

#[tokio::test]
async fn a_shared_interceptor_does_not_go_over_plaintext_either() {
    let endpoint = "http://longrunning.invalid";
    let auth = Credentials::bearer_token("secret").interceptor().await;
    let auth = auth.expect("it is fixed");
    let status = OperationsClient::builder(endpoint)
        .auth(auth.clone())
        .connect_lazy()
        .expect_err("plaintext");
    assert_eq!(status.code(), Code::FailedPrecondition);

    let client = OperationsClient::builder(endpoint).connect_lazy();
    let client = client.expect("no credentials").auth(auth.clone());
    let status = client.get_operation(NAME).await.expect_err("plaintext");
    assert_eq!(
        (status.code(), status.origin(), status.delivery()),
        (
            Code::Unauthenticated,
            Some(Origin::Client),
            Some(Delivery::NotSent)
        )
    );
    assert!(
        status.message().contains("credentials over plaintext"),
        "{status}"
    );

    let none = Credentials::none().interceptor().await.expect("nothing");
    OperationsClient::builder(endpoint)
        .auth(none)
        .connect_lazy()
        .expect("there is nothing to read");
    OperationsClient::builder(endpoint)
        .auth(auth)
        .credentials_in_plaintext()
        .connect_lazy()
        .expect("it is allowed");
}

#[tokio::test]
async fn clients_share_the_token_of_one_interceptor() {
    let (one, two) = (emulator().await, emulator().await);
    let source = Counting::default();
    let first = OperationsClient::builder(one.endpoint())
        .credentials(Credentials::custom(source.clone()))
        .connect()
        .await
        .expect("it is there");
    let auth = first
        .auth_interceptor()
        .expect("it has credentials")
        .clone();
    let second = OperationsClient::builder(two.endpoint())
        .auth(auth)
        .connect()
        .await
        .expect("it is there");
    first.get_operation(NAME).await.expect("it runs");
    second.get_operation(NAME).await.expect("it runs");
    assert_eq!(source.fetches.load(Ordering::Relaxed), 1);
    for emulator in [one, two] {
        let calls = emulator.calls();
        assert_eq!(header(&calls[0], "authorization"), "Bearer t1");
    }
    let none = OperationsClient::builder("http://localhost:1").connect_lazy();
    assert!(none.expect("no credentials").auth_interceptor().is_none());
}

/// The token is renewed while a call with the old one is in flight.
#[tokio::test(start_paused = true)]
async fn a_late_rejection_of_a_replaced_token_does_not_affect_its_successor() {
    let source = Counting::default();
    let auth = Credentials::custom(source.clone()).interceptor().await;
    let auth = auth.expect("a token");
    // Rejects every call: those with the token `t1` after a minute.
    let stack = service_fn(|request: http::Request<Body>| async move {
        if request.headers()["authorization"] == "Bearer t1" {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        let response = http::Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "16");
        Ok::<_, Infallible>(response.body(Body::empty()).expect("a response"))
    });
    let client = OperationsClient::new(stack).auth(auth.clone());
    let late = tokio::spawn({
        let client = client.clone();
        async move { client.get_operation(NAME).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    auth.mark_rejected();
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(source.fetches.load(Ordering::Relaxed), 2);

    let status = late.await.expect("no panic").expect_err("rejected");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::Unauthenticated, Some(Origin::Server))
    );
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(source.fetches.load(Ordering::Relaxed), 2);

    // A rejection of the current token starts a renewal.
    client.get_operation(NAME).await.expect_err("rejected");
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(source.fetches.load(Ordering::Relaxed), 3);
}

/// A stack that is not ready for 10 seconds, and then fails with the `authorization` header as its
/// message.
#[derive(Clone)]
struct Slow(tokio::time::Instant);

impl tower::Service<http::Request<Body>> for Slow {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = std::future::Ready<Result<Self::Response, Status>>;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Status>> {
        if tokio::time::Instant::now() >= self.0 {
            return std::task::Poll::Ready(Ok(()));
        }
        let (at, waker) = (self.0, cx.waker().clone());
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            waker.wake();
        });
        std::task::Poll::Pending
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let authorization = request.headers()["authorization"].to_str().expect("ASCII");
        std::future::ready(Err(Status::not_found(authorization)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_token_expires_while_the_stack_is_not_ready_waits_for_the_next() {
    /// A source whose first token is valid for 5 seconds, and whose second one takes 7 seconds longer.
    struct Late(AtomicUsize);

    #[tonic::async_trait]
    impl CallCredentials for Late {
        async fn token(&self) -> Result<Token, Status> {
            let now = tokio::time::Instant::now().into_std();
            if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
                return Ok(Token::bearer("t1")?.expires_at(now + Duration::from_secs(5)));
            }
            tokio::time::sleep(Duration::from_secs(7)).await;
            Token::bearer("t2")
        }
    }

    let auth = Credentials::custom(Late(AtomicUsize::new(0)))
        .interceptor()
        .await;
    let ready_at = tokio::time::Instant::now() + Duration::from_secs(10);
    let client = OperationsClient::new(Slow(ready_at)).auth(auth.expect("a token"));
    let status = client
        .get_operation(NAME)
        .await
        .expect_err("the stack fails every call");
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "Bearer t2")
    );
}
