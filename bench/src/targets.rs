//! Targets for the figures, and the figures in which a peer is ahead.

use std::collections::BTreeMap;

use crate::{record::middle, rounds::Rounds};

const OURS: &str = "longrunning";
const RAW: &str = "raw tonic stub";
const FLOOR: &str = "h2 alone";
const PEERS: [&str; 4] = [
    "gcloud-longrunning",
    "google-cloud-longrunning",
    "google-api-core",
    "grpc-go",
];

/// A bound on a figure under one load.
struct Target {
    load: &'static str,
    key: &'static str,
    /// The variant to compare with, or `None` for an absolute bound.
    compared_to: Option<&'static str>,
    bound: Bound,
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

const LIMITED: &str = "1000 in flight, answers after 10ms, 100 streams";

const TARGETS: [Target; 8] = [
    at_most("64 in flight", "allocations", None, 19.0),
    at_most("64 in flight", "allocated", None, 4_096.0),
    at_most("64 in flight", "sent", Some(RAW), 1.02),
    at_most("1000 in flight", "cpu", Some(RAW), 0.8),
    at_most("1000 in flight", "cpu", Some(FLOOR), 1.1),
    at_most("1000 in flight, 2 threads", "cpu", Some(FLOOR), 1.0),
    Target {
        load: LIMITED,
        key: "rate",
        compared_to: Some(RAW),
        bound: Bound::AtLeast(3.5),
    },
    at_most(IN_FLIGHT, "in_flight", None, 6.0 * 1024.0),
];

/// The load under which memory is measured.
const IN_FLIGHT: &str = "1000 in flight, answers after 2s";

const fn at_most(
    load: &'static str,
    key: &'static str,
    compared_to: Option<&'static str>,
    most: f64,
) -> Target {
    Target {
        load,
        key,
        compared_to,
        bound: Bound::AtMost(most),
    }
}

/// Prints each target with the measured value, then the figures in which a peer is ahead.
pub(crate) fn print(loads: &[Rounds<'_>], memory: &Rounds<'_>) {
    println!("\n| load | figure | measured | target | result |");
    println!("|---|---|--:|--:|---|");
    for target in &TARGETS {
        let mut rounds = loads.iter().chain([memory]);
        let rounds = rounds.find(|found| found.plan.to_string() == target.load);
        let Some(measured) = rounds.and_then(|found| target.measured(found)) else {
            continue; // it was not measured
        };
        target.print(measured);
    }
    for key in ["p99", "p999"] {
        for found in loads {
            if let Some(ratio) = found.ratio_to(OURS, RAW, key).filter(|ratio| *ratio > 1.0) {
                println!(
                    "| {} | {key} | {ratio:.2} × {RAW} | at most 1 | missed |",
                    found.plan
                );
            }
        }
    }
    println!();
    print_behind(loads, memory);
}

impl Target {
    fn measured(&self, found: &Rounds<'_>) -> Option<f64> {
        match self.compared_to {
            Some(other) => found.ratio_to(OURS, other, self.key),
            None => Some(middle(found.records(OURS)?.as_ref().ok()?, self.key)),
        }
    }

    fn print(&self, measured: f64) {
        let (is_met, target) = match self.bound {
            Bound::AtMost(most) => (measured <= most, format!("at most {most}")),
            Bound::AtLeast(least) => (measured >= least, format!("at least {least}")),
        };
        let compared_to = self.compared_to.map(|other| format!(" × {other}"));
        let (compared_to, verdict) = (
            compared_to.unwrap_or_default(),
            if is_met { "met" } else { "missed" },
        );
        let (load, key) = (self.load, self.key);
        println!("| {load} | {key} | {measured:.2}{compared_to} | {target} | {verdict} |");
    }
}

/// Prints the figures in which a peer is ahead, with the worst ratio.
fn print_behind(loads: &[Rounds<'_>], memory: &Rounds<'_>) {
    const LESS_IS_BETTER: [&str; 9] = [
        "cpu",
        "p50",
        "p99",
        "p999",
        "allocations",
        "allocated",
        "sent",
        "idle",
        "in_flight",
    ];
    let mut behind = BTreeMap::<_, Vec<(f64, String)>>::new();
    for found in loads.iter().chain([memory]) {
        for peer in PEERS {
            let rate = found.ratio_to(peer, OURS, "rate");
            let rate = rate.map(|ratio| ("rate", ratio));
            let others = LESS_IS_BETTER
                .into_iter()
                .filter_map(|key| Some((key, found.ratio_to(OURS, peer, key)?)));
            for (key, ratio) in rate.into_iter().chain(others) {
                if ratio > 1.0 {
                    let rows = behind.entry((peer, key)).or_default();
                    rows.push((ratio, found.plan.to_string()));
                }
            }
        }
    }
    if behind.is_empty() {
        println!("No peer is ahead of longrunning in any row.");
        return;
    }
    println!("| peer ahead of longrunning | figure | loads | worst ratio | load |");
    println!("|---|---|--:|--:|---|");
    for ((peer, key), mut rows) in behind {
        rows.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        let (ratio, load) = &rows[0];
        println!("| {peer} | {key} | {} | {ratio:.2} | {load} |", rows.len());
    }
}
