//! The server as a process beside the client's, and what the kernel knows of either.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use rustix::{
    thread::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

use crate::{Result, plan::Plan, record::Record};

/// A server that ends with this value.
pub(crate) struct Server {
    child: Child,
    ask: Option<ChildStdin>,
    tell: BufReader<ChildStdout>,
    pub(crate) grpc: String,
    pub(crate) rest: String,
    /// Its certificate, as PEM; empty without TLS.
    pub(crate) certificate: String,
}

impl Server {
    pub(crate) fn start(plan: &Plan) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .arg("server")
            .args(plan.server_arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let ask = child.stdin.take();
        let tell = child.stdout.take().ok_or("no standard output")?;
        let mut server = Self {
            child,
            ask,
            tell: BufReader::new(tell),
            grpc: String::new(),
            rest: String::new(),
            certificate: String::new(),
        };
        loop {
            let mut line = String::new();
            if server.tell.read_line(&mut line)? == 0 {
                return Err("the server did not start".into());
            }
            match line.trim_end().split_once('=') {
                Some(("grpc", address)) => server.grpc = address.to_owned(),
                Some(("rest", address)) => server.rest = address.to_owned(),
                _ if line == "\n" => return Ok(server),
                _ => server.certificate.push_str(&line),
            }
        }
    }

    /// What it has counted so far: `calls`, `bytes`, and `cpu` in nanoseconds.
    pub(crate) fn counts(&mut self) -> Result<Record> {
        let ask = self.ask.as_mut().ok_or("the server has ended")?;
        ask.write_all(b"\n")?;
        let mut line = String::new();
        self.tell.read_line(&mut line)?;
        Ok(Record::parse(&line))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.ask.take());
        let _ = self.child.wait();
    }
}

/// Keeps this process on one core. Where there is none of that number, it stays where it is.
pub(crate) fn pin(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    let _ = sched_setaffinity(None, &cores);
}

/// The CPU time of this process.
pub(crate) fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The resident memory of this process, in bytes.
pub(crate) struct Resident {
    /// What the process has written.
    pub(crate) own: u64,
    /// With the pages of its program that it has run so far.
    pub(crate) all: u64,
}

impl Resident {
    pub(crate) fn now() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let kib = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            value.ok_or_else(|| format!("no {key} in the process's status"))
        };
        let bytes = |key| kib(key).map(|kib: u64| kib << 10);
        Ok(Self {
            own: bytes("RssAnon:")?,
            all: bytes("VmRSS:")?,
        })
    }
}
