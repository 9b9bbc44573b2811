//! Recorder of OpenTelemetry metrics.

mod clients;
mod observable;

use std::{fmt, sync::Arc};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    metrics::{Counter, Histogram, Meter, MeterProvider},
};

use self::{
    clients::Clients,
    observable::{A94, OWN, observe},
};
use crate::{
    recorder::{AttemptEnded, AttemptStarted, CallEnded, OperationDone, PollEnded, Recorder},
    stats::StatsSource,
};

/// A [`Recorder`] that records OpenTelemetry metrics.
///
/// One recorder can be used for any number of clients. The guide [`observability`](crate::guide::observability)
/// lists the instruments.
///
/// The meter provider is passed explicitly; the global one is not used, see
/// [gRFC A66](https://github.com/grpc/proposal/blob/master/A66-otel-stats.md#language-specific-details). Each
/// recorder registers its instruments with the provider, so create only one recorder per provider. The totals of
/// dropped clients are kept, so that later exports include them.
///
/// ```
/// # #[cfg(not(feature = "emulator"))]
/// # fn main() {}
/// # #[cfg(feature = "emulator")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tonic::Status> {
/// # use longrunning::emulator::Emulator;
/// # let emulator = Emulator::start().await?;
/// # let endpoint = emulator.endpoint();
/// use std::sync::Arc;
/// use longrunning::{OpenTelemetryRecorder, OperationsClient};
/// use opentelemetry_sdk::metrics::SdkMeterProvider;
///
/// let provider = SdkMeterProvider::builder().build(); // add your reader or exporter
/// let recorder = Arc::new(OpenTelemetryRecorder::new(&provider).experimental());
/// let client = OperationsClient::builder(endpoint).recorder(recorder).connect().await?;
/// # let _ = client;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct OpenTelemetryRecorder {
    meter: Meter,
    call_duration: Histogram<f64>,
    attempts_started: Counter<u64>,
    attempt_duration: Histogram<f64>,
    sent_size: Histogram<u64>,
    received_size: Histogram<u64>,
    queue_duration: Histogram<f64>,
    polls: Counter<u64>,
    operations_done: Counter<u64>,
    operation_wait: Histogram<f64>,
    experimental: Option<Experimental>,
    clients: Arc<Clients>,
}

/// The instruments of [gRFC A96](https://github.com/grpc/proposal/blob/master/A96-retry-otel-stats.md).
#[derive(Clone)]
struct Experimental {
    retries: Histogram<u64>,
    transparent_retries: Histogram<u64>,
    retry_delay: Histogram<f64>,
}

impl OpenTelemetryRecorder {
    /// Creates a recorder with the instruments of gRFC A66, and those of this crate.
    pub fn new(provider: &impl MeterProvider) -> Self {
        let scope = InstrumentationScope::builder("longrunning")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        let meter = provider.meter_with_scope(scope);
        let clients = Arc::new(Clients::default());
        observe(&meter, &clients, OWN);
        Self {
            call_duration: seconds(&meter, "grpc.client.call.duration", CALL_DURATION),
            attempts_started: meter
                .u64_counter("grpc.client.attempt.started")
                .with_description(
                    "Number of attempts started, including those that have not ended.",
                )
                .with_unit("{attempt}")
                .build(),
            attempt_duration: seconds(&meter, "grpc.client.attempt.duration", ATTEMPT_DURATION),
            sent_size: bytes(
                &meter,
                "grpc.client.attempt.sent_total_compressed_message_size",
                "Size of the request message of an attempt, without framing.",
            ),
            received_size: bytes(
                &meter,
                "grpc.client.attempt.rcvd_total_compressed_message_size",
                "Size of the response message of an attempt, without framing.",
            ),
            queue_duration: seconds(&meter, "longrunning.attempt.queue_duration", QUEUE_DURATION),
            polls: meter
                .u64_counter("longrunning.polls")
                .with_description("Number of polls that have ended.")
                .with_unit("{poll}")
                .build(),
            operations_done: meter
                .u64_counter("longrunning.operation.done")
                .with_description("Number of operations that a poller has found to be done.")
                .with_unit("{operation}")
                .build(),
            operation_wait: meter
                .f64_histogram("longrunning.operation.wait_duration")
                .with_description(
                    "Time from the first poll of an operation until it was found to be done.",
                )
                .with_unit("s")
                .with_boundaries(WAITS.into())
                .build(),
            experimental: None,
            meter,
            clients,
        }
    }

    /// Adds the experimental instruments of gRFCs [A94] and [A96], whose names may change.
    ///
    /// [A94]: https://github.com/grpc/proposal/blob/master/A94-subchannel-otel-metrics.md
    /// [A96]: https://github.com/grpc/proposal/blob/master/A96-retry-otel-stats.md
    #[must_use]
    pub fn experimental(mut self) -> Self {
        if self.experimental.is_some() {
            return self;
        }
        let meter = &self.meter;
        observe(meter, &self.clients, A94);
        let counts = |name, unit, boundaries: &[f64], description| {
            let histogram = meter.u64_histogram(name).with_unit(unit);
            let histogram = histogram.with_description(description);
            histogram.with_boundaries(boundaries.into()).build()
        };
        self.experimental = Some(Experimental {
            retries: counts(
                "grpc.client.call.retries",
                "{retry}",
                &[1.0, 2.0, 3.0, 4.0, 5.0],
                "Number of retries of a call that was retried.",
            ),
            transparent_retries: counts(
                "grpc.client.call.transparent_retries",
                "{transparent_retry}",
                &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0],
                "Number of transparent retries of a call that was retried transparently.",
            ),
            retry_delay: seconds(meter, "grpc.client.call.retry_delay", RETRY_DELAY),
        });
        self
    }
}

impl Recorder for OpenTelemetryRecorder {
    fn client_created(&self, client: &StatsSource) {
        self.clients.add(client.clone());
    }

    fn attempt_started(&self, attempt: &AttemptStarted<'_>) {
        let attributes = attributes(attempt.target, [method(attempt.method)]);
        self.attempts_started.add(1, &attributes);
    }

    fn attempt_ended(&self, attempt: &AttemptEnded<'_>) {
        let own = [method(attempt.method), status(attempt.code_name())];
        let attributes = attributes(attempt.target, own);
        self.attempt_duration
            .record(attempt.duration.as_secs_f64(), &attributes);
        self.sent_size
            .record(attempt.sent_bytes as u64, &attributes);
        self.received_size
            .record(attempt.received_bytes as u64, &attributes);
        if let Some(queued) = attempt.queued {
            self.queue_duration
                .record(queued.as_secs_f64(), &attributes);
        }
    }

    fn call_ended(&self, call: &CallEnded<'_>) {
        let own = [method(call.method), status(call.code_name())];
        let attributes = attributes(call.target, own);
        self.call_duration
            .record(call.duration.as_secs_f64(), &attributes);
        if let Some(experimental) = &self.experimental {
            experimental.call_ended(call);
        }
    }

    fn poll_ended(&self, poll: &PollEnded<'_>) {
        let method = KeyValue::new("longrunning.poll.method", poll.method.name());
        let attributes = attributes(poll.target, [method, status(poll.code_name())]);
        self.polls.add(1, &attributes);
    }

    fn operation_done(&self, operation: &OperationDone<'_>) {
        let outcome = KeyValue::new("longrunning.outcome", operation.outcome.name());
        let attributes = attributes(operation.target, [outcome]);
        self.operations_done.add(1, &attributes);
        self.operation_wait
            .record(operation.duration.as_secs_f64(), &attributes);
    }
}

impl Experimental {
    fn call_ended(&self, call: &CallEnded<'_>) {
        let attributes = &attributes(call.target, [method(call.method)]);
        // gRFC A96: a call without retries is not recorded.
        if call.retries > 0 {
            self.retries.record(call.retries as u64, attributes);
        }
        if call.transparent_retries > 0 {
            let retries = call.transparent_retries as u64;
            self.transparent_retries.record(retries, attributes);
        }
        if call.retries + call.transparent_retries > 0 {
            self.retry_delay
                .record(call.retry_delay.as_secs_f64(), attributes);
        }
    }
}

impl fmt::Debug for OpenTelemetryRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenTelemetryRecorder")
            .field("experimental", &self.experimental.is_some())
            .finish_non_exhaustive()
    }
}

const CALL_DURATION: &str =
    "Duration of a call, including all attempts and the delays between them.";
const ATTEMPT_DURATION: &str =
    "Duration of an attempt, including the wait for a token, a connection and a stream.";
const QUEUE_DURATION: &str =
    "Time that a request was queued, whether or not it was sent afterwards.";
const RETRY_DELAY: &str = "Time during which a retried call had no attempt in progress.";

/// The latency buckets of gRFC A66, in seconds.
const LATENCIES: [f64; 41] = [
    0.0, 0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005,
    0.006, 0.008, 0.01, 0.013, 0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16,
    0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
];

/// The size buckets of gRFC A66, in bytes.
const SIZES: [f64; 14] = [
    0.0,
    1024.0,
    2048.0,
    4096.0,
    16384.0,
    65536.0,
    262144.0,
    1048576.0,
    4194304.0,
    16777216.0,
    67108864.0,
    268435456.0,
    1073741824.0,
    4294967296.0,
];

/// Buckets for the time until operations are done, in seconds.
const WAITS: [f64; 14] = [
    0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 10800.0, 43200.0, 86400.0,
];

fn seconds(meter: &Meter, name: &'static str, description: &'static str) -> Histogram<f64> {
    meter
        .f64_histogram(name)
        .with_description(description)
        .with_unit("s")
        .with_boundaries(LATENCIES.into())
        .build()
}

fn bytes(meter: &Meter, name: &'static str, description: &'static str) -> Histogram<u64> {
    meter
        .u64_histogram(name)
        .with_description(description)
        .with_unit("By")
        .with_boundaries(SIZES.into())
        .build()
}

fn method(method: &'static str) -> KeyValue {
    KeyValue::new("grpc.method", method)
}

fn status(code: &'static str) -> KeyValue {
    KeyValue::new("grpc.status", code)
}

/// Returns the attributes of a measurement: the target, if it is known, and others.
fn attributes<const N: usize>(target: Option<&Arc<str>>, others: [KeyValue; N]) -> Vec<KeyValue> {
    let target = target.map(|target| KeyValue::new("grpc.target", target.clone()));
    others.into_iter().chain(target).collect()
}
