//! The floor: the h2 crate alone, with one connection and the least that a call must do.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderValue, Method, Request, Uri, Version};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use prost::Message as _;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use super::{API_CLIENT, BEARER, Variant};
use crate::{Result, spawn::Server};

#[derive(Clone)]
pub(crate) struct Floor {
    send: SendRequest<Bytes>,
    uri: Uri,
}

impl Floor {
    pub(crate) async fn connect(server: &Server) -> Result<Self> {
        let io = TcpStream::connect(&server.grpc).await?;
        io.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder.enable_push(false);
        builder.initial_window_size(2 << 20);
        builder.initial_connection_window_size(5 << 20);
        let scheme = match server.certificate.is_empty() {
            true => "http",
            false => "https",
        };
        let send = if server.certificate.is_empty() {
            let (send, connection) = builder.handshake(io).await?;
            tokio::spawn(connection);
            send
        } else {
            let io = tls(server)?
                .connect(ServerName::try_from("localhost")?, io)
                .await?;
            let (send, connection) = builder.handshake(io).await?;
            tokio::spawn(connection);
            send
        };
        let path = "/google.longrunning.Operations/CancelOperation";
        let uri = format!("{scheme}://{}{path}", server.grpc).parse()?;
        Ok(Self { send, uri })
    }
}

fn tls(server: &Server) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(
        server.certificate.as_bytes(),
    )?)?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config).into())
}

impl Variant for Floor {
    async fn cancel(&mut self, name: &'static str) -> Result {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.uri.clone();
        let mut routing = HeaderValue::try_from(format!(
            "name={}",
            utf8_percent_encode(name, NON_ALPHANUMERIC)
        ))?;
        routing.set_sensitive(true);
        let headers = request.headers_mut();
        headers.reserve(6);
        headers.insert("te", HeaderValue::from_static("trailers"));
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("user-agent", HeaderValue::from_static("h2"));
        headers.insert("authorization", BEARER.clone());
        headers.insert("x-goog-request-params", routing);
        headers.insert("x-goog-api-client", HeaderValue::from_static(API_CLIENT));

        let message = longrunning::proto::CancelOperationRequest { name: name.into() };
        let length = message.encoded_len();
        let mut body = BytesMut::with_capacity(5 + length);
        body.put_u8(0);
        body.put_u32(length as u32);
        message.encode(&mut body)?;

        let mut send = self.send.clone().ready().await?;
        let (response, mut stream) = send.send_request(request, false)?;
        stream.send_data(body.freeze(), true)?;
        let mut body = response.await?.into_body();
        while let Some(data) = body.data().await {
            let length = data?.len();
            body.flow_control().release_capacity(length)?;
        }
        let trailers = body.trailers().await?.ok_or("no trailers")?;
        match trailers.get("grpc-status").map(HeaderValue::as_bytes) {
            Some(b"0") => Ok(()),
            status => Err(format!("grpc-status {status:?}").into()),
        }
    }
}
