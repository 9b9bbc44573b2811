//! The ways to cancel an operation that are measured.

mod floor;
#[cfg(feature = "peers")]
mod gcloud;
#[cfg(feature = "peers")]
mod google_cloud;
mod ours;
mod raw;

use std::{fmt::Write as _, sync::LazyLock, time::Duration};

use http::HeaderValue;
use tokio::{task::JoinSet, time};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

pub(crate) use self::{floor::Floor, ours::Ours, raw::Raw};
#[cfg(feature = "peers")]
pub(crate) use self::{gcloud::Gcloud, google_cloud::GoogleCloud};
use crate::{Result, spawn::Server};

/// A client that is ready. Clones share its connections.
pub(crate) trait Variant: Clone + Send + Sync + 'static {
    /// Cancels an operation; whatever is not OK is an error.
    fn cancel(&mut self, name: &'static str) -> impl Future<Output = Result> + Send;

    /// Cancels an operation with a timeout that is set as the client's documentation recommends.
    fn cancel_within(
        &mut self,
        name: &'static str,
        timeout: Duration,
    ) -> impl Future<Output = Result> + Send {
        async move { time::timeout(timeout, self.cancel(name)).await? }
    }

    /// Cancels so many operations, so many at a time.
    fn cancel_all(&self, names: usize, concurrency: usize) -> impl Future<Output = Result> + Send {
        async move {
            let mut workers = JoinSet::<Result>::new();
            for worker in 0..concurrency {
                let mut variant = self.clone();
                workers.spawn(async move {
                    for number in (worker..names).step_by(concurrency) {
                        variant
                            .cancel(&OPERATIONS[number % OPERATIONS.len()])
                            .await?;
                    }
                    Ok(())
                });
            }
            while let Some(done) = workers.join_next().await {
                done??;
            }
            Ok(())
        }
    }
}

/// The names of all, the baseline first.
pub(crate) const NAMES: [&str; 9] = [
    "raw tonic stub",
    "longrunning",
    "longrunning, patched h2",
    "longrunning on a Channel",
    "gcloud-longrunning",
    "google-cloud-longrunning",
    "google-api-core",
    "grpc-go",
    "h2 alone",
];

/// A bearer token of 1 KiB, with the letters of a real one.
pub(crate) static TOKEN: LazyLock<String> = LazyLock::new(|| {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = 1_u32;
    let mut token = "ya29.".to_owned();
    while token.len() < 1024 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        token.push(LETTERS[(state >> 26) as usize].into());
    }
    token
});

/// The token as a header that is never shown, nor indexed.
pub(crate) static BEARER: LazyLock<HeaderValue> = LazyLock::new(|| {
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", *TOKEN)).expect("visible letters");
    bearer.set_sensitive(true);
    bearer
});

/// What a client says of itself, as long as what this crate says.
pub(crate) const API_CLIENT: &str = "gl-rust/1.95.0 gccl/0.1.0 grpc/0.14";

/// Names of operations, distinct, of a usual length; the calls go round through them.
pub(crate) static OPERATIONS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let name = |number: u64| {
        let mut name = "operations/projects/p/locations/us-central1/".to_owned();
        let _ = write!(name, "ICN{:08}", number * 7_919);
        name
    };
    (0..4_096).map(name).collect()
});

fn url(server: &Server) -> String {
    match server.certificate.is_empty() {
        true => format!("http://{}", server.grpc),
        false => format!("https://localhost:{}", port(server)),
    }
}

fn port(server: &Server) -> &str {
    server.grpc.rsplit(':').next().unwrap_or_default()
}

/// What a careful user of tonic connects with.
async fn channel(server: &Server) -> Result<Channel> {
    let mut endpoint = Channel::from_shared(url(server))?;
    if !server.certificate.is_empty() {
        let ca = Certificate::from_pem(&server.certificate);
        endpoint = endpoint.tls_config(ClientTlsConfig::new().ca_certificate(ca))?;
    }
    Ok(endpoint.connect().await?)
}
