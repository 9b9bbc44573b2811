//! A gRPC client for `google.longrunning.Operations`: cancel, watch and collect long-running
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
//! # What to know first
//!
//! - **Cancellation is best effort.** Success means that the server accepted the request. A cancelled operation is not
//!   deleted: it becomes done with error code 1 (`CANCELLED`), which [`get_operation`](OperationsClient::get_operation)
//!   returns. [`cancel_and_wait`](OperationsClient::cancel_and_wait) cancels and waits for the outcome.
//! - **Errors are [`tonic::Status`]**, for both calls and set-up. A status that the server sent
//!   is returned unchanged; [`CallStatusExt::origin`] returns where a status came from.
//! - **Calls have a deadline of 10 seconds by default** ([`ClientBuilder::timeout`]) and are retried on
//!   `UNAVAILABLE` ([`RetryPolicy`]), as in the published policy of the service. A client over your
//!   own stack leaves both to the stack, unless you set them.
//! - **No credentials are sent by default**: see [`Credentials`].
//! - **Clones of a client are cheap** and share its connections, token and settings. Its background
//!   tasks stop when the last clone is dropped; the exception is the cancel call of a dropped
//!   [`CancelOnDrop`], which may run for up to 10 seconds afterwards.
//!
//! # Where to find what
//!
//! | to | see |
//! |---|---|
//! | connect to a server | [`OperationsClient::builder`], [`ClientBuilder`], [`Transport`] |
//! | connect to a private endpoint, or through an HTTP proxy | [`ClientBuilder::authority`], `ClientBuilder::proxy_from_env` (requires the feature `proxy`) |
//! | use your own channel or tower stack | [`OperationsClient::new`], [`GrpcStack`], [`OperationsClient::boxed`] |
//! | cancel, get, list, delete or wait once | [`OperationsClient`] |
//! | set a timeout or a retry policy for one call | [`RetryPolicy`](RetryPolicy#for-one-call), [`AttemptTimeout`] |
//! | authenticate | [`Credentials`], and [`AuthInterceptor`] for any other generated client |
//! | wait until an operation is done | [`Poller`], [`PollPolicy`] |
//! | cancel an operation if your program stops waiting for it | [`Poller::cancel_on_drop`] |
//! | cancel an operation and learn the outcome | [`OperationsClient::cancel_and_wait`], [`CancelOutcome`] |
//! | cancel many operations, at a rate that adapts to the quota of the server | [`OperationsClient::cancel_operations`], [`CancelReport`] |
//! | watch many operations until they are done | [`OperationSet`] |
//! | list operations over all pages | [`OperationsClient::operations`] |
//! | read the result of an operation | [`Operation`], [`Outcome`] |
//! | know how each failure ends | [`Transport`](Transport#faults) |
//! | handle an error, or write it to a log | [`CallStatusExt`], [`StatusReport`], [`Origin`], [`Delivery`] |
//! | use the generated messages and stubs | [`proto`] |
//! | trace calls, record metrics, or read the state of a client | the guide [`observability`](guide::observability), [`OperationsClient::stats`], [`Recorder`] |
//! | test your code without a server | the module `emulator` (requires the feature `emulator`), the guide [`testing`](guide::testing) |
//! | reduce the CPU time and the bytes of each call | the guide [`tuning`](guide::tuning) |
//! | solve a common task, or move from another client | the module [`guide`] |
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `google-authz` | yes | Google credentials: service account keys, user credentials, the metadata server |
//! | `google-cloud-auth` | | Google credentials, with workload identity federation and impersonation; needs Rust 1.91 |
//! | `metadata-server` | | Google credentials from the metadata server only; included in both features above |
//! | `tls-ring` | yes | TLS by rustls with ring |
//! | `tls-aws-lc` | | TLS by rustls with aws-lc |
//! | `tls-native-roots` | yes | the root certificates of the system; honors `SSL_CERT_FILE` |
//! | `tls-webpki-roots` | | the root certificates of Mozilla, compiled in |
//! | `proxy` | | `ClientBuilder::proxy_from_env`, for HTTP proxies |
//! | `rustls` | | `ClientBuilder::rustls_config`, which takes a complete rustls 0.23 configuration |
//! | `tracing` | | [spans](guide::observability#spans) of calls, attempts and waits, and [events](guide::observability#events) of connections, retries and tokens |
//! | `opentelemetry` | | `OpenTelemetryRecorder`, which records [metrics](guide::observability#metrics), and `ClientBuilder::propagator`, which sends the trace context to servers; requires the crate `opentelemetry` 0.33, and a later release of this crate may require a later version |
//! | `gzip` | | decoding of gzip-compressed responses, advertised to servers in `grpc-accept-encoding` |
//! | `emulator` | | the module `emulator`, and the raw server stub in [`proto`] |
//!
//! An `https` endpoint requires `tls-ring` or `tls-aws-lc`, and root certificates from
//! `tls-native-roots`, `tls-webpki-roots` or `ClientBuilder::ca_certificate`.
//!
//! # Standards
//!
#![doc = include_str!("standards.md")]
// Set here rather than in `Cargo.toml`, because tests and examples may use `unwrap`.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod auth;
mod backoff;
mod builder;
mod cancel;
mod client;
mod deadline;
#[cfg(feature = "emulator")]
pub mod emulator;
mod expiry;
// The doctests of the guides need the emulator.
#[cfg(all(doc, any(not(doctest), feature = "emulator")))]
pub mod guide;
mod list;
#[cfg(feature = "opentelemetry")]
mod metrics;
mod operation;
mod poll;
mod propagation;
pub mod proto;
mod rate;
mod recorder;
mod request;
mod retry;
mod set;
mod stats;
mod status;
mod task;
mod trace;
mod transport;

#[cfg(feature = "opentelemetry")]
pub use self::metrics::OpenTelemetryRecorder;
pub use self::{
    auth::{AuthInterceptor, CallCredentials, Credentials, Token, TokenStatus},
    builder::ClientBuilder,
    cancel::{CancelOperations, CancelOutcome, CancelReport, CancelStats},
    client::{BoxGrpcStack, GrpcStack, OperationsClient},
    list::OperationStream,
    operation::{Operation, Outcome, location},
    poll::{CancelOnDrop, PollPolicy, Poller},
    recorder::{
        AttemptEnded, AttemptStarted, CallEnded, OperationDone, OutcomeKind, PollEnded, PollMethod,
        Recorder,
    },
    retry::{AttemptTimeout, RetryPolicy, ThrottleStats},
    set::{OperationSet, SetEntry, SetStats},
    stats::{Stats, StatsSource},
    status::{CallStatusExt, Delivery, Origin, StatusReport},
    transport::{
        ConnectionStats, ResponseBody, ResponseFuture, Transport, TransportStats, TransportTotals,
    },
};
