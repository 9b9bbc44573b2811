//! Guides to common tasks, testing, observability, tuning, and migration from other clients. These modules contain only
//! documentation.

#[doc = include_str!("guide/testing.md")]
pub mod testing {}

#[doc = include_str!("guide/observability.md")]
pub mod observability {}

#[doc = include_str!("guide/patterns.md")]
pub mod patterns {}

#[doc = include_str!("guide/tuning.md")]
pub mod tuning {}

#[doc = include_str!("guide/from_tonic.md")]
pub mod from_tonic {}

#[doc = include_str!("guide/from_google_cloud_longrunning.md")]
pub mod from_google_cloud_longrunning {}

#[doc = include_str!("guide/from_gcloud_longrunning.md")]
pub mod from_gcloud_longrunning {}
