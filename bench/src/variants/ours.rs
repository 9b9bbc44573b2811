//! This crate: its default stack with all its defaults, and over one Channel.


use longrunning::{AuthInterceptor, Credentials, OperationsClient, GrpcStack, Transport};
use tonic::{service::interceptor::InterceptedService, transport::Channel};

use super::{OPERATIONS, TOKEN, Variant, channel, url};
use crate::{Result, spawn::Server};

#[derive(Clone)]
pub(crate) struct Ours<S>(OperationsClient<S>);

impl Ours<Transport> {
    pub(crate) async fn connect(server: &Server) -> Result<Self> {
        let mut builder = OperationsClient::builder(url(server)).credentials(credentials());
        if !server.certificate.is_empty() {
            builder = builder.ca_certificate(server.certificate.as_str());
        }
        Ok(Self(builder.connect().await?))
    }
}

impl Ours<InterceptedService<Channel, AuthInterceptor>> {
    pub(crate) async fn on_channel(server: &Server) -> Result<Self> {
        let auth = credentials().interceptor().await?;
        let stack = InterceptedService::new(channel(server).await?, auth);
        Ok(Self(OperationsClient::new(stack)))
    }
}

fn credentials() -> Credentials {
    Credentials::bearer_token(TOKEN.as_str())
}

impl<S: GrpcStack + Sync> Variant for Ours<S> {
    async fn cancel(&mut self, name: &'static str) -> Result {
        self.0.cancel_operation(name).await?;
        Ok(())
    }

    async fn cancel_all(&self, names: usize, concurrency: usize) -> Result {
        let names = tokio_stream::iter(OPERATIONS.iter().cycle().take(names));
        let mut results = self.0.cancel_operations(names, concurrency);
        while let Some((_, result)) = results.next().await {
            result?;
        }
        Ok(())
    }
}
