//! Instructions a call, as callgrind counts them: the same on a busy machine as on an idle one.

use std::process::Command;

use crate::{
    Result,
    plan::{Length, Plan},
    programs,
    record::Record,
    variants::NAMES,
};

/// The difference of two runs that differ in their calls only.
const FEW: usize = 1_024;
const MANY: usize = 5_120;

/// Prints the table. The arguments are variants; by default, all that are written in Rust.
pub(crate) fn run(arguments: &[String]) -> Result {
    let is_rust = |name: &&&str| programs::find(name).is_none_or(|program| !program.is_foreign);
    let all = NAMES.iter().filter(is_rust);
    let names: Vec<String> = match arguments {
        [] => all.map(ToString::to_string).collect(),
        some => some.to_vec(),
    };
    let loads = [1, 64].map(|concurrency| Plan {
        concurrency,
        ..Plan::default()
    });
    println!("Instructions a call of the client, and their ratio to the first line's.\n");
    println!("| variant | 1 in flight | | 64 in flight | |");
    println!("|---|--:|--:|--:|--:|");
    let mut baseline = [f64::NAN; 2];
    for name in names {
        let mut line = format!("| {name} |");
        for (plan, baseline) in loads.iter().zip(&mut baseline) {
            match instructions(&name, plan) {
                Ok(count) => {
                    if baseline.is_nan() {
                        *baseline = count;
                    }
                    line += &format!(" {count:.0} | {:.3} |", count / *baseline);
                }
                Err(error) => line += &format!(" {error} | |"),
            }
        }
        println!("{line}");
    }
    Ok(())
}

/// Prints a line for each variant, separated by tabs: its name, its instructions per call with 1 and with 64 calls
/// in flight, and its allocations per call.
pub(crate) fn costs(names: &[String]) -> Result {
    let plan = |concurrency| Plan {
        concurrency,
        ..Plan::default()
    };
    for name in names {
        let (one, many) = (
            instructions(name, &plan(1))?,
            instructions(name, &plan(64))?,
        );
        let allocations = allocations(name, &plan(1))?;
        println!("{name}\t{one:.0}\t{many:.0}\t{allocations:.1}");
    }
    Ok(())
}

fn allocations(name: &str, plan: &Plan) -> Result<f64> {
    let plan = Plan {
        length: Length::Calls(MANY),
        ..plan.clone()
    };
    let (program, arguments) = programs::command(name)?;
    let mut client = Command::new(program);
    let output = client.args(arguments).args(plan.arguments()).output()?;
    let record = Record::parse(&String::from_utf8_lossy(&output.stdout));
    Ok(record.get("allocations").ok_or("nothing was measured")?)
}

fn instructions(name: &str, plan: &Plan) -> Result<f64> {
    let count = |calls| {
        let plan = Plan {
            length: Length::Calls(calls),
            ..plan.clone()
        };
        collected(name, &plan)
    };
    Ok((count(MANY)? - count(FEW)?) / (MANY - FEW) as f64)
}

/// Runs a client under callgrind. The server is a process of its own, and is not counted.
fn collected(name: &str, plan: &Plan) -> Result<f64> {
    let (program, arguments) = programs::command(name)?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(arguments)
        .args(plan.arguments())
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(text.lines().last().unwrap_or("it failed").into());
    }
    let collected = text
        .lines()
        .find_map(|line| line.split_once("Collected : ").map(|(_, count)| count));
    Ok(collected
        .ok_or("callgrind counted nothing")?
        .trim()
        .parse()?)
}
