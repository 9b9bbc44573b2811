//! Cancels all running operations under a parent, at a rate that adapts to the quota of the server. Results are appended
//! to a journal, so that an interrupted run can be resumed.
//!
//!     cargo run --example cancel_all
//!     cargo run --example cancel_all -- --endpoint https://automl.googleapis.com PARENT JOURNAL

use std::{
    collections::{BTreeMap, HashSet},
    env,
    error::Error,
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use indicatif::ProgressBar;
use longrunning::{
    CallStatusExt as _, Credentials, OperationsClient,
    emulator::{CancelBehavior, Emulator, Method},
};
use tokio_stream::StreamExt as _;
use tonic::Status;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = env::args_os().skip(1).collect();
    let args: Option<Vec<&str>> = args.iter().map(|arg| arg.to_str()).collect();
    match args.ok_or("the arguments are not valid UTF-8")?[..] {
        [] => {
            let emulator = Emulator::start().await?;
            emulator.quota(Method::Cancel, 1_000.0);
            let parent = "projects/p/locations/l";
            for _ in 0..3_000 {
                let name = emulator.start_operation_in(parent).name;
                if name.ends_with("00") {
                    let refusal = Status::failed_precondition("not cancellable");
                    emulator.on_cancel_of(name, CancelBehavior::Refuse(refusal));
                }
            }
            let journal = env::temp_dir().join(format!("cancel_all-{}.txt", std::process::id()));
            println!("first run, stopped after 1,000 operations:");
            cancel_all(&emulator.endpoint(), parent, &journal, 1_000).await?;
            println!("second run, resumed from the journal:");
            cancel_all(&emulator.endpoint(), parent, &journal, usize::MAX).await?;
            let lines = fs::read_to_string(&journal)?;
            println!("the last line of the journal: {:?}", lines.lines().last());
            Ok(fs::remove_file(journal)?)
        }
        ["--endpoint", url, parent, journal] => {
            cancel_all(url, parent, Path::new(journal), usize::MAX).await
        }
        _ => Err("usage: cancel_all [--endpoint URL PARENT JOURNAL]".into()),
    }
}

async fn cancel_all(
    endpoint: &str,
    parent: &str,
    journal: &Path,
    limit: usize,
) -> Result<(), Box<dyn Error>> {
    let credentials = match endpoint.starts_with("https:") {
        true => Credentials::application_default(),
        false => Credentials::none(),
    };
    let builder = OperationsClient::builder(endpoint).credentials(credentials);
    let client = builder.connect().await?;

    // Each line of the journal is a name, a result and details. Operations with a final result are skipped.
    let earlier = fs::read_to_string(journal).unwrap_or_default();
    let is_final = |result| matches!(result, "OK" | "NOT_FOUND" | "FAILED_PRECONDITION");
    let columns = earlier.lines().map(|line| line.split('\t'));
    let completed = columns.filter_map(|mut line| {
        let (name, result) = (line.next()?, line.next()?);
        is_final(result).then_some(name)
    });
    let completed: HashSet<&str> = completed.collect();
    let mut journal = File::options().append(true).create(true).open(journal)?;
    if !earlier.is_empty() && !earlier.ends_with('\n') {
        journal.write_all(b"\n")?; // the program was killed within a line
    }

    let mut operations = client.operations(parent);
    let mut failure = None;
    // Not every server supports filters, so the operations are filtered by the client.
    let running = (&mut operations).filter_map(|operation| match operation {
        Ok(operation) => Some(operation).filter(|it| !it.done && !completed.contains(&*it.name)),
        Err(status) => {
            failure = Some(status);
            None
        }
    });
    let mut reports = client.cancel_operations(running.take(limit));
    let mut counts = BTreeMap::<_, u64>::new();
    let bar = ProgressBar::new_spinner();
    while let Some(report) = reports.next().await {
        let result = match &report.result {
            Ok(()) => "OK",
            Err(status) => status.code_name(),
        };
        let (name, attempts, delivery) = (&report.name, report.attempts, report.delivery());
        let is_ambiguous = report.earlier_attempt_may_have_succeeded;
        let ended_at = report.ended_at.unwrap_or_else(SystemTime::now);
        let seconds = ended_at.duration_since(UNIX_EPOCH)?.as_secs_f64();
        // In one write, so that a line is complete even if the program is killed.
        let line =
            format!("{name}\t{result}\t{attempts}\t{delivery}\t{is_ambiguous}\t{seconds:.3}\n");
        journal.write_all(line.as_bytes())?;
        *counts.entry(result).or_default() += 1;
        let rate = reports.stats().rate_limit.unwrap_or_default();
        bar.set_message(format!("{counts:?}, at most {rate:.0} calls per second"));
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("{counts:?}, {} attempts", reports.stats().attempts);
    drop(reports);
    println!("unreachable: {:?}", operations.unreachable());
    failure.map_or(Ok(()), |status| Err(status.into()))
}
