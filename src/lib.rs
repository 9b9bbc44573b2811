//! A client of `google.longrunning.Operations` over gRPC.

mod client;
mod operation;
pub mod proto;
mod status;

pub use self::{
    client::{OperationsClient, Stack},
    operation::{Operation, Outcome},
    status::{Origin, StatusExt},
};
