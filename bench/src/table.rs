//! The table: all variants beside each other, in rounds.

use std::time::Duration;

use crate::{
    Result,
    plan::{Length, Plan},
    programs,
    record::{Record, middle},
    rounds::{Rounds, measure},
    targets,
    variants::NAMES,
};

/// What the machine may be doing besides hits all variants of a round alike, and not every round.
const ROUNDS: usize = 5;

/// The title of each column, the figure that stands there, and its unit.
const COLUMNS: [(&str, &str, f64); 8] = [
    ("calls/s", "rate", 1.0),
    ("CPU a call, us", "cpu", 1.0),
    ("p50, ms", "p50", 1e3),
    ("p99, ms", "p99", 1e3),
    ("p99.9, ms", "p999", 1e3),
    ("allocations a call", "allocations", 1.0),
    ("bytes allocated a call", "allocated", 1.0),
    ("bytes sent a call", "sent", 1.0),
];

/// Prints the table. `rounds=` and `millis=` may be given; other arguments are the variants.
pub(crate) fn run(arguments: &[String]) -> Result {
    let mut rounds = ROUNDS;
    let mut time = Duration::from_secs(1);
    let mut names = Vec::new();
    for argument in arguments {
        match argument.split_once('=') {
            Some(("rounds", value)) => rounds = value.parse()?,
            Some(("millis", value)) => time = Duration::from_millis(value.parse()?),
            _ => names.push(argument.as_str()),
        }
    }
    if names.is_empty() {
        names.extend(NAMES);
    }
    println!(
        "Medians of {rounds} interleaved rounds. In parentheses: the ratio to the first variant, taken \
         within each round.\n"
    );
    let columns = COLUMNS.map(|(title, ..)| format!(" {title} |")).concat();
    println!("| load | variant |{columns}");
    println!("|---|---|{}", "--:|".repeat(COLUMNS.len()));
    let loads: Vec<_> = plans(time)
        .into_iter()
        .map(|plan| {
            let load = Rounds::run(plan, rounds, &names);
            print(&load);
            load
        })
        .collect();
    bulk(&names, rounds);
    let memory = memory(&names, rounds);
    targets::print(&loads, &memory);
    Ok(())
}

/// Prints a line for each variant under a load.
fn print(load: &Rounds<'_>) {
    let plan = &load.plan;
    for (name, found) in &load.found {
        let records = match found {
            Ok(records) => records,
            Err(error) => {
                println!(
                    "| {plan} | {name} | {error} |{}",
                    " |".repeat(COLUMNS.len() - 1)
                );
                continue;
            }
        };
        let cells = COLUMNS.map(|(_, key, unit)| {
            let figure = number(middle(records, key) / unit);
            match load.ratio(name, key) {
                Some(ratio) => format!(" {figure} ({ratio:.2}) |"),
                None => format!(" {figure} |"),
            }
        });
        let note = match middle(records, "server_cpu") > middle(records, "cpu") {
            true => " (the server used more CPU)",
            false => "",
        };
        println!("| {plan} | {name}{note} |{}", cells.concat());
    }
}

/// Prints what it takes to cancel very many operations.
fn bulk(names: &[&str], rounds: usize) {
    const NAMES: usize = 100_000;
    let plan = Plan {
        concurrency: 256,
        length: Length::Bulk(NAMES),
        ..Plan::default()
    };
    println!(
        "\n| {NAMES} operations, 256 at a time | seconds | CPU seconds | allocations a call |"
    );
    println!("|---|--:|--:|--:|");
    let has_bulk = |name: &&&str| programs::find(name).is_none_or(|program| program.has_bulk);
    for name in names.iter().filter(has_bulk) {
        let found = (0..rounds.min(3)).map(|_| measure(name, &plan));
        match found.collect::<Result<Vec<_>>>() {
            Ok(found) => println!(
                "| {name} | {} | {} | {} |",
                number(NAMES as f64 / middle(&found, "rate")),
                number(NAMES as f64 * middle(&found, "cpu") / 1e6),
                number(middle(&found, "allocations")),
            ),
            Err(error) => println!("| {name} | {error} | | |"),
        }
    }
}

/// Prints what a client keeps in memory.
fn memory<'a>(names: &[&'a str], rounds: usize) -> Rounds<'a> {
    let plan = Plan {
        concurrency: 1_000,
        delay: Duration::from_secs(2),
        length: Length::Memory,
        ..Plan::default()
    };
    let memory = Rounds::run(plan, rounds.min(3), names);
    println!(
        "\n| memory | idle client, KiB | with the pages of its program, KiB | a call in flight, KiB |"
    );
    println!("|---|--:|--:|--:|");
    let kib = |found: &[Record], key| number(middle(found, key) / 1024.0);
    for (name, found) in &memory.found {
        match found {
            Ok(found) => println!(
                "| {name} | {} | {} | {} |",
                kib(found, "idle"),
                kib(found, "idle_all"),
                kib(found, "in_flight")
            ),
            Err(error) => println!("| {name} | {error} | | |"),
        }
    }
    memory
}

fn plans(time: Duration) -> Vec<Plan> {
    let base = Plan {
        length: Length::Time(time),
        ..Plan::default()
    };
    let at = |concurrency| Plan {
        concurrency,
        ..base.clone()
    };
    let slow = |concurrency, streams| Plan {
        delay: Duration::from_millis(10),
        streams,
        ..at(concurrency)
    };
    let on = |threads, plan| Plan { threads, ..plan };
    let tls = |plan| Plan { tls: true, ..plan };
    vec![
        at(1),
        at(64),
        at(256),
        at(1_000),
        on(2, at(64)),
        on(2, at(1_000)),
        tls(at(64)),
        tls(at(1_000)),
        slow(1_000, 100),
        slow(200, 10),
    ]
}

/// With three digits that count.
fn number(value: f64) -> String {
    match value {
        _ if value.is_nan() => "-".to_owned(),
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
