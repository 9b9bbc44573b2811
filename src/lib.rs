//! A client of `google.longrunning.Operations` over gRPC.

mod builder;
mod client;
#[cfg(feature = "emulator")]
pub mod emulator;
mod operation;
pub mod proto;
mod status;
mod transport;

pub use self::{
    builder::{Builder, Endpoint},
    client::{OperationsClient, Stack},
    operation::{Operation, Outcome},
    status::{Origin, StatusExt},
    transport::{ResponseBody, Transport},
};
