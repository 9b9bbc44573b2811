//! Calls per second by concurrency, and goodput by offered load, as tables and a chart.

mod chart;

use std::{fs, path::PathBuf, time::Duration};

use self::chart::{Line, Panel};
use crate::{
    Result,
    plan::{Length, Plan},
    record::middle,
    rounds::Rounds,
    variants::NAMES,
};

const CONCURRENCY: [usize; 7] = [1, 4, 16, 64, 256, 1_000, 4_000];
/// The variants that are measured under open-loop load.
const OPEN_LOOP: [&str; 3] = ["raw tonic stub", "longrunning", "grpc-go"];
/// The offered loads for a server without a stream limit, in calls per second.
const UNLIMITED: [usize; 9] = [
    20_000, 40_000, 60_000, 80_000, 100_000, 120_000, 140_000, 160_000, 200_000,
];
/// The offered loads for a server with a stream limit, in calls per second.
const LIMITED: [usize; 8] = [
    2_500, 5_000, 10_000, 20_000, 40_000, 60_000, 80_000, 100_000,
];

/// Prints the tables, and writes the chart to the path in `svg=`, if set. Other options are `rounds=` and `millis=`; all
/// other arguments are variants.
pub(crate) fn run(arguments: &[String]) -> Result {
    let mut rounds = 3;
    let mut time = Duration::from_secs(1);
    let mut path = None;
    let mut chosen = Vec::new();
    for argument in arguments {
        match argument.split_once('=') {
            Some(("rounds", value)) => rounds = value.parse()?,
            Some(("millis", value)) => time = Duration::from_millis(value.parse()?),
            Some(("svg", value)) => path = Some(PathBuf::from(value)),
            _ => chosen.push(argument.as_str()),
        }
    }
    let is_chosen = |name: &&str| chosen.is_empty() || chosen.contains(name);
    let names: Vec<_> = NAMES.into_iter().filter(is_chosen).collect();
    let base = Plan {
        length: Length::Time(time),
        ..Plan::default()
    };
    println!("Medians of {rounds} interleaved rounds, each with one thread.\n");

    let at = |concurrency| Plan {
        concurrency,
        ..base.clone()
    };
    let measured = CONCURRENCY.map(|load| (load, Rounds::run(at(load), rounds, &names)));
    print_rates(&names, &measured);
    let rates = Panel {
        title: "Calls per second by concurrency".to_owned(),
        x: "calls in flight (log scale)",
        y: "calls/s",
        is_log: true,
        has_ideal: false,
        lines: lines(&names, &measured, "rate"),
    };

    let names: Vec<_> = OPEN_LOOP.into_iter().filter(is_chosen).collect();
    let goodput = |server: &str, plan: &Plan, loads: &[usize]| {
        let at = |offered| Plan {
            offered,
            ..plan.clone()
        };
        let load = |&load| (load, Rounds::run(at(load), rounds, &names));
        let measured: Vec<_> = loads.iter().map(load).collect();
        print_goodput(server, &names, &measured);
        Panel {
            title: format!("Goodput by offered load, {server}"),
            x: "calls that become due per second",
            y: "calls/s that succeed within 100 ms",
            is_log: false,
            has_ideal: true,
            lines: lines(&names, &measured, "goodput"),
        }
    };
    let unlimited = goodput("no stream limit", &base, &UNLIMITED);
    let limited = Plan {
        delay: Duration::from_millis(10),
        streams: 100,
        ..base.clone()
    };
    let server = "100 streams per connection, answers after 10 ms";
    let limited = goodput(server, &limited, &LIMITED);
    if let Some(path) = path {
        fs::write(path, chart::svg(&[rates, unlimited, limited])?)?;
    }
    Ok(())
}

/// Prints a row for each variant, with its calls per second at each concurrency.
fn print_rates(names: &[&str], measured: &[(usize, Rounds<'_>)]) {
    let columns = measured.iter().map(|(load, _)| format!(" {load} |"));
    let columns: String = columns.collect();
    println!("| calls/s, by calls in flight |{columns}");
    println!("|---|{}", "--:|".repeat(measured.len()));
    for name in names {
        let cells = measured.iter().map(|(_, it)| cell(it, name, &["rate"]));
        println!("| {name} |{}", cells.collect::<String>());
    }
    print_errors(names, measured);
}

/// Prints a row for each offered load, with the outcomes of the calls of each variant.
fn print_goodput(server: &str, names: &[&str], measured: &[(usize, Rounds<'_>)]) {
    println!("\nGood / refused / late calls per second, {server}:\n");
    println!("| calls/s offered | {} |", names.join(" | "));
    println!("|--:|{}", "--:|".repeat(names.len()));
    for (load, rounds) in measured {
        let cells = names
            .iter()
            .map(|name| cell(rounds, name, &["goodput", "refused", "late"]));
        println!("| {load} |{}", cells.collect::<String>());
    }
    print_errors(names, measured);
}

fn cell(rounds: &Rounds<'_>, name: &str, keys: &[&str]) -> String {
    let figures = keys.iter().filter_map(|key| figure(rounds, name, key));
    let figures: Vec<_> = figures.map(|figure| format!("{figure:.0}")).collect();
    if figures.is_empty() {
        return " - |".to_owned();
    }
    format!(" {} |", figures.join(" / "))
}

/// Prints the first error of each variant that failed.
fn print_errors(names: &[&str], measured: &[(usize, Rounds<'_>)]) {
    for name in names {
        let first = measured.iter().find_map(|(load, rounds)| {
            let error = rounds.records(name)?.as_ref().err()?;
            Some((load, error))
        });
        if let Some((load, error)) = first {
            println!("\n{name} failed at a load of {load}: {error}.");
        }
    }
}

/// Returns the line of each variant in the chart.
fn lines<'a>(names: &[&'a str], measured: &[(usize, Rounds<'_>)], key: &str) -> Vec<Line<'a>> {
    let line = |name: &&'a str| Line {
        name,
        points: measured
            .iter()
            .filter_map(|(load, rounds)| Some((*load as f64, figure(rounds, name, key)?)))
            .collect(),
    };
    names.iter().map(line).collect()
}

/// Returns the median of a figure; `None` if it was not measured.
fn figure(rounds: &Rounds<'_>, name: &str, key: &str) -> Option<f64> {
    let records = rounds.records(name)?.as_ref().ok()?;
    let median = middle(records, key);
    median.is_finite().then_some(median)
}
