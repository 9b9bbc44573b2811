//! TLS: whom the client trusts, and as whom it shows itself.

use std::{fmt, sync::Arc};

use http::uri::Authority;
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tonic::{Code, Status};

use crate::{
    status::{Delivery, Origin, caused, local},
    transport::Tls,
};

/// What the user has set of it.
#[derive(Default)]
pub(crate) struct TlsSettings {
    cas: Vec<Vec<u8>>,
    identity: Option<Identity>,
    whole: Option<Arc<ClientConfig>>,
}

/// A certificate chain and its private key, as PEM text.
struct Identity {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl TlsSettings {
    pub(crate) fn ca(&mut self, pem: Vec<u8>) {
        self.cas.push(pem);
    }

    pub(crate) fn identity(&mut self, certificate: Vec<u8>, key: Vec<u8>) {
        self.identity = Some(Identity { certificate, key });
    }

    #[cfg(feature = "rustls")]
    pub(crate) fn whole(&mut self, config: Arc<ClientConfig>) {
        self.whole = Some(config);
    }

    /// Whether anything of it is set.
    pub(crate) fn is_set(&self) -> bool {
        !self.cas.is_empty() || self.identity.is_some() || self.whole.is_some()
    }

    /// Makes a configuration of it, for the server of that name.
    ///
    /// # Errors
    ///
    /// - `INVALID_ARGUMENT`: a value cannot be used.
    /// - `FAILED_PRECONDITION`: features are off that it needs.
    pub(crate) fn build(self, authority: &Authority) -> Result<Tls, Status> {
        let host = authority.host();
        let address = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let name = ServerName::try_from(address.unwrap_or(host).to_owned()).map_err(|error| {
            invalid(
                format!("host {host:?} cannot be the name in a certificate"),
                error,
            )
        })?;
        let mut config = match self.whole {
            Some(config) => Arc::unwrap_or_clone(config),
            None => self.config()?,
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        Ok(Tls { config, name })
    }

    fn config(&self) -> Result<ClientConfig, Status> {
        let builder = ClientConfig::builder_with_provider(provider()?)
            .with_safe_default_protocol_versions()
            .map_err(|error| {
                let message = "the provider of cryptography cannot do TLS";
                let delivery = Delivery::NotSent;
                caused(
                    Code::FailedPrecondition,
                    message,
                    Origin::Client,
                    delivery,
                    error,
                )
            })?
            .with_root_certificates(self.roots()?);
        let Some(identity) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates("the identity's certificate", &identity.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&identity.key)
            .map_err(|error| invalid("the identity's key is not a private key in PEM", error))?;
        builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| invalid("the identity cannot be used", error))
    }

    fn roots(&self) -> Result<RootCertStore, Status> {
        let mut roots = RootCertStore::empty();
        #[cfg(feature = "tls-native-roots")]
        let errors = {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            found.errors
        };
        #[cfg(feature = "tls-webpki-roots")]
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        for pem in &self.cas {
            for certificate in certificates("the CA certificate", pem)? {
                roots
                    .add(certificate)
                    .map_err(|error| invalid("the CA certificate cannot be used", error))?;
            }
        }
        if !roots.is_empty() {
            return Ok(roots);
        }
        #[cfg(feature = "tls-native-roots")]
        let message = match errors.first() {
            Some(error) => format!("cannot read the system's root certificates: {error}: {REMEDY}"),
            None => format!("the system has no usable root certificates: {REMEDY}"),
        };
        #[cfg(not(feature = "tls-native-roots"))]
        let message = "no root certificates for TLS: turn on the feature `tls-native-roots` or \
                       `tls-webpki-roots` of `longrunning`, or call `ca_certificate`";
        Err(local(Code::FailedPrecondition, message))
    }
}

#[cfg(feature = "tls-native-roots")]
const REMEDY: &str = "install the package ca-certificates, set SSL_CERT_FILE, call `ca_certificate`, or \
                      turn on the feature `tls-webpki-roots`";

impl fmt::Debug for TlsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("cas", &self.cas.len())
            .field("identity", &self.identity.is_some())
            .field("whole", &self.whole.is_some())
            .finish()
    }
}

/// The process's own choice counts before this crate's features.
fn provider() -> Result<Arc<CryptoProvider>, Status> {
    if let Some(provider) = CryptoProvider::get_default() {
        return Ok(provider.clone());
    }
    #[cfg(feature = "tls-ring")]
    return Ok(Arc::new(
        tokio_rustls::rustls::crypto::ring::default_provider(),
    ));
    #[cfg(all(feature = "tls-aws-lc", not(feature = "tls-ring")))]
    return Ok(Arc::new(
        tokio_rustls::rustls::crypto::aws_lc_rs::default_provider(),
    ));
    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
    Err(local(
        Code::FailedPrecondition,
        "no cryptography for TLS: turn on the feature `tls-ring` or `tls-aws-lc` of `longrunning`, \
         or install a default provider of rustls",
    ))
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Status> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(format!("{what} is not in PEM"), error))?;
    match certificates.is_empty() {
        true => Err(local(
            Code::InvalidArgument,
            format!("{what}: no CERTIFICATE in the PEM"),
        )),
        false => Ok(certificates),
    }
}

fn invalid(
    what: impl Into<String>,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Status {
    let message = format!("{}: {error}", what.into());
    let error: Arc<dyn std::error::Error + Send + Sync> = Arc::new(error);
    let delivery = Delivery::NotSent;
    caused(
        Code::InvalidArgument,
        message,
        Origin::Client,
        delivery,
        error,
    )
}
