//! What the figures are meant to be, and whether they are.

use crate::rounds::Rounds;

const OURS: &str = "longrunning";
const PEERS: [&str; 3] = [
    "gcloud-longrunning",
    "google-cloud-longrunning",
    "google-api-core",
];

/// A bound of a figure's ratio to the baseline's.
struct Target {
    load: &'static str,
    key: &'static str,
    bound: Bound,
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

const LIMITED: &str = "1000 in flight, answers after 10ms, 100 streams";

const TARGETS: [Target; 6] = [
    at_most("64 in flight", "allocations", 0.9),
    at_most("64 in flight", "allocated", 0.4),
    at_most("64 in flight", "sent", 1.02),
    at_most("1000 in flight", "cpu", 0.8),
    Target {
        load: LIMITED,
        key: "rate",
        bound: Bound::AtLeast(3.5),
    },
    at_most(LIMITED, "p99", 1.0),
];

const fn at_most(load: &'static str, key: &'static str, ratio: f64) -> Target {
    Target {
        load,
        key,
        bound: Bound::AtMost(ratio),
    }
}

/// Prints each target beside what was found, and every row in which a peer is not behind.
pub(crate) fn print(loads: &[Rounds<'_>], memory: &Rounds<'_>) {
    println!("\n| load | figure | ratio to the raw stub | target | |");
    println!("|---|---|--:|--:|---|");
    for Target { load, key, bound } in &TARGETS {
        let rounds = loads.iter().find(|found| found.plan.to_string() == *load);
        let Some(ratio) = rounds.and_then(|found| found.ratio(OURS, key)) else {
            continue; // it was not measured
        };
        let (met, target) = match bound {
            Bound::AtMost(most) => (ratio <= *most, format!("at most {most}")),
            Bound::AtLeast(least) => (ratio >= *least, format!("at least {least}")),
        };
        let verdict = if met { "met" } else { "missed" };
        println!("| {load} | {key} | {ratio:.2} | {target} | {verdict} |");
    }
    let worst = loads
        .iter()
        .filter_map(|found| Some((found.ratio(OURS, "p99")?, &found.plan)))
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    if let Some((ratio, plan)) = worst {
        println!("| {plan} | p99, of all loads the worst | {ratio:.2} | | |");
    }
    println!();
    let rows = loads.iter().chain([memory]);
    let behind: Vec<_> = rows.flat_map(behind).collect();
    match behind.is_empty() {
        true => println!("No peer is ahead of longrunning in any row."),
        false => println!("Ahead of longrunning are: {}.", behind.join("; ")),
    }
}

/// The figures of a load in which a peer is ahead.
fn behind(found: &Rounds<'_>) -> Vec<String> {
    let less = [
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
    let mut behind = Vec::new();
    for peer in PEERS {
        let mut note = |key: &str, ratio: Option<f64>, ahead: fn(f64) -> bool| {
            if let Some(ratio) = ratio.filter(|ratio| ahead(*ratio)) {
                let plan = &found.plan;
                behind.push(format!("{peer}, {plan}, {key} (we have {ratio:.2} of it)"));
            }
        };
        note("rate", found.ratio_to(OURS, peer, "rate"), |ratio| {
            ratio < 1.0
        });
        for key in less {
            note(key, found.ratio_to(OURS, peer, key), |ratio| ratio > 1.0);
        }
    }
    behind
}
