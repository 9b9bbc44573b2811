//! What one measurement is to do, as arguments of the process that does it.

use std::{fmt, str::FromStr, time::Duration};

use crate::Result;

/// How a client is loaded, and by what kind of server it is answered.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Calls in flight at once.
    pub(crate) concurrency: usize,
    /// Threads of the client's runtime; 1 is the current-thread one.
    pub(crate) threads: usize,
    /// How long the server takes over an answer.
    pub(crate) delay: Duration,
    /// How many streams the server allows on a connection; 0 is any number.
    pub(crate) streams: u32,
    pub(crate) tls: bool,
    pub(crate) length: Length,
    /// Calls that become due per second, whether or not earlier calls have ended; 0 keeps `concurrency` calls in
    /// flight instead.
    pub(crate) offered: usize,
    /// The timeout of each call, if `offered` is not 0.
    pub(crate) timeout: Duration,
}

/// When a measurement is over.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    Time(Duration),
    /// After so many calls; nothing is timed.
    Calls(usize),
    /// Once so many operations are cancelled, by what the variant has for many.
    Bulk(usize),
    /// As soon as the memory of so many calls in flight is known.
    Memory,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            concurrency: 64,
            threads: 1,
            delay: Duration::ZERO,
            streams: 0,
            tls: false,
            length: Length::Time(Duration::from_secs(1)),
            offered: 0,
            timeout: Duration::from_millis(100),
        }
    }
}

impl Plan {
    /// What [`parse`](Self::parse) reads.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let length = match self.length {
            Length::Time(time) => format!("millis={}", time.as_millis()),
            Length::Calls(calls) => format!("calls={calls}"),
            Length::Bulk(names) => format!("bulk={names}"),
            Length::Memory => "memory=1".to_owned(),
        };
        let mut arguments = self.server_arguments();
        arguments.extend([
            format!("concurrency={}", self.concurrency),
            format!("threads={}", self.threads),
            length,
        ]);
        if self.offered > 0 {
            arguments.extend([
                format!("offered={}", self.offered),
                format!("timeout={}", self.timeout.as_millis()),
            ]);
        }
        arguments
    }

    pub(crate) fn server_arguments(&self) -> Vec<String> {
        vec![
            format!("delay={}", self.delay.as_millis()),
            format!("streams={}", self.streams),
            format!("tls={}", u8::from(self.tls)),
        ]
    }

    pub(crate) fn parse(arguments: &[String]) -> Result<Self> {
        let mut plan = Self::default();
        for argument in arguments {
            let (key, value) = argument
                .split_once('=')
                .ok_or_else(|| format!("{argument}: say key=value"))?;
            match key {
                "concurrency" => plan.concurrency = number(key, value)?,
                "threads" => plan.threads = number(key, value)?,
                "delay" => plan.delay = Duration::from_millis(number(key, value)?),
                "streams" => plan.streams = number(key, value)?,
                "tls" => plan.tls = number::<u8>(key, value)? == 1,
                "millis" => {
                    plan.length = Length::Time(Duration::from_millis(number(key, value)?));
                }
                "offered" => plan.offered = number(key, value)?,
                "timeout" => plan.timeout = Duration::from_millis(number(key, value)?),
                "calls" => plan.length = Length::Calls(number(key, value)?),
                "bulk" => plan.length = Length::Bulk(number(key, value)?),
                "memory" => plan.length = Length::Memory,
                _ => return Err(format!("{key}: there is no such option").into()),
            }
        }
        Ok(plan)
    }
}

fn number<T: FromStr>(key: &str, value: &str) -> Result<T> {
    let parsed = value.parse();
    parsed.map_err(|_| format!("{key}={value}: give a number").into())
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offered {
            0 => write!(f, "{} in flight", self.concurrency)?,
            rate => write!(f, "{rate} calls/s offered, {:?} timeout", self.timeout)?,
        }
        if self.threads > 1 {
            write!(f, ", {} threads", self.threads)?;
        }
        if self.tls {
            f.write_str(", TLS")?;
        }
        if !self.delay.is_zero() {
            write!(f, ", answers after {:?}", self.delay)?;
        }
        if self.streams > 0 {
            write!(f, ", {} streams", self.streams)?;
        }
        Ok(())
    }
}
