//! A client of `google.longrunning.Operations` over gRPC.

mod builder;
mod client;
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
