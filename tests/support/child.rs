//! A process of its own, for what environment variables decide: the test binary runs itself once
//! more, and obeys.

#![allow(clippy::unwrap_used, dead_code)] // each test uses its own part of it

use std::{
    io::{BufRead as _, Write as _},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use longrunning::{
    AuthInterceptor, Credentials, OperationsClient,
    proto::{GetOperationRequest, operations_client::OperationsClient as Stub},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};
use tonic::{Request, Status, service::Interceptor as _, transport::Endpoint};

use super::trace;

/// Says which credentials the child uses, as `kind` or `kind:detail`.
const CREDENTIALS: &str = "TEST_CREDENTIALS";

pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    /// Read all the time: a full pipe would stop the child.
    log: JoinHandle<String>,
    /// All that it has said so far.
    said: String,
}

impl Process {
    /// Starts a child with these variables and no others, and lets it make an interceptor without
    /// waiting.
    pub(crate) fn start(credentials: &str, variables: &[(&str, &Path)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env_clear()
            .env(CREDENTIALS, credentials)
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let log = tokio::spawn(async move {
            let mut log = Vec::new();
            stderr.read_to_end(&mut log).await.unwrap();
            String::from_utf8_lossy(&log).into_owned()
        });
        Self {
            log,
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
            said: String::new(),
        }
    }

    /// Gives an order and returns the answer: see `obey`.
    pub(crate) async fn tell(&mut self, order: &str) -> String {
        self.stdin
            .write_all(format!("{order}\n").as_bytes())
            .await
            .unwrap();
        let answer = async {
            loop {
                let line = self.stdout.next_line().await.unwrap();
                let line = line.expect("the child has died");
                self.said += &line;
                self.said += "\n";
                // The test harness does not end its own line.
                if let Some((_, answer)) = line.split_once("> ") {
                    return answer.to_owned();
                }
            }
        };
        timeout(Duration::from_secs(60), answer).await.unwrap()
    }

    /// Looks until the answer is this one.
    pub(crate) async fn until(&mut self, order: &str, answer: &str) {
        let mut last = String::new();
        for _ in 0..400 {
            last = self.tell(order).await;
            if last == answer {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{answer:?} never came; last was {last:?}");
    }

    /// Looks until the answer is no longer this one, and returns the new one.
    pub(crate) async fn until_not(&mut self, order: &str, answer: &str) -> String {
        for _ in 0..400 {
            let new = self.tell(order).await;
            if new != answer {
                return new;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the answer is still {answer:?}");
    }

    /// Lets it end, and returns all that it ever said, its log at TRACE among it.
    pub(crate) async fn end(mut self) -> String {
        drop(self.stdin);
        let status = self.child.wait().await;
        let log = self.log.await.unwrap();
        while let Some(line) = self.stdout.next_line().await.unwrap() {
            self.said += &line;
        }
        assert!(status.unwrap().success(), "{}\n{log}", self.said);
        assert!(!log.contains("panicked"), "{log}");
        self.said + &log
    }
}

/// Makes an interceptor as set-up does, and returns what it said and how long that took.
pub(crate) async fn set_up(credentials: &str, variables: &[(&str, &Path)]) -> (String, Duration) {
    let mut process = Process::start(credentials, variables);
    let start = Instant::now();
    let answer = process.tell("new").await;
    let took = start.elapsed();
    process.end().await; // without a panic, which it checks
    (answer, took)
}

/// What the child does: it obeys orders from stdin, one a line.
///
/// - `new`: makes an interceptor and waits for its first token, as set-up does
/// - `look`: what a call would carry now
/// - `ready`: waits, and then looks
/// - `reject`: tells that the server has refused
/// - `call ADDRESS`: waits, and then makes a call; says only how it went, and no header
/// - `burst`: ten thousand callers at once
/// - `chdir PATH`: changes the working directory
///
/// Where nobody has started it as a child, it tests one.
pub(crate) fn obey() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let Ok(text) = std::env::var(CREDENTIALS) else {
        return runtime.block_on(it_obeys());
    };
    trace::to_stderr();
    let _guard = runtime.enter();
    let credentials = credentials(&text);
    trace::note(&format!("{credentials:?} {credentials:#?}"));
    let mut lazy = None;
    for order in std::io::stdin().lock().lines() {
        let order = order.unwrap();
        if order == "new" {
            let answer = runtime.block_on(credentials.clone().interceptor());
            say(&answer.map(|auth| look(&auth)).unwrap_or_else(told));
            continue;
        }
        let lazy = lazy.get_or_insert_with(|| credentials.clone().interceptor_lazy());
        let auth = match lazy {
            Ok(auth) => &*auth,
            Err(status) => {
                say(&told(status.clone()));
                continue;
            }
        };
        trace::note(&format!("{auth:?} {:?}", auth.status()));
        say(&match order.as_str() {
            "look" => look(auth),
            "ready" => match runtime.block_on(auth.ready()) {
                Ok(()) => look(auth),
                Err(status) => told(status),
            },
            "reject" => {
                auth.mark_rejected();
                "told".to_owned()
            }
            call if call.starts_with("call ") => {
                runtime.block_on(make_call(auth, &call["call ".len()..]))
            }
            "burst" => runtime.block_on(burst(auth)),
            chdir if chdir.starts_with("chdir ") => {
                std::env::set_current_dir(&chdir["chdir ".len()..]).unwrap();
                "changed".to_owned()
            }
            order => panic!("no such order: {order}"),
        });
    }
}

async fn it_obeys() {
    let mut process = Process::start("bearer:token-1", &[]);
    assert_eq!(process.tell("look").await, "authorization: Bearer token-1");
    let said = process.end().await;
    assert!(said.contains("> authorization: Bearer token-1"), "{said}");
}

/// The headers, as the server would see them.
fn look(auth: &AuthInterceptor) -> String {
    let request = match auth.clone().call(Request::new(())) {
        Ok(request) => request,
        Err(status) => return told(status),
    };
    trace::note(&format!("{request:?}"));
    let headers = request.metadata().clone().into_headers();
    let mut headers: Vec<String> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    headers.sort();
    headers.join(", ")
}

async fn make_call(auth: &AuthInterceptor, address: &str) -> String {
    let observed = make_observed_call(auth, address).await;
    if let Err(status) = auth.ready().await {
        return told(status);
    }
    if let Err(status) = observed {
        told(status);
    }
    let channel = Endpoint::try_from(format!("http://{address}"))
        .unwrap()
        .connect_lazy();
    let mut stub = Stub::with_interceptor(channel, auth.clone());
    trace::note(&format!("{stub:?}"));
    match stub.get_operation(GetOperationRequest::default()).await {
        Ok(response) => {
            trace::note(&format!("{response:?}"));
            "ok".to_owned()
        }
        Err(status) => told(status),
    }
}

/// Makes a call with spans, metrics and propagation enabled, and logs the metrics and the statistics of the client.
async fn make_observed_call(auth: &AuthInterceptor, address: &str) -> Result<(), Status> {
    let builder = OperationsClient::builder(format!("http://{address}")).auth(auth.clone());
    #[cfg(feature = "opentelemetry")]
    let (builder, provider, exporter) = {
        use opentelemetry_sdk::{metrics, propagation::TraceContextPropagator};

        let exporter = metrics::InMemoryMetricExporter::default();
        let reader = metrics::PeriodicReader::builder(exporter.clone()).build();
        let provider = metrics::SdkMeterProvider::builder();
        let provider = provider.with_reader(reader).build();
        let recorder = longrunning::OpenTelemetryRecorder::new(&provider).experimental();
        let builder = builder
            .recorder(std::sync::Arc::new(recorder))
            .propagator(TraceContextPropagator::new());
        (builder, provider, exporter)
    };
    let client = builder.timeout(Duration::from_secs(2)).connect_lazy()?;
    let result = client.get_operation("operations/1").await;
    trace::note(&format!("{client:?} {:?} {result:?}", client.stats()));
    #[cfg(feature = "opentelemetry")]
    {
        provider.force_flush().unwrap();
        let metrics = exporter.get_finished_metrics().unwrap();
        assert!(!metrics.is_empty());
        trace::note(&format!("{metrics:?}"));
    }
    result.map(drop)
}

fn told(status: Status) -> String {
    trace::note(&format!("{status} {status:?} {status:#?}"));
    format!("{:?} {}", status.code(), status.message())
}

async fn burst(auth: &AuthInterceptor) -> String {
    let callers: Vec<_> = (0..10_000)
        .map(|_| {
            let auth = auth.clone();
            tokio::spawn(async move {
                auth.ready().await.unwrap();
                look(&auth)
            })
        })
        .collect();
    let mut answers = std::collections::BTreeSet::new();
    for caller in callers {
        answers.insert(caller.await.unwrap());
    }
    answers.into_iter().collect::<Vec<_>>().join(" | ")
}

fn credentials(text: &str) -> Credentials {
    match text.split_once(':').unwrap_or((text, "")) {
        ("adc", _) => Credentials::application_default(),
        ("file", path) => Credentials::file(path),
        ("self_signed", path) => Credentials::file(path).self_signed_jwt(),
        ("json", text) => Credentials::json(text),
        ("metadata", "") => Credentials::metadata_server(),
        ("metadata", account) => Credentials::metadata_server_account(account),
        ("api_key", key) => Credentials::api_key(key),
        ("bearer", token) => Credentials::bearer_token(token),
        (kind, _) => panic!("no such kind: {kind}"),
    }
}

fn say(answer: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "> {answer}").unwrap();
    stdout.flush().unwrap();
}
