//! A client of `google.longrunning.Operations` over gRPC.

mod backoff;
mod cancel;
mod client;
#[cfg(feature = "emulator")]
pub mod emulator;
mod list;
mod operation;
mod poll;
pub mod proto;
mod status;

pub use self::{
    cancel::{CancelOperations, CancelOutcome},
    client::{OperationsClient, Stack},
    list::Operations,
    operation::{Operation, Outcome},
    poll::{PollPolicy, Poller},
    status::{Origin, StatusExt},
};
