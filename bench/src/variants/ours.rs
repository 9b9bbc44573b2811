//! This crate: its default stack with all its defaults, and over one Channel.

use longrunning::{OperationsClient, Stack, Transport, proto::CancelOperationRequest};
use tonic::{
    Request, Status,
    metadata::{AsciiMetadataValue, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use super::{BEARER, Variant, channel, url};
use crate::{Result, spawn::Server};

#[derive(Clone)]
pub(crate) struct Ours<S> {
    client: OperationsClient<S>,
    bearer: Option<AsciiMetadataValue>,
}

impl Ours<Transport> {
    pub(crate) async fn connect(server: &Server) -> Result<Self> {
        let mut builder = OperationsClient::builder(url(server));
        if !server.certificate.is_empty() {
            builder = builder.ca_certificate(server.certificate.as_str());
        }
        let mut bearer = MetadataValue::try_from(BEARER.as_bytes())?;
        bearer.set_sensitive(true);
        Ok(Self {
            client: builder.connect().await?,
            bearer: Some(bearer),
        })
    }
}

impl Ours<InterceptedService<Channel, Bearer>> {
    pub(crate) async fn on_channel(server: &Server) -> Result<Self> {
        let bearer = Bearer(MetadataValue::try_from(BEARER.as_bytes())?);
        let stack = InterceptedService::new(channel(server).await?, bearer);
        Ok(Self {
            client: OperationsClient::new(stack),
            bearer: None,
        })
    }
}

impl<S: Stack + Sync> Variant for Ours<S> {
    async fn cancel(&mut self, name: &'static str) -> Result {
        let mut request = Request::new(CancelOperationRequest { name: name.into() });
        if let Some(bearer) = &self.bearer {
            let bearer = bearer.clone();
            request.metadata_mut().insert("authorization", bearer);
        }
        self.client.cancel_operation(request).await?;
        Ok(())
    }
}

#[derive(Clone)]
pub(crate) struct Bearer(AsciiMetadataValue);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let mut bearer = self.0.clone();
        bearer.set_sensitive(true);
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }
}
