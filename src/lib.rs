//! A client of `google.longrunning.Operations` over gRPC.

pub mod proto;
mod status;

pub use self::status::{Origin, StatusExt};
