//! Quotas of methods.

use std::time::Duration;

use prost_types::Any;
use tokio::time::Instant;
use tonic::Status;

use super::{Emulator, Method, lock};
use crate::proto::rpc;

impl Emulator {
    /// Sets the quota of a method, in calls per second.
    ///
    /// If `method` is `None`, each method gets its own quota of this size. Calls beyond the quota fail with
    /// `RESOURCE_EXHAUSTED`. The [`RetryInfo`](rpc::RetryInfo) in the status contains the time until the next call is
    /// accepted. The quota is a token bucket that holds the calls of 0.1 seconds, but at least one call. A new quota
    /// replaces the previous one. 0, a negative number or NaN rejects all calls, without a `RetryInfo`.
    /// [`f64::INFINITY`] removes the quota.
    ///
    /// Defaults to no quota.
    ///
    /// ```
    /// use longrunning::{OperationsClient, emulator::{Emulator, Method}};
    /// use tonic::Code;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// let emulator = Emulator::start().await?;
    /// emulator.quota(Method::Get, 1.0);
    /// let client = OperationsClient::new(emulator.service());
    /// let first = client.get_operation("operations/1").await.unwrap_err();
    /// assert_eq!(first.code(), Code::NotFound);
    /// let second = client.get_operation("operations/1").await.unwrap_err();
    /// assert_eq!(second.code(), Code::ResourceExhausted);
    /// # Ok(())
    /// # }
    /// ```
    pub fn quota(&self, method: impl Into<Option<Method>>, calls_per_second: f64) {
        let mut script = lock(&self.shared.script);
        for method in Method::selected(method.into()) {
            let quota = Quota::new(method, calls_per_second);
            script.quotas.insert(method, quota);
        }
    }
}

/// The quota of a method, as a token bucket.
pub(super) struct Quota {
    method: Method,
    calls_per_second: f64,
    tokens: f64,
    updated: Instant,
}

impl Quota {
    fn new(method: Method, calls_per_second: f64) -> Self {
        let mut quota = Self {
            method,
            calls_per_second: calls_per_second.max(0.0), // NaN is treated as 0
            tokens: 0.0,
            updated: Instant::now(),
        };
        quota.tokens = quota.capacity();
        quota
    }

    /// Takes a token.
    ///
    /// # Errors
    ///
    /// - `RESOURCE_EXHAUSTED`: no token is available.
    pub(super) fn take(&mut self) -> Result<(), Status> {
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.updated = now;
        if self.calls_per_second.is_infinite() {
            return Ok(());
        }
        let refilled = self.tokens + elapsed * self.calls_per_second;
        self.tokens = refilled.min(self.capacity());
        // A tolerance for rounding, so that a call after the delay of a `RetryInfo` is accepted.
        if self.tokens < 1.0 - 1e-6 {
            return Err(self.rejection());
        }
        self.tokens = (self.tokens - 1.0).max(0.0);
        Ok(())
    }

    fn capacity(&self) -> f64 {
        if self.calls_per_second == 0.0 {
            return 0.0;
        }
        (0.1 * self.calls_per_second).max(1.0)
    }

    fn rejection(&self) -> Status {
        let until_next = (1.0 - self.tokens) / self.calls_per_second;
        let delay = Duration::try_from_secs_f64(until_next).ok();
        let delay = delay.and_then(|delay| prost_types::Duration::try_from(delay).ok());
        let retry_info = delay.map(|delay| rpc::RetryInfo {
            retry_delay: Some(delay),
        });
        let details = retry_info.and_then(|info| Any::from_msg(&info).ok());
        let (method, limit) = (self.method, self.calls_per_second);
        Status::from(rpc::Status {
            code: rpc::Code::ResourceExhausted.into(),
            message: format!("quota exceeded: {method} is limited to {limit} calls per second"),
            details: details.into_iter().collect(),
        })
    }
}
