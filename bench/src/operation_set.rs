//! Watching many operations with an `OperationSet`, over sockets, compared to one poller per operation and to a loop of
//! `GetOperation` calls.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use longrunning::{
    OperationsClient, PollPolicy,
    emulator::{Emulator, Method},
    proto::ListOperationsRequest,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    Result,
    fleet::{Server, runtime},
    spawn::Resident,
};

/// Prints two tables. The baselines of the first are one poller for each operation, and one loop that gets each
/// operation in turn, each operation once in 20 seconds.
pub(crate) fn run(arguments: &[String]) -> Result {
    println!(
        "| watched by | operations | server | calls a minute | delivered after p50, s | p99, s | CPU, % of a core | bytes an operation |"
    );
    println!("|---|--:|---|--:|--:|--:|--:|--:|");
    let row = |watcher: Watcher, operations: usize, fleet: Fleet| {
        let name = format!("{watcher:?} {operations} {fleet:?}");
        if arguments.is_empty() || arguments.iter().any(|part| name.contains(part)) {
            measure(watcher, operations, fleet)
        } else {
            Ok(())
        }
    };
    const OPERATIONS: usize = 100_000;
    row(Watcher::Pollers, OPERATIONS, Fleet::OneParent)?;
    row(Watcher::GetLoop, OPERATIONS, Fleet::OneParent)?;
    for fleet in [
        Fleet::OneParent,
        Fleet::SmallPages,
        Fleet::OldOperations,
        Fleet::NoList,
        Fleet::ManyParents,
    ] {
        row(Watcher::Set, OPERATIONS, fleet)?;
    }
    row(Watcher::Set, 10 * OPERATIONS, Fleet::OneParent)?;
    if arguments.is_empty() || arguments.iter().any(|part| part == "list") {
        println!();
        println!("| operations of the emulator | pages | listed in, s | us an operation |");
        println!("|--:|--:|--:|--:|");
        for operations in [OPERATIONS / 10, OPERATIONS, 10 * OPERATIONS] {
            list(operations)?;
        }
    }
    Ok(())
}

/// Lists all operations of an emulator, and prints how long that takes.
fn list(operations: usize) -> Result {
    let fleet = Fleet::OneParent;
    let server = Server::start(100, (0..operations).map(|number| fleet.name(number)))?;
    let seconds = runtime()?.block_on(async {
        let client = OperationsClient::builder(server.emulator.endpoint())
            .connect()
            .await?;
        let begun = Instant::now();
        let mut request = ListOperationsRequest {
            name: "projects/project-of-a-customer/locations/us-central1".to_owned(),
            page_size: 1_000,
            ..ListOperationsRequest::default()
        };
        let mut listed = 0;
        loop {
            let page = client.list_operations(request.clone()).await?;
            listed += page.operations.len();
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        if listed != operations {
            return Err(format!("{listed} of {operations} operations were listed").into());
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(begun.elapsed().as_secs_f64())
    })?;
    let pages = server.emulator.calls().len();
    let micros = 1e6 * seconds / operations as f64;
    println!("| {operations} | {pages} | {seconds:.2} | {micros:.2} |");
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Watcher {
    Pollers,
    GetLoop,
    Set,
}

#[derive(Clone, Copy, Debug)]
enum Fleet {
    OneParent,
    SmallPages,
    OldOperations,
    NoList,
    ManyParents,
}

impl Watcher {
    fn title(self) -> &'static str {
        match self {
            Self::Pollers => "pollers",
            Self::GetLoop => "a Get loop",
            Self::Set => "`OperationSet`",
        }
    }
}

impl Fleet {
    fn title(self) -> &'static str {
        match self {
            Self::OneParent => "one parent, pages of 1,000",
            Self::SmallPages => "pages of 50",
            Self::OldOperations => "as many old operations that are done",
            Self::NoList => "no List",
            Self::ManyParents => "one parent for each operation",
        }
    }

    /// Returns a name of 80 bytes.
    fn name(self, number: usize) -> String {
        match self {
            Self::ManyParents => format!("projects/p/locations/{number:047}/operations/1"),
            _ => format!(
                "projects/project-of-a-customer/locations/us-central1/operations/{number:015}"
            ),
        }
    }
}

/// How long the watcher polls before it is measured, so that all delays have reached their maximum.
const WARM_UP: Duration = Duration::from_secs(60);

/// How long it is measured.
const WINDOW: Duration = Duration::from_secs(60);

/// How long the benchmark waits for the results of operations that ended during the window. A sweep of a million
/// operations takes longer.
const DRAIN: Duration = Duration::from_secs(60);

const DELAY: Duration = Duration::from_secs(20);

type Times = Arc<Mutex<HashMap<String, Instant>>>;

fn measure(watcher: Watcher, operations: usize, fleet: Fleet) -> Result {
    let server = Server::start(100, (0..operations).map(|number| fleet.name(number)))?;
    let emulator = &server.emulator;
    match fleet {
        Fleet::SmallPages => emulator.max_page_size(50),
        Fleet::NoList => emulator.unimplement(Method::List),
        Fleet::OldOperations => {
            for number in operations..2 * operations {
                let name = fleet.name(number);
                emulator.start_operation(&name)?;
                emulator.complete_without_result(&name)?;
            }
        }
        Fleet::OneParent | Fleet::ManyParents => {}
    }
    let (ended, delivered) = (Times::default(), Times::default());
    let stop = Arc::new(AtomicBool::new(false));
    let ender = thread::spawn({
        let (emulator, ended, stop) = (Arc::clone(emulator), Arc::clone(&ended), Arc::clone(&stop));
        move || end_operations(&emulator, operations, fleet, &ended, &stop)
    });
    let numbers = runtime()?.block_on(async {
        let client = OperationsClient::builder(emulator.endpoint())
            .connect()
            .await?;
        let before = Resident::now()?;
        let names = (0..operations).map(|number| fleet.name(number));
        let _tasks = match watcher {
            Watcher::Pollers => poll_each(&client, names, &delivered),
            Watcher::GetLoop => get_in_a_loop(&client, names.collect(), &delivered),
            Watcher::Set => watch(&client, names, &delivered),
        };
        let after = Resident::now()?;
        sleep(WARM_UP).await;
        emulator.clear_calls();
        let (begun, cpu) = (Instant::now(), thread_time());
        sleep(WINDOW).await;
        let cpu = (thread_time() - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
        let calls = emulator.calls().len() as f64 * 60.0 / begun.elapsed().as_secs_f64();
        let window = begun..Instant::now();
        sleep(DRAIN * (1 + operations as u32 / 500_000)).await;
        let bytes = after.own.saturating_sub(before.own) as f64 / operations as f64;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((calls, cpu, bytes, window))
    })?;
    stop.store(true, SeqCst);
    ender
        .join()
        .map_err(|_| "the thread that ends operations panicked")??;
    let (calls, cpu, bytes, window) = numbers;
    let bytes = match watcher {
        Watcher::Set => format!("{:.0}", bytes - fleet.name(0).len() as f64),
        // Most of their memory is allocated later, when that of the emulator grows, too.
        Watcher::Pollers | Watcher::GetLoop => "-".to_owned(),
    };
    let (ended, delivered) = (lock(&ended), lock(&delivered));
    let in_window = ended.iter().filter(|(_, at)| window.contains(*at));
    let mut delays = Vec::new();
    for (name, ended) in in_window {
        let delivered = delivered.get(name);
        let delivered =
            delivered.ok_or_else(|| format!("{watcher:?}, {fleet:?}: {name} was not delivered"))?;
        delays.push(delivered.saturating_duration_since(*ended).as_secs_f64());
    }
    delays.sort_by(f64::total_cmp);
    let quantile = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize];
    println!(
        "| {} | {operations} | {} | {calls:.0} | {:.1} | {:.1} | {:.2} | {bytes} |",
        watcher.title(),
        fleet.title(),
        quantile(0.5),
        quantile(0.99),
        100.0 * cpu,
    );
    Ok(())
}

/// Ends 1 % of the operations a minute, in an order unlike that of their names.
fn end_operations(
    emulator: &Emulator,
    operations: usize,
    fleet: Fleet,
    ended: &Times,
    stop: &AtomicBool,
) -> Result {
    const STRIDE: usize = 611_953; // a prime
    let interval = Duration::from_secs_f64(6_000.0 / operations as f64);
    let begun = Instant::now();
    for count in 0.. {
        let due = begun + interval.mul_f64(f64::from(count));
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if stop.load(SeqCst) {
            break;
        }
        let name = fleet.name((count as usize * STRIDE) % operations);
        emulator.complete_without_result(&name)?;
        lock(ended).insert(name, Instant::now());
    }
    Ok(())
}

fn poll_each(
    client: &OperationsClient,
    names: impl Iterator<Item = String>,
    delivered: &Times,
) -> JoinSet<()> {
    let policy = PollPolicy::default()
        .max_delay(DELAY)
        .wait_timeout(Duration::ZERO);
    let mut tasks = JoinSet::new();
    for (number, name) in names.enumerate() {
        let mut poller = client.poller(name.as_str()).policy(policy);
        let delivered = Arc::clone(delivered);
        tasks.spawn(async move {
            // All at once, they would not fit into the queue of the client.
            sleep(Duration::from_micros(200 * number as u64)).await;
            match poller.until_done().await {
                Ok(_) => drop(lock(&delivered).insert(name, Instant::now())),
                Err(status) => eprintln!("{name}: {status}"),
            }
        });
    }
    tasks
}

fn get_in_a_loop(
    client: &OperationsClient,
    mut names: Vec<String>,
    delivered: &Times,
) -> JoinSet<()> {
    let (client, delivered) = (client.clone(), Arc::clone(delivered));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut gets = JoinSet::new();
        loop {
            let begun = Instant::now();
            let interval = DELAY / names.len() as u32;
            for (number, name) in std::mem::take(&mut names).into_iter().enumerate() {
                let due = begun + interval * number as u32;
                tokio::time::sleep_until(due.into()).await;
                let client = client.clone();
                gets.spawn(async move {
                    let result = client.get_operation(name.as_str()).await;
                    (name, result.is_ok_and(|operation| operation.done))
                });
            }
            while let Some(got) = gets.join_next().await {
                match got {
                    Ok((name, true)) => {
                        lock(&delivered).insert(name, Instant::now());
                    }
                    Ok((name, false)) => names.push(name),
                    Err(_) => return,
                }
            }
        }
    });
    tasks
}

fn watch(
    client: &OperationsClient,
    names: impl Iterator<Item = String>,
    delivered: &Times,
) -> JoinSet<()> {
    let set = client.operation_set().max_delivery_delay(DELAY);
    for name in names {
        set.insert(name);
    }
    let delivered = Arc::clone(delivered);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some((name, result)) = set.next().await {
            if result.is_ok() {
                lock(&delivered).insert(name, Instant::now());
            }
        }
    });
    tasks
}

/// Returns the CPU time of this thread, on which the client runs.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn lock(times: &Times) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
    times
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
