//! A client of `google.longrunning.Operations` over gRPC: cancel, watch and collect long-running
//! operations.
//!
//! ```
//! # #[cfg(not(feature = "emulator"))]
//! # fn main() {}
//! # #[cfg(feature = "emulator")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tonic::Status> {
//! # let emulator = longrunning::emulator::Emulator::start().await?;
//! # emulator.start_operation("projects/p/locations/l/operations/1")?;
//! # let endpoint = emulator.endpoint();
//! use longrunning::OperationsClient;
//!
//! let client = OperationsClient::builder(endpoint).connect().await?;
//! client.cancel_operation("projects/p/locations/l/operations/1").await?;
//! # assert!(client.get_operation("projects/p/locations/l/operations/1").await?.done);
//! # Ok(())
//! # }
//! ```
//!
//! There is one error type, [`tonic::Status`]: the server's own, unchanged, or one that says what
//! is known of a call that ended without it. [`StatusExt`] tells the two apart.
//!
//! # Layout
//!
//! - [`OperationsClient`]: the five RPCs, over connections of its own ([`Builder`], [`Transport`])
//!   or over any tower [`Stack`].
//! - [`Credentials`]: what to show the server, and [`AuthInterceptor`] to share it with any other
//!   generated client.
//! - [`Poller`]: watches an operation until it is done; [`OperationsClient::cancel_and_wait`] and
//!   its [`CancelOutcome`].
//! - [`CancelOperations`], [`Operations`]: streams that cancel many operations, and list them.
//! - [`Operation`]: whether it is done, its [`Outcome`], its response and metadata as messages.
//! - [`StatusExt`]: who decided on a status ([`Origin`]), its HTTP code, its typed details.
//! - [`proto`]: the generated messages and the raw stubs.
//! - `emulator`: the whole service in memory, for tests.
//!
//! # Features
//!
//! | feature | default | with it | without it |
//! |---|---|---|---|
//! | `google-authz` | yes | service account keys, users' files, the metadata server | Google's credentials need `google-cloud-auth`, or a source of your own |
//! | `google-cloud-auth` | | workload identity federation and impersonation, too; Rust 1.91 | |
//! | `tls-ring` | yes | TLS by rustls, on ring | `https` endpoints need `tls-aws-lc` |
//! | `tls-aws-lc` | | TLS by rustls, on aws-lc | |
//! | `tls-native-roots` | yes | the system's root certificates, `SSL_CERT_FILE` honoured | roots of `tls-webpki-roots`, or those given |
//! | `tls-webpki-roots` | | Mozilla's root certificates, compiled in | |
//! | `rustls` | | `Builder::rustls_config`: the whole of TLS as rustls 0.23 has it | `ca_certificate` and `identity` |
//! | `tracing` | | connections, retries and tokens as DEBUG events of the target `longrunning` | |
//! | `emulator` | | the module `emulator` and the raw server stub | |

// Not in `Cargo.toml`, for tests and examples may.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod auth;
mod backoff;
mod builder;
mod cancel;
mod client;
mod deadline;
#[cfg(feature = "emulator")]
pub mod emulator;
mod list;
mod operation;
mod poll;
pub mod proto;
mod retry;
mod status;
mod task;
mod trace;
mod transport;

pub use self::{
    auth::{AuthInterceptor, CallCredentials, Credentials, Token},
    builder::{Builder, Endpoint},
    cancel::{CancelOperations, CancelOutcome},
    client::{OperationsClient, Stack},
    list::Operations,
    operation::{Operation, Outcome},
    poll::{PollPolicy, Poller},
    retry::RetryPolicy,
    status::{Origin, StatusExt},
    transport::{ResponseBody, Transport},
};
