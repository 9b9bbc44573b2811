//! Observable instruments, which are read when metrics are collected: connections, streams, queues, throttles and
//! tokens.

use std::sync::Arc;

use opentelemetry::metrics::Meter;

use super::clients::{Clients, Target};

/// An observable instrument.
pub(super) struct Instrument {
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    value: Value,
}

/// The type of an instrument, and the function that reads its value; `None` if there is nothing to observe.
enum Value {
    Counter(fn(&Target) -> Option<u64>),
    UpDownCounter(fn(&Target) -> usize),
    Gauge(fn(&Target) -> Option<f64>),
}

/// The instruments of this crate.
pub(super) const OWN: &[Instrument] = &[
    Instrument {
        name: "longrunning.connection.limit",
        unit: "{connection}",
        description: "Maximum number of connections that accept new calls.",
        value: Value::UpDownCounter(|it| it.max_connections),
    },
    Instrument {
        name: "longrunning.stream.in_use",
        unit: "{stream}",
        description: "Number of streams in use on connections that accept new calls.",
        value: Value::UpDownCounter(|it| it.streams_in_use),
    },
    Instrument {
        name: "longrunning.stream.limit",
        unit: "{stream}",
        description: "Maximum number of streams on connections that accept new calls.",
        value: Value::UpDownCounter(|it| it.max_streams),
    },
    Instrument {
        name: "longrunning.stream.resets",
        unit: "{reset}",
        description: "Number of streams that were reset because their calls were dropped or timed out.",
        value: Value::Counter(|it| Some(it.totals.transport.stream_resets)),
    },
    Instrument {
        name: "longrunning.queue.size",
        unit: "{call}",
        description: "Number of calls that wait for a stream.",
        value: Value::UpDownCounter(|it| it.queued_calls),
    },
    Instrument {
        name: "longrunning.queue.limit",
        unit: "{call}",
        description: "Maximum number of calls that wait for a stream.",
        value: Value::UpDownCounter(|it| it.max_queued_calls),
    },
    Instrument {
        name: "longrunning.queue.blocked_callers",
        unit: "{caller}",
        description: "Number of callers that wait for space in the queue.",
        value: Value::UpDownCounter(|it| it.blocked_callers),
    },
    Instrument {
        name: "longrunning.queue.age",
        unit: "s",
        description: "How long the oldest queued call has waited; 0 if no call is queued.",
        value: Value::Gauge(|it| Some(it.queue_age)),
    },
    Instrument {
        name: "longrunning.keepalive.timeouts",
        unit: "{timeout}",
        description: "Number of connections that were closed because the peer did not answer a keepalive ping.",
        value: Value::Counter(|it| Some(it.totals.transport.keepalive_timeouts)),
    },
    Instrument {
        name: "longrunning.retry_throttle.tokens",
        unit: "{token}",
        description: "Number of tokens left in the retry throttle.",
        value: Value::Gauge(|it| it.throttle.map(|throttle| throttle.tokens)),
    },
    Instrument {
        name: "longrunning.retry_throttle.limit",
        unit: "{token}",
        description: "Maximum number of tokens in the retry throttle.",
        value: Value::Gauge(|it| it.throttle.map(|throttle| throttle.max_tokens)),
    },
    Instrument {
        name: "longrunning.retry_throttle.suppressed_retries",
        unit: "{retry}",
        description: "Number of retries that the retry throttle has suppressed.",
        value: Value::Counter(|it| it.totals.suppressed_retries),
    },
    Instrument {
        name: "longrunning.token.valid",
        unit: "{token}",
        description: "1 if all tokens are valid, and 0 otherwise.",
        value: Value::Gauge(|it| it.has_valid_token.map(|is_valid| is_valid.into())),
    },
    Instrument {
        name: "longrunning.token.age",
        unit: "s",
        description: "Time since the current token was fetched.",
        value: Value::Gauge(|it| it.token_age),
    },
    Instrument {
        name: "longrunning.token.remaining_lifetime",
        unit: "s",
        description: "Time until the current token expires; negative if it has expired.",
        value: Value::Gauge(|it| it.token_lifetime),
    },
    Instrument {
        name: "longrunning.token.fetches_succeeded",
        unit: "{fetch}",
        description: "Number of token fetches that have succeeded.",
        value: Value::Counter(|it| it.totals.fetches.map(|fetches| fetches.succeeded)),
    },
    Instrument {
        name: "longrunning.token.fetches_failed",
        unit: "{fetch}",
        description: "Number of token fetches that have failed.",
        value: Value::Counter(|it| it.totals.fetches.map(|fetches| fetches.failed)),
    },
    Instrument {
        name: "longrunning.token.rejections",
        unit: "{rejection}",
        description: "Number of tokens that a server has rejected before they expired.",
        value: Value::Counter(|it| it.totals.fetches.map(|fetches| fetches.rejected)),
    },
];

/// The instruments of [gRFC A94](https://github.com/grpc/proposal/blob/master/A94-subchannel-otel-metrics.md).
pub(super) const A94: &[Instrument] = &[
    Instrument {
        name: "grpc.subchannel.open_connections",
        unit: "{connection}",
        description: "Number of open connections.",
        value: Value::UpDownCounter(|it| it.totals.transport.open_connections()),
    },
    Instrument {
        name: "grpc.subchannel.disconnections",
        unit: "{disconnection}",
        description: "Number of connections that were closed, for any reason.",
        value: Value::Counter(|it| Some(it.totals.transport.disconnections)),
    },
    Instrument {
        name: "grpc.subchannel.connection_attempts_succeeded",
        unit: "{attempt}",
        description: "Number of connections that were opened.",
        value: Value::Counter(|it| Some(it.totals.transport.connection_attempts_succeeded)),
    },
    Instrument {
        name: "grpc.subchannel.connection_attempts_failed",
        unit: "{attempt}",
        description: "Number of failed attempts to open a connection.",
        value: Value::Counter(|it| Some(it.totals.transport.connection_attempts_failed)),
    },
];

/// Registers instruments that observe these clients.
pub(super) fn observe(meter: &Meter, clients: &Arc<Clients>, instruments: &'static [Instrument]) {
    for instrument in instruments {
        let (name, unit) = (instrument.name, instrument.unit);
        let description = instrument.description;
        let clients = clients.clone();
        match instrument.value {
            Value::Counter(value) => drop(
                meter
                    .u64_observable_counter(name)
                    .with_unit(unit)
                    .with_description(description)
                    .with_callback(move |observer| {
                        for target in clients.targets() {
                            if let Some(value) = value(&target) {
                                observer.observe(value, &target.attributes);
                            }
                        }
                    })
                    .build(),
            ),
            Value::UpDownCounter(value) => drop(
                meter
                    .i64_observable_up_down_counter(name)
                    .with_unit(unit)
                    .with_description(description)
                    .with_callback(move |observer| {
                        for target in clients.targets() {
                            let value = i64::try_from(value(&target)).unwrap_or(i64::MAX);
                            observer.observe(value, &target.attributes);
                        }
                    })
                    .build(),
            ),
            Value::Gauge(value) => drop(
                meter
                    .f64_observable_gauge(name)
                    .with_unit(unit)
                    .with_description(description)
                    .with_callback(move |observer| {
                        for target in clients.targets() {
                            if let Some(value) = value(&target) {
                                observer.observe(value, &target.attributes);
                            }
                        }
                    })
                    .build(),
            ),
        }
    }
}
