//! The baseline: a generated stub over one Channel, and an interceptor for the headers.

use std::time::Duration;

use longrunning::proto::{CancelOperationRequest, operations_client::OperationsClient};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time;
use tonic::{
    Request, Status,
    metadata::{AsciiMetadataValue, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use super::{API_CLIENT, BEARER, Variant, channel};
use crate::{Result, spawn::Server};

const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

#[derive(Clone)]
pub(crate) struct Raw(OperationsClient<InterceptedService<Channel, Headers>>);

impl Raw {
    pub(crate) async fn connect(server: &Server) -> Result<Self> {
        let headers = Headers(MetadataValue::try_from(BEARER.as_bytes())?);
        let stub = OperationsClient::with_interceptor(channel(server).await?, headers);
        Ok(Self(stub))
    }
}

impl Variant for Raw {
    async fn cancel(&mut self, name: &'static str) -> Result {
        self.0.cancel_operation(request(name)?).await?;
        Ok(())
    }

    /// tonic starts the request's timeout when the request leaves the `Channel`'s buffer. The outer timeout includes the
    /// wait in the buffer.
    async fn cancel_within(&mut self, name: &'static str, timeout: Duration) -> Result {
        let mut request = request(name)?;
        request.set_timeout(timeout);
        time::timeout(timeout, self.0.cancel_operation(request)).await??;
        Ok(())
    }
}

fn request(name: &str) -> Result<Request<CancelOperationRequest>> {
    let mut request = Request::new(CancelOperationRequest { name: name.into() });
    // An interceptor does not see the message.
    let routing = format!("name={}", utf8_percent_encode(name, RESERVED)).parse()?;
    request
        .metadata_mut()
        .insert("x-goog-request-params", routing);
    Ok(request)
}

#[derive(Clone)]
struct Headers(AsciiMetadataValue);

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let mut bearer = self.0.clone();
        bearer.set_sensitive(true);
        let metadata = request.metadata_mut();
        metadata.insert("authorization", bearer);
        metadata.insert("x-goog-api-client", MetadataValue::from_static(API_CLIENT));
        Ok(request)
    }
}
