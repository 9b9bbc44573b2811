//! The deadline of a call, which its client sends along.

use std::time::Duration;

use tonic::metadata::MetadataMap;

use crate::deadline::timeout_in;

/// Returns the time that a client allows; `None` also for one that cannot be read.
pub(super) fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    timeout_in(metadata.as_ref()).ok().flatten()
}

/// Returns by when the server has to answer, so that the answer comes in time.
pub(super) fn to_answer(timeout: Duration) -> Duration {
    timeout - (timeout / 5).min(LONGEST_MARGIN)
}

const LONGEST_MARGIN: Duration = Duration::from_millis(500);
