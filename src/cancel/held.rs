//! Reports that wait for the outcomes of their operations.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tonic::{Code, Status};

use super::{outcome::CancelOutcome, report::CancelReport};
use crate::{
    client::GrpcStack,
    operation::Operation,
    set::OperationSet,
    status::{Delivery, local, with_delivery},
    task::Task,
};

/// Holds reports until the outcomes of their operations are known.
pub(super) struct HeldReports<S> {
    timeout: Duration,
    deadline: Option<Instant>,
    set: OperationSet<S>,
    held: HashMap<String, Held>,
    /// The number of held reports.
    len: usize,
    /// The held names in the order in which they expire, and some that are no longer held.
    expiries: VecDeque<Expiry>,
    /// The number of expiries so far.
    sequence: u64,
    /// Sleeps until the first of them expires.
    sleep: Option<(Instant, Task<()>)>,
    next: Option<NextResult>,
    ready: VecDeque<CancelReport>,
}

type NextResult =
    Pin<Box<dyn Future<Output = Option<(String, Result<Operation, Status>)>> + Send + Sync>>;

#[derive(Clone)]
struct Expiry {
    at: Instant,
    sequence: u64,
    name: String,
}

struct Held {
    /// The sequence number of its expiry.
    sequence: u64,
    /// More than one if the stream of names contains the name more than once.
    reports: Vec<CancelReport>,
}

impl<S> HeldReports<S> {
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl<S: GrpcStack + Sync> HeldReports<S> {
    pub(super) fn new(set: OperationSet<S>, timeout: Duration, deadline: Option<Instant>) -> Self {
        Self {
            timeout,
            deadline,
            set,
            held: HashMap::new(),
            len: 0,
            expiries: VecDeque::new(),
            sequence: 0,
            sleep: None,
            next: None,
            ready: VecDeque::new(),
        }
    }

    /// Holds a report until the outcome is known.
    pub(super) fn hold(&mut self, report: CancelReport) {
        let expires_at = Instant::now() + self.timeout;
        let expires_at = self
            .deadline
            .map_or(expires_at, |deadline| expires_at.min(deadline));
        let name = report.name.clone();
        self.set.insert(name.as_str());
        self.len += 1;
        let held = self.held.entry(name).or_insert_with_key(|name| {
            self.sequence += 1;
            let sequence = self.sequence;
            self.expiries.push_back(Expiry {
                at: expires_at,
                sequence,
                name: name.clone(),
            });
            Held {
                sequence,
                reports: Vec::new(),
            }
        });
        held.reports.push(report);
        if self.expiries.len() > 2 * self.held.len() + MIN_EXPIRIES {
            let held = &self.held;
            self.expiries.retain(|expiry| is_held(held, expiry));
        }
    }

    /// Returns the next report whose outcome is known, or `None` if no report is held.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<CancelReport>> {
        loop {
            if let Some(report) = self.ready.pop_front() {
                return Poll::Ready(Some(report));
            }
            if self.held.is_empty() {
                self.expiries.clear();
                self.next = None;
                return Poll::Ready(None);
            }
            // Taken, because the panic of a stack is resumed in it.
            let mut next = self.next.take().unwrap_or_else(|| {
                let set = self.set.clone();
                Box::pin(async move { set.next().await })
            });
            match next.as_mut().poll(cx) {
                Poll::Ready(Some((name, result))) => self.release(&name, outcome(result)),
                Poll::Ready(None) => {}
                Poll::Pending => {
                    self.next = Some(next);
                    ready!(self.poll_expired(cx));
                }
            }
        }
    }

    /// Releases the next reports whose time has passed.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(expiry) = self.expiries.front().cloned() {
            if is_held(&self.held, &expiry) {
                let slept = ready!(self.poll_sleep(cx, expiry.at));
                let status = slept.err().unwrap_or_else(|| not_done(&expiry.name));
                self.expiries.pop_front();
                self.set.remove(&expiry.name);
                self.release(&expiry.name, CancelOutcome::Unknown(status));
                return Poll::Ready(());
            }
            self.expiries.pop_front();
        }
        Poll::Pending
    }

    /// Sleeps in a task, which another runtime can replace.
    fn poll_sleep(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<Result<(), Status>> {
        if Instant::now() >= until {
            return Poll::Ready(Ok(()));
        }
        let sleep = self.sleep.take().filter(|(at, _)| *at == until);
        let mut task = sleep.map(|(_, task)| task);
        let slept = Task::poll_in(&mut task, cx, || {
            // Outside a runtime, `sleep_until` panics.
            Task::spawn(async move { sleep_until(until).await })
        });
        self.sleep = task.map(|task| (until, task));
        slept
    }

    fn release(&mut self, name: &str, outcome: CancelOutcome) {
        let held = self.held.remove(name);
        self.len -= held.as_ref().map_or(0, |held| held.reports.len());
        for mut report in held.into_iter().flat_map(|held| held.reports) {
            report.outcome = Some(outcome.clone());
            self.ready.push_back(report);
        }
    }
}

impl<S> fmt::Debug for HeldReports<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldReports")
            .field("timeout", &self.timeout)
            .field("set", &self.set)
            .finish_non_exhaustive()
    }
}

fn is_held(held: &HashMap<String, Held>, expiry: &Expiry) -> bool {
    let held = held.get(&expiry.name);
    held.is_some_and(|held| held.sequence == expiry.sequence)
}

fn outcome(result: Result<Operation, Status>) -> CancelOutcome {
    match result {
        Ok(operation) => CancelOutcome::of(operation),
        Err(status) if status.code() == Code::NotFound => CancelOutcome::NotFound,
        Err(status) => CancelOutcome::Unknown(status),
    }
}

fn not_done(name: &str) -> Status {
    let message = format!(
        "operation {name:?} was not known to be done when the outcome timeout or the deadline passed: set a longer timeout or a later deadline"
    );
    with_delivery(local(Code::DeadlineExceeded, message), Delivery::Answered)
}

/// The number of expiries below which those of names that are no longer held are kept.
const MIN_EXPIRIES: usize = 64;

#[cfg(test)]
mod tests {
    use std::future::pending;

    use http::{Request, Response};
    use tonic::body::Body;
    use tower::service_fn;

    use super::*;
    use crate::{OperationsClient, cancel::report::Attempts};

    #[tokio::test]
    async fn an_operation_that_does_not_end_does_not_keep_the_names_of_the_others() {
        let stack = service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Status>>());
        let set = OperationsClient::new(stack).operation_set();
        let mut held = HeldReports::new(set, Duration::from_secs(3600), None);
        let report = |name: String| Attempts::default().report(name, Ok(()));
        held.hold(report("operations/running".to_owned()));
        for n in 0..10_000 {
            let name = format!("operations/{n}");
            held.hold(report(name.clone()));
            held.release(&name, CancelOutcome::NotFound);
            assert!(held.ready.pop_front().is_some());
        }
        assert_eq!(held.len(), 1);
        assert!(held.expiries.len() < 100, "{}", held.expiries.len());
    }
}
