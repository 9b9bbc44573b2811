//! Thousands of calls in flight while everything fails that can.
//!
//! Takes 20 seconds, or as many as the environment variable `SOAK_SECONDS` says.

mod support;

use std::{
    collections::BTreeMap,
    env,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use longrunning::{
    CallCredentials, CallStatusExt as _, Credentials, OperationsClient, Origin, Token,
};
use peak_alloc::PeakAlloc;
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{Code, Request, Status};

use self::support::{
    proxy::{Mood, Proxy},
    server::{Habits, Server},
    until,
};

const CALLERS: usize = 2_000;

/// How late a call may end, beyond what the machine itself is late.
const GRACE: Duration = Duration::from_millis(1_500);

/// Finds out how late the machine is, which may have other work: a thread that has nothing to do but
/// wake up.
struct Witness(Arc<AtomicBool>, thread::JoinHandle<Duration>);

impl Witness {
    fn start() -> Self {
        const NAP: Duration = Duration::from_millis(10);
        let over = Arc::<AtomicBool>::default();
        let is_over = over.clone();
        let thread = thread::spawn(move || {
            let mut latest = Duration::ZERO;
            while !is_over.load(Ordering::SeqCst) {
                let begin = std::time::Instant::now();
                thread::sleep(NAP);
                latest = latest.max(begin.elapsed().saturating_sub(NAP));
            }
            latest
        });
        Self(over, thread)
    }

    fn latest(self) -> Duration {
        self.0.store(true, Ordering::SeqCst);
        self.1.join().expect("no panic")
    }
}

/// A source of tokens that live for 2 seconds, and that fails while it is told to.
struct Fickle(Arc<AtomicBool>);

#[tonic::async_trait]
impl CallCredentials for Fickle {
    async fn token(&self) -> Result<Token, Status> {
        if self.0.load(Ordering::SeqCst) {
            return Err(Status::unavailable("no token today"));
        }
        let token = Token::bearer("soak")?;
        Ok(token.expires_at(std::time::Instant::now() + Duration::from_secs(2)))
    }
}

/// What became of the calls.
#[derive(Default)]
struct Ends {
    begun: AtomicUsize,
    by_code: Mutex<BTreeMap<&'static str, usize>>,
    latest: Mutex<Duration>,
}

async fn call(client: OperationsClient, ends: Arc<Ends>) {
    let deadline = Duration::from_millis(fastrand::u64(500..4_000));
    let mut request = Request::new(longrunning::proto::GetOperationRequest {
        name: format!("operations/{}", fastrand::u32(..)),
    });
    request.set_timeout(deadline);
    ends.begun.fetch_add(1, Ordering::SeqCst);
    let begin = Instant::now();
    let result = if fastrand::u8(..100) < 5 {
        let patience = Duration::from_millis(fastrand::u64(..300));
        match tokio::time::timeout(patience, client.get_operation(request)).await {
            Ok(result) => result,
            Err(_) => {
                *ends
                    .by_code
                    .lock()
                    .expect("no panic")
                    .entry("dropped")
                    .or_default() += 1;
                return;
            }
        }
    } else {
        client.get_operation(request).await
    };
    let late = begin.elapsed().saturating_sub(deadline);
    let code = match result {
        Ok(_) => "OK",
        Err(status) => {
            let origin = status.origin().expect("made here or by the server");
            let truthful = match status.code() {
                Code::Unavailable => origin != Origin::Server,
                Code::DeadlineExceeded => origin == Origin::Client,
                _ => false,
            };
            assert!(truthful, "{status:?}");
            status.code_name()
        }
    };
    *ends
        .by_code
        .lock()
        .expect("no panic")
        .entry(code)
        .or_default() += 1;
    let mut latest = ends.latest.lock().expect("no panic");
    *latest = late.max(*latest);
}

fn habits() -> Habits {
    Habits {
        streams: fastrand::choice([Some(10), Some(100), Some(100), Some(1_000), None]).flatten(),
        latency: Duration::from_millis(fastrand::u64(200..800)),
        age: fastrand::choice([None, None, Some(Duration::from_millis(300))]).flatten(),
        bytes: fastrand::choice([1, 100, 20_000]).unwrap_or(1),
        ..Habits::default()
    }
}

async fn chaos(proxy: &Proxy, no_token: &AtomicBool, until: Instant) -> Server {
    let start = || tokio::task::spawn_blocking(|| Server::start(habits()));
    let mut server = start().await.expect("no panic");
    proxy.backend(server.addr);
    while Instant::now() < until {
        sleep(Duration::from_millis(fastrand::u64(200..1_500))).await;
        match fastrand::u8(..7) {
            0 => proxy.cut(),
            1 => server.drain(),
            2 => {
                let next = start().await.expect("no panic");
                proxy.backend(next.addr);
                let old = std::mem::replace(&mut server, next);
                let end = tokio::task::spawn_blocking(move || drop(old));
                end.await.expect("the server did not panic");
            }
            3 => {
                proxy.mood(Mood::Silence);
                sleep(Duration::from_millis(fastrand::u64(100..2_000))).await;
                proxy.mood(Mood::Forward);
            }
            4 => {
                proxy.mood(Mood::Refuse);
                proxy.cut();
                sleep(Duration::from_millis(fastrand::u64(100..1_000))).await;
                proxy.mood(Mood::Forward);
            }
            5 => {
                no_token.store(true, Ordering::SeqCst);
                sleep(Duration::from_millis(fastrand::u64(100..1_500))).await;
                no_token.store(false, Ordering::SeqCst);
            }
            _ => {}
        }
    }
    server
}

/// Counts what is allocated: what the process holds beyond that depends on the chaos that there was.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What buffers of threads that stay, and of the test itself, may keep.
const KEPT: usize = 256 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_ends_once_in_time_and_truthfully_whatever_fails() {
    let seconds = env::var("SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(20));
    let tasks = Handle::current().metrics().num_alive_tasks();
    let memory = MEMORY.current_usage();

    let witness = Witness::start();
    let proxy = Proxy::start("127.0.0.1:1".parse().expect("an address"));
    let no_token = Arc::<AtomicBool>::default();
    let client = OperationsClient::builder(proxy.url())
        .credentials(Credentials::custom(Fickle(no_token.clone())))
        .connect_lazy()
        .expect("a client");
    let ends = Arc::<Ends>::default();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, ends) = (client.clone(), ends.clone());
        callers.spawn(async move {
            while Instant::now() < end {
                call(client.clone(), ends.clone()).await;
                // An outage must not become a busy loop of the test.
                sleep(Duration::from_millis(fastrand::u64(..500))).await;
            }
        });
    }
    let server = chaos(&proxy, &no_token, end).await;
    while let Some(caller) = callers.join_next().await {
        if let Err(panic) = caller {
            std::panic::resume_unwind(panic.into_panic());
        }
    }

    let by_code = ends.by_code.lock().expect("no panic").clone();
    let latest = *ends.latest.lock().expect("no panic");
    let machine = witness.latest();
    println!("{by_code:?}; {latest:?} late at most, the machine {machine:?}");
    let begun = ends.begun.load(Ordering::SeqCst);
    assert_eq!(by_code.values().sum::<usize>(), begun, "each ends once");
    assert!(latest < GRACE + 5 * machine, "{latest:?}");
    for code in ["OK", "UNAVAILABLE", "DEADLINE_EXCEEDED", "dropped"] {
        assert!(
            by_code.get(code).is_some_and(|&n| n > 0),
            "it was no soak: {by_code:?}"
        );
    }

    // It works again, and leaves nothing behind.
    let begin = Instant::now();
    while let Err(status) = client.get_operation("operations/1").await {
        assert!(begin.elapsed() < Duration::from_secs(15), "{status:?}");
    }
    drop(client);
    until("no task is left", || {
        Handle::current().metrics().num_alive_tasks() == tasks
    })
    .await;
    until("no connection is left", || server.seen.open() == 0).await;
    tokio::task::spawn_blocking(move || drop((server, proxy)))
        .await
        .expect("no panic");
    drop((callers, ends, no_token));
    let (most, kept) = (MEMORY.peak_usage(), MEMORY.current_usage());
    println!("{memory} bytes at the start, {most} at the most, {kept} at the end");
    assert!(most > memory + (8 << 20), "it was no soak");
    assert!(kept < memory + KEPT, "{memory} bytes grew to {kept}");
}
