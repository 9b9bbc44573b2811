//! The request messages, each with the RPC that it belongs to.

use std::time::Duration;

use prost::Message;

use super::settings::Timeout;
use crate::proto::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    ListOperationsResponse, Operation, WaitOperationRequest, duration,
};

/// A request message, and the RPC that it belongs to.
pub(crate) trait Rpc: Message + Sized + 'static {
    type Answer: Default + Message;

    const METHOD: &'static str;
    const PATH: &'static str;

    /// Whether the service's HTTP rules know it. Routing headers are for those which they know.
    const HAS_HTTP_RULE: bool = true;

    const NAME_MAY_BE_EMPTY: bool = false;

    /// Whether the published policy knows it.
    const MAY_BE_RETRIED: bool = true;

    fn name(&self) -> &str;

    /// How long the call may take, of what the client is set to.
    fn timeout(&self, client: Timeout) -> Option<Duration> {
        client.any()
    }
}

impl Rpc for CancelOperationRequest {
    type Answer = ();

    const METHOD: &'static str = "CancelOperation";
    const PATH: &'static str = "/google.longrunning.Operations/CancelOperation";

    fn name(&self) -> &str {
        &self.name
    }
}

impl Rpc for GetOperationRequest {
    type Answer = Operation;

    const METHOD: &'static str = "GetOperation";
    const PATH: &'static str = "/google.longrunning.Operations/GetOperation";

    fn name(&self) -> &str {
        &self.name
    }
}

impl Rpc for DeleteOperationRequest {
    type Answer = ();

    const METHOD: &'static str = "DeleteOperation";
    const PATH: &'static str = "/google.longrunning.Operations/DeleteOperation";

    fn name(&self) -> &str {
        &self.name
    }
}

impl Rpc for ListOperationsRequest {
    type Answer = ListOperationsResponse;

    const METHOD: &'static str = "ListOperations";
    const PATH: &'static str = "/google.longrunning.Operations/ListOperations";
    const NAME_MAY_BE_EMPTY: bool = true;

    fn name(&self) -> &str {
        &self.name
    }
}

impl Rpc for WaitOperationRequest {
    type Answer = Operation;

    const METHOD: &'static str = "WaitOperation";
    const PATH: &'static str = "/google.longrunning.Operations/WaitOperation";
    const HAS_HTTP_RULE: bool = false;
    const MAY_BE_RETRIED: bool = false;

    fn name(&self) -> &str {
        &self.name
    }

    fn timeout(&self, client: Timeout) -> Option<Duration> {
        /// For the answer to arrive, once the server has waited.
        const MARGIN: Duration = Duration::from_secs(10);
        let wait = self.timeout.and_then(duration);
        match wait {
            Some(wait) => client.any().map(|_| wait.saturating_add(MARGIN)),
            None => client.set,
        }
    }
}
