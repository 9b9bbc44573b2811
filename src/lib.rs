//! A client of `google.longrunning.Operations` over gRPC.

mod auth;
mod client;
mod operation;
pub mod proto;
mod status;

pub use self::{
    auth::{AuthInterceptor, CallCredentials, Credentials, Token},
    client::{OperationsClient, Stack},
    operation::{Operation, Outcome},
    status::{Origin, StatusExt},
};
