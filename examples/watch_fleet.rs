//! Watches 10,000 operations on an emulator. When half of them are done, saves the others to a journal, loads them into
//! another set, and watches that set until all are done.
//!
//!     cargo run --example watch_fleet

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use indicatif::ProgressBar;
use longrunning::{
    CallStatusExt as _, OperationSet, OperationsClient, Outcome, SetEntry, emulator::Emulator,
};
const OPERATIONS: usize = 10_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let emulator = Emulator::start().await?;
    let client = OperationsClient::builder(emulator.endpoint())
        .connect()
        .await?;
    let set = client
        .operation_set()
        .max_delivery_delay(Duration::from_secs(2));
    for n in 0..OPERATIONS {
        let name = emulator.start_operation_in("projects/p/locations/l").name;
        let duration = Duration::from_millis(500 * (n as u64 % 20));
        emulator.complete_after(&name, &(), duration)?;
        set.insert(name);
    }
    let begun = Instant::now();
    watch(&set, OPERATIONS / 2).await;

    // Hand the remaining operations over to another set, which could be in another process.
    let journal = std::env::temp_dir().join(format!("watch_fleet-{}.txt", std::process::id()));
    save(&set, &journal)?;
    drop(set);
    let set = client
        .operation_set()
        .max_delivery_delay(Duration::from_secs(2));
    load(&set, &journal)?;
    fs::remove_file(journal)?;
    println!("{} operations continue", set.len());
    watch(&set, usize::MAX).await;
    let (calls, seconds) = (emulator.calls().len(), begun.elapsed().as_secs_f64());
    println!("{calls} calls in {seconds:.1} seconds");
    Ok(())
}

/// Takes results until the set is empty, or the maximum number is reached.
async fn watch(set: &OperationSet, max: usize) {
    let bar = ProgressBar::new(set.len() as u64);
    let mut counts = BTreeMap::<_, u64>::new();
    for _ in 0..max {
        let Some((_name, result)) = set.next().await else {
            break;
        };
        let outcome = match &result {
            Ok(operation) => match operation.outcome() {
                Outcome::Succeeded => "succeeded",
                Outcome::Cancelled(_) => "cancelled",
                Outcome::Failed(_) => "failed",
                _ => "done without a result",
            },
            Err(status) => status.code_name(),
        };
        *counts.entry(outcome).or_default() += 1;
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("{counts:?}, {:?}", set.stats());
}

/// Writes a line for each operation: its name, its age in seconds, and the number of polls.
fn save(set: &OperationSet, journal: &Path) -> Result<(), Box<dyn Error>> {
    let mut lines = String::new();
    for entry in set.iter() {
        let age = entry.inserted_at.elapsed().unwrap_or_default().as_secs();
        lines += &format!("{}\t{age}\t{}\n", entry.name, entry.attempts);
    }
    Ok(fs::write(journal, lines)?)
}

fn load(set: &OperationSet, journal: &Path) -> Result<(), Box<dyn Error>> {
    for line in fs::read_to_string(journal)?.lines() {
        let columns: Vec<_> = line.split('\t').collect();
        let [name, age, attempts] = columns[..] else {
            return Err(format!(
                "invalid journal line {line:?}: expected name, age and attempts, separated by tabs"
            )
            .into());
        };
        let mut entry = SetEntry::new(name);
        entry.inserted_at = SystemTime::now() - Duration::from_secs(age.parse()?);
        entry.attempts = attempts.parse()?;
        set.insert(entry);
    }
    Ok(())
}
