//! `google-cloud-longrunning`: JSON over HTTP/1.1.

use google_cloud_auth::{
    credentials::{CacheableResource, Credentials, CredentialsProvider, EntityTag},
    errors::CredentialsError,
};
use google_cloud_longrunning::client::Operations;
use http::{Extensions, HeaderMap, header::AUTHORIZATION};

use super::{BEARER, Variant};
use crate::{Result, spawn::Server};

#[derive(Clone)]
pub(crate) struct GoogleCloud(Operations);

impl GoogleCloud {
    pub(crate) async fn connect(server: &Server) -> Result<Self> {
        if !server.certificate.is_empty() {
            return Err("the JSON server has no TLS".into());
        }
        let client = Operations::builder()
            .with_endpoint(format!("http://{}", server.rest))
            .with_credentials(Credentials::from(Token(EntityTag::new())))
            .build()
            .await?;
        Ok(Self(client))
    }
}

impl Variant for GoogleCloud {
    async fn cancel(&mut self, name: &'static str) -> Result {
        self.0.cancel_operation().set_name(name).send().await?;
        Ok(())
    }
}

#[derive(Debug)]
struct Token(EntityTag);

impl CredentialsProvider for Token {
    async fn headers(
        &self,
        extensions: Extensions,
    ) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        if extensions.get::<EntityTag>() == Some(&self.0) {
            return Ok(CacheableResource::NotModified);
        }
        Ok(CacheableResource::New {
            entity_tag: self.0.clone(),
            data: HeaderMap::from_iter([(AUTHORIZATION, BEARER.clone())]),
        })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}
