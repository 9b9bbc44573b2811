//! Parent: the operations of a set under one parent, and how they are polled.

use std::{sync::Arc, time::Duration, vec};

use tokio::time::Instant;

use crate::{list::Tokens, operation::Operation};

/// The operations under one parent.
#[derive(Debug)]
pub(super) struct Parent {
    /// The name under which the server lists the operations.
    pub(super) name: Arc<str>,
    /// The keys of the operations that are not done.
    pub(super) members: Vec<u32>,
    pub(super) mode: Mode,
    /// When the parent is next due: for the next page, or to try List again.
    pub(super) due: Option<Instant>,
}

/// How the operations under a parent are polled.
#[derive(Debug)]
pub(super) enum Mode {
    /// Each with its own GetOperation.
    Get {
        /// The number of members from which List is tried.
        list_from: usize,
    },
    /// All with ListOperations.
    List(Box<Listing>),
}

/// Repeated sweeps over the list of a parent. A sweep reads all pages once.
#[derive(Debug)]
pub(super) struct Listing {
    /// The number of the current or last sweep, unique within the set.
    pub(super) sweep_id: u32,
    pub(super) sweep: Option<Sweep>,
    /// When the last sweep started.
    pub(super) started: Instant,
    /// The mean over the members of the rate at which each is to be polled, in polls per second.
    pub(super) poll_rate: f64,
    /// The delay between two pages.
    pub(super) page_delay: Duration,
    pub(super) page_size: i32,
    /// Whether the sweeps request only operations that are not done.
    pub(super) is_filtered: bool,
    /// If sweeps are filtered: when the cost of an unfiltered sweep is measured again. Otherwise: the earliest time at
    /// which the filter is tried.
    pub(super) filter_until: Instant,
    /// The number of pages of the last sweep.
    pub(super) pages: usize,
    /// The number of operations that are polled before the next sweep.
    pub(super) early_polls: usize,
    /// The number of pages of the last unfiltered sweep.
    pub(super) unfiltered_pages: usize,
}

/// A sweep in progress.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    pub(super) is_filtered: bool,
    pub(super) is_in_flight: bool,
    /// Whether it was restarted because the server rejected a page token.
    pub(super) was_restarted: bool,
    /// The token of the next page.
    pub(super) token: String,
    pub(super) tokens: Tokens,
    /// The operations of the last page that have not been processed yet.
    pub(super) page: vec::IntoIter<Operation>,
    pub(super) pages: usize,
    /// The number of listed operations, with those that are not in the set.
    pub(super) listed: usize,
    pub(super) listed_done: usize,
    /// The number of operations of the set that this sweep found done.
    pub(super) delivered: usize,
    /// The number of consecutive failures.
    pub(super) failures: u32,
    /// The number of consecutive quota rejections.
    pub(super) rejections: u32,
    pub(super) probe: Probe,
}

/// A Get that finds out whether only List fails, or the server is unavailable.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Probe {
    /// List does not fail repeatedly.
    #[default]
    None,
    Started,
    /// The server has answered the Get.
    Answered,
}

impl Parent {
    pub(super) fn new(name: Arc<str>, list_from: usize) -> Self {
        Self {
            name,
            members: Vec::new(),
            mode: Mode::Get { list_from },
            due: None,
        }
    }

    pub(super) fn listing(&mut self) -> Option<&mut Listing> {
        match &mut self.mode {
            Mode::List(listing) => Some(listing),
            Mode::Get { .. } => None,
        }
    }

    pub(super) fn sweep(&mut self) -> Option<&mut Sweep> {
        self.listing()?.sweep.as_mut()
    }

    /// Returns whether List fails, and a Get has not found out yet whether only List does.
    pub(super) fn is_probed(&mut self) -> bool {
        self.sweep()
            .is_some_and(|sweep| sweep.probe == Probe::Started)
    }
}

impl Listing {
    pub(super) fn new(now: Instant, poll_rate: f64) -> Self {
        Self {
            sweep_id: 0,
            sweep: None,
            started: now,
            poll_rate,
            page_delay: Duration::ZERO,
            page_size: MAX_PAGE_SIZE,
            is_filtered: false,
            filter_until: now,
            pages: 0,
            early_polls: 0,
            unfiltered_pages: 0,
        }
    }

    /// Returns when the next sweep is due, if each member is polled at the mean rate.
    pub(super) fn next_sweep(&self, jitter: f64) -> Instant {
        self.started + Duration::from_secs_f64(jitter / self.poll_rate)
    }

    /// Chooses whether the next sweep is filtered, from the cost of the last one.
    pub(super) fn choose_filter(&mut self, sweep: &Sweep, absent: usize, now: Instant) {
        if !sweep.is_filtered {
            self.unfiltered_pages = sweep.pages;
            // Each operation that becomes done would need a Get.
            let running = (sweep.listed - sweep.listed_done) as f64;
            let pages = sweep.pages as f64 * running / sweep.listed.max(1) as f64;
            let filtered = pages.ceil() + sweep.delivered as f64;
            let is_worth_it = filtered < MAX_FILTERED_SHARE * sweep.pages as f64;
            if is_worth_it && now >= self.filter_until {
                self.is_filtered = true;
                self.filter_until = now + RETRY_LIST;
            }
        } else if sweep.listed_done > 0 || sweep.pages + absent >= self.unfiltered_pages {
            self.reject_filter(now);
        } else if now >= self.filter_until {
            // Measure an unfiltered sweep again.
            self.is_filtered = false;
        }
    }

    pub(super) fn reject_filter(&mut self, now: Instant) {
        self.is_filtered = false;
        self.filter_until = now + RETRY_LIST;
    }
}

/// Returns the parent of an operation, which ListOperations takes, or `None` if the name does not contain it.
///
/// `projects/p/operations/1` has the parent `projects/p`, and `operations/1` is in the top-level collection
/// `operations`.
pub(super) fn parent_of(name: &str) -> Option<&str> {
    const COLLECTION: &str = "operations";
    let (rest, id) = name.rsplit_once('/')?;
    let parent = rest.strip_suffix(COLLECTION)?;
    if id.is_empty() {
        return None;
    }
    if parent.is_empty() {
        return Some(COLLECTION);
    }
    parent.strip_suffix('/').filter(|parent| !parent.is_empty())
}

/// The requested page size, and the maximum that [AIP-158](https://google.aip.dev/158) servers usually allow.
const MAX_PAGE_SIZE: i32 = 1000;

/// The time for which ListOperations, or the filter, is not used after the server rejected it or it needed too many
/// calls.
pub(super) const RETRY_LIST: Duration = Duration::from_secs(600);

/// The share of the calls of an unfiltered sweep below which a filtered one is tried.
const MAX_FILTERED_SHARE: f64 = 0.7;

/// The number of consecutive failures of List after which a Get finds out whether only List fails.
pub(super) const MAX_LIST_FAILURES: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_the_name_before_the_collection() {
        let table = [
            (
                "projects/p/locations/l/operations/1",
                Some("projects/p/locations/l"),
            ),
            ("operations/1", Some("operations")),
            ("a/operations/b/operations/1", Some("a/operations/b")),
            ("operations/", None),
            ("operations", None),
            ("/operations/1", None),
            ("projects/p/operations/1/2", None),
            ("projects/p/myoperations/1", None),
            ("projects/p/jobs/1", None),
            ("1", None),
            ("", None),
        ];
        for (name, parent) in table {
            assert_eq!(parent_of(name), parent, "{name:?}");
        }
    }
}
