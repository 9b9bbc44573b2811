//! Statistics of a set.

/// Statistics of an [`OperationSet`](super::OperationSet), returned by
/// [`OperationSet::stats`](super::OperationSet::stats).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SetStats {
    /// The number of operations in the set, including those whose result has not been taken.
    pub len: usize,
    /// The number of results that have not been taken.
    pub untaken: usize,
    /// The number of calls in flight.
    pub in_flight: usize,
    /// The number of parents whose operations are polled with `ListOperations`.
    pub listed_parents: usize,
    /// The number of operations under these parents that are not known to be done.
    pub listed_operations: usize,
    /// The total number of results, whether or not they have been taken.
    pub results: u64,
    /// The total number of `ListOperations` calls that have ended. Each returns a page.
    pub list_calls: u64,
    /// The total number of `GetOperation` calls that have ended.
    pub get_calls: u64,
    /// The total number of `WaitOperation` calls that have ended.
    pub wait_calls: u64,
    /// The total number of calls that failed with a transient failure, such as `UNAVAILABLE` or a quota rejection.
    pub transient_failures: u64,
    /// The total number of calls that the server rejected because its quota was exceeded.
    pub quota_rejections: u64,
    /// The current rate limit, in calls per second.
    pub rate_limit: f64,
}

/// Totals of the calls of a set.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) results: u64,
    pub(super) list: u64,
    pub(super) get: u64,
    pub(super) wait: u64,
    pub(super) transient_failures: u64,
    pub(super) quota_rejections: u64,
}
