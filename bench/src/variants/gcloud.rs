//! `gcloud-longrunning`: gRPC over tonic.

use std::sync::Arc;

use gcloud_gax::conn::{ConnectionManager, ConnectionOptions, Environment};
use gcloud_googleapis::longrunning::CancelOperationRequest;
use gcloud_longrunning::autogen::operations_client::OperationsClient;
use token_source::{TokenSource, TokenSourceProvider};

use super::{TOKEN, Variant};
use crate::{Result, spawn::Server};

#[derive(Clone)]
pub(crate) struct Gcloud(OperationsClient);

impl Gcloud {
    pub(crate) async fn connect(server: &Server) -> Result<Self> {
        if !server.certificate.is_empty() {
            return Err("it takes the roots of the web only, and no other".into());
        }
        let url = format!("http://{}", server.grpc);
        let environment = Environment::GoogleCloud(Box::new(Token));
        let options = ConnectionOptions::default();
        let connections =
            ConnectionManager::new(1, "localhost", &url, &environment, &options).await?;
        Ok(Self(OperationsClient::new(connections.conn()).await?))
    }
}

impl Variant for Gcloud {
    async fn cancel(&mut self, name: &'static str) -> Result {
        let request = CancelOperationRequest { name: name.into() };
        self.0.cancel_operation(request, None).await?;
        Ok(())
    }
}

#[derive(Debug)]
struct Token;

impl TokenSourceProvider for Token {
    fn token_source(&self) -> Arc<dyn TokenSource> {
        Arc::new(Self)
    }
}

#[tonic::async_trait]
impl TokenSource for Token {
    async fn token(&self) -> Result<String> {
        Ok(format!("Bearer {}", *TOKEN))
    }
}
