//! What credentials cost each call: the entry of the header, and no wait.

#![allow(clippy::unwrap_used)] // in the helpers, too

use std::{
    future::Future as _,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use allocation_counter::measure;
use longrunning::{AuthInterceptor, CallCredentials, Credentials, Token};
use tonic::{Request, Status, service::Interceptor as _};

struct Source;

#[tonic::async_trait]
impl CallCredentials for Source {
    async fn token(&self) -> Result<Token, Status> {
        let end = Instant::now() + Duration::from_secs(3600);
        Ok(Token::bearer("token")?.expires_at(end))
    }
}

/// The allocations that a call makes because of its credentials.
fn allocations(auth: &AuthInterceptor) -> u64 {
    let mut auth = auth.clone();
    let mut request = Some(Request::new(()));
    // Calls have metadata already: the map is there.
    let metadata = request.as_mut().unwrap().metadata_mut();
    metadata.insert("a", "b".parse().unwrap());
    let info = measure(|| request = auth.call(request.take().unwrap()).ok());
    assert!(request.unwrap().metadata().contains_key("authorization"));
    info.count_total
}

#[tokio::test]
async fn a_call_with_a_token_at_hand_allocates_nothing_and_does_not_wait() {
    let auth = Credentials::custom(Source).interceptor().await.unwrap();
    allocations(&auth); // the first clone of a value makes it shared
    assert_eq!(allocations(&auth), 0);
    let info = measure(|| {
        let mut ready = std::pin::pin!(auth.ready());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(ready.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
    });
    assert_eq!(info.count_total, 0);
}
