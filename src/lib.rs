//! A client of `google.longrunning.Operations` over gRPC.

#[cfg(feature = "emulator")]
pub mod emulator;
pub mod proto;
mod status;

pub use self::status::{Origin, StatusExt};
