//! A client of `google.longrunning.Operations` over gRPC.

mod client;
#[cfg(feature = "emulator")]
pub mod emulator;
mod operation;
pub mod proto;
mod status;

pub use self::{
    client::{OperationsClient, Stack},
    operation::{Operation, Outcome},
    status::{Origin, StatusExt},
};
