//! The main job, as `cargo run --example cancel` does it. `cargo test` builds the example first.

use std::{
    env,
    ffi::OsStr,
    net::{SocketAddr, TcpListener},
    process::{Command, Output},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use longrunning::{
    emulator::{CallOutcome, CancelBehavior, Emulator, Method},
    proto::rpc,
};
use tonic::{Code, Status};

const NAME: &str = "projects/p/locations/l/operations/1";

/// Exit code, last line of standard output, last line of standard error.
type Ending = (Option<i32>, String, String);

async fn run<A: AsRef<OsStr>>(args: &[A]) -> Ending {
    // No metadata server, and no need to look for one.
    run_with(args, ("NO_GCE_CHECK", "true")).await
}

/// Runs it on a machine without credentials, with this variable.
async fn run_with<A: AsRef<OsStr>>(args: &[A], variable: (&str, &str)) -> Ending {
    let mut example = env::current_exe().expect("a test has a path");
    example.pop(); // target/debug/deps
    example.pop();
    example.push(format!("examples/cancel{}", env::consts::EXE_SUFFIX));
    assert!(
        example.exists(),
        "{example:?} is not there: run `cargo build --example cancel`"
    );
    let mut command = Command::new(example);
    command.args(args);
    for name in [
        "GOOGLE_APPLICATION_CREDENTIALS",
        "CLOUDSDK_CONFIG",
        "GCE_METADATA_HOST",
    ] {
        command.env_remove(name);
    }
    command
        .env("HOME", "/nonexistent")
        .env(variable.0, variable.1);
    let output = tokio::task::spawn_blocking(move || command.output());
    let Output {
        status,
        stdout,
        stderr,
    } = output.await.expect("no panic").expect("it starts");
    (status.code(), last_line(stdout), last_line(stderr))
}

fn last_line(output: Vec<u8>) -> String {
    let output = String::from_utf8(output).expect("UTF-8");
    assert!(output.is_empty() || output.ends_with('\n'), "{output:?}");
    output.lines().next_back().unwrap_or_default().to_owned()
}

fn outcome(line: &str) -> Ending {
    (Some(0), format!("outcome: {line}"), String::new())
}

fn error(line: &str) -> (Option<i32>, String) {
    (Some(1), format!("error: {line}"))
}

async fn emulator(behavior: CancelBehavior) -> Emulator {
    let emulator = Emulator::start().await.expect("a free port");
    emulator.start_operation(NAME).expect("a new name");
    emulator.on_cancel(behavior);
    emulator
}

async fn against(emulator: &Emulator) -> Ending {
    run(&["--endpoint", &emulator.endpoint(), "--auth", "none", NAME]).await
}

#[tokio::test]
async fn alone_it_cancels_an_operation_of_its_own() {
    assert_eq!(run::<&str>(&[]).await, outcome("CANCELLED"));
}

#[tokio::test]
async fn it_tells_how_the_operation_of_a_real_server_ended() {
    let late = emulator(CancelBehavior::CancelAfter(Duration::from_millis(300))).await;
    assert_eq!(against(&late).await, outcome("CANCELLED"));
    let completed = emulator(CancelBehavior::complete(&())).await;
    assert_eq!(against(&completed).await, outcome("COMPLETED"));
    let failure = rpc::Status {
        code: 8,
        message: "no\nroom".into(),
        details: vec![],
    };
    let failed = emulator(CancelBehavior::Fail(failure)).await;
    assert_eq!(
        against(&failed).await,
        outcome("FAILED RESOURCE_EXHAUSTED: no room")
    );
}

#[tokio::test]
async fn what_is_done_without_a_result_has_failed() {
    let odd = emulator(CancelBehavior::CompleteWithoutResult).await;
    let expected = "FAILED UNKNOWN: done with neither a response nor an error";
    assert_eq!(against(&odd).await, outcome(expected));
}

#[tokio::test]
async fn what_still_runs_after_ten_seconds_is_running() {
    let emulator = emulator(CancelBehavior::Ignore).await;
    let start = Instant::now();
    assert_eq!(against(&emulator).await, outcome("RUNNING"));
    assert!(start.elapsed() < Duration::from_secs(12));
}

#[tokio::test]
async fn a_look_that_hangs_does_not_prolong_the_looking() {
    let emulator = emulator(CancelBehavior::Ignore).await;
    let start = Instant::now();
    let seen = |emulator: &Emulator| {
        let mut looks = emulator.calls_of(Method::Get).into_iter();
        looks.any(|look| look.outcome() == CallOutcome::Answered(Code::Ok))
    };
    let hang = async {
        emulator.wait_until(seen).await;
        emulator.delay(Method::Get, Duration::from_secs(60));
    };
    let (ending, ()) = tokio::join!(against(&emulator), hang);
    assert_eq!(ending, outcome("RUNNING"));
    assert!(start.elapsed() < Duration::from_secs(12));
}

#[tokio::test]
async fn what_was_never_seen_is_not_said_to_be_running() {
    let emulator = emulator(CancelBehavior::Ignore).await;
    emulator.delay(Method::Get, Duration::from_secs(60));
    let start = Instant::now();
    let (code, _, line) = against(&emulator).await;
    assert_eq!(code, Some(1));
    assert!(line.starts_with("error: DEADLINE_EXCEEDED: "), "{line}");
    assert!(start.elapsed() < Duration::from_secs(12));
}

#[tokio::test]
async fn a_scheme_in_capitals_is_the_same() {
    let emulator = emulator(CancelBehavior::Cancel).await;
    let url = emulator.endpoint().replace("http:", "HTTP:");
    let ending = run(&["--endpoint", &url, NAME]).await;
    assert_eq!(ending, outcome("CANCELLED"));
}

#[tokio::test]
async fn a_call_that_fails_ends_with_the_codes_name() {
    let refusal = Status::failed_precondition("not\r\nnow");
    let refusing = emulator(CancelBehavior::Refuse(refusal)).await;
    let (code, _, line) = against(&refusing).await;
    assert_eq!((code, line), error("FAILED_PRECONDITION: not now"));

    let without = emulator(CancelBehavior::Cancel).await;
    without.unimplement(Method::Cancel);
    let (code, _, line) = against(&without).await;
    assert_eq!(code, Some(1));
    assert!(line.starts_with("error: UNIMPLEMENTED: "), "{line}");

    let gone = emulator(CancelBehavior::Cancel).await;
    gone.remove(NAME).expect("it was there");
    let (code, _, line) = against(&gone).await;
    assert_eq!(code, Some(1));
    assert!(
        line.starts_with("error: NOT_FOUND: ") && line.contains(NAME),
        "{line}"
    );
}

/// An address at which nobody listens.
fn free_address() -> SocketAddr {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
    port.expect("a free port") // and free again
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_unavailable() {
    let address = free_address();
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://{address}");
        let (code, _, line) = run(&["--endpoint", &url, "--auth", "none", NAME]).await;
        assert_eq!(code, Some(1));
        let expected = format!("error: UNAVAILABLE: cannot connect to {address}: ");
        assert!(line.starts_with(&expected), "{line}");
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_an_invalid_argument() {
    let nonsense: [&[&str]; 4] = [
        &["--endpoint", "no url", NAME],
        &["--endpoint"],
        &["--port", "1"],
        &[NAME, NAME],
    ];
    for args in nonsense {
        let (code, out, line) = run(args).await;
        assert_eq!((code, out.as_str()), (Some(1), ""), "{args:?}");
        assert!(line.starts_with("error: INVALID_ARGUMENT: "), "{line}");
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt as _;
        let (code, _, line) = run(&[OsStr::from_bytes(b"op\xff")]).await;
        assert_eq!(
            (code, line),
            error("INVALID_ARGUMENT: argument \"op\\xFF\" is not UTF-8")
        );
    }
    let emulator = emulator(CancelBehavior::Cancel).await;
    let (code, _, line) = run(&["--endpoint", &emulator.endpoint(), "--auth", "none", ""]).await;
    let expected =
        "INVALID_ARGUMENT: the operation's name is empty: give one such as \"operations/1\"";
    assert_eq!((code, line), error(expected));
}

#[tokio::test]
async fn without_credentials_it_says_what_is_missing_before_it_calls() {
    let emulator = emulator(CancelBehavior::Cancel).await;
    let tls = format!("https://{}", free_address());
    let by_default = ["--endpoint", &tls, NAME];
    let asked_for = [NAME, "--auth", "adc", "--endpoint", &emulator.endpoint()];
    let ends = async { [run(&by_default).await, run(&asked_for).await] };
    let ends = tokio::time::timeout(Duration::from_secs(12), ends).await;
    for (code, _, line) in ends.expect("6 s for each") {
        assert_eq!(code, Some(1));
        let expected = "error: UNAUTHENTICATED: credentials: no application default credentials: ";
        assert!(line.starts_with(expected), "{line}");
    }
    assert_eq!(emulator.calls().len(), 0);
}

#[tokio::test]
async fn a_metadata_server_that_does_not_answer_is_reported() {
    let tls = format!("https://{}", free_address());
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let hosts = [free_address(), silent.local_addr().expect("it is bound")];
    let start = Instant::now();
    let runs = hosts.map(async |host| {
        let host = host.to_string();
        let args = ["--endpoint", &tls, NAME];
        let (code, _, line) = run_with(&args, ("GCE_METADATA_HOST", &host)).await;
        assert_eq!(code, Some(1));
        let expected = format!("error: UNAVAILABLE: credentials: the metadata server {host} ");
        assert!(line.starts_with(&expected), "{line}");
    });
    join_all(runs).await;
    // The first token is waited for 10 s.
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
}
