//! One measurement of one variant, in a process of its own.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use tokio::{runtime, sync::Barrier, task::JoinSet};

#[cfg(feature = "peers")]
use crate::variants::{Gcloud, GoogleCloud};
use crate::{
    Result, allocations, memory, open_loop,
    plan::{Length, Plan},
    record::Record,
    spawn::{self, Server},
    variants::{BEARER, Floor, OPERATIONS, Ours, Raw, Variant},
};

/// Measures the variant that is named first, and prints what it found.
pub(crate) fn run(arguments: &[String]) -> Result {
    let (name, options) = arguments.split_first().ok_or("name a variant")?;
    let plan = Plan::parse(options)?;
    let mut builder = match plan.threads {
        1 => {
            spawn::pin(0);
            runtime::Builder::new_current_thread()
        }
        _ => runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(plan.threads).enable_all().build()?;
    let server = Server::start(&plan)?;
    let measured = runtime.block_on(async {
        // Made before anything is counted.
        LazyLock::force(&OPERATIONS);
        LazyLock::force(&BEARER);
        match name.as_str() {
            "raw tonic stub" => measure(server, plan, Raw::connect).await,
            "longrunning" => measure(server, plan, Ours::connect).await,
            #[cfg(feature = "observability")]
            "longrunning with metrics" => measure(server, plan, Ours::with_metrics).await,
            #[cfg(feature = "observability")]
            "longrunning with spans" => measure(server, plan, Ours::with_spans).await,
            "longrunning on a Channel" => measure(server, plan, Ours::on_channel).await,
            #[cfg(feature = "peers")]
            "gcloud-longrunning" => measure(server, plan, Gcloud::connect).await,
            #[cfg(feature = "peers")]
            "google-cloud-longrunning" => measure(server, plan, GoogleCloud::connect).await,
            "h2 alone" => measure(server, plan, Floor::connect).await,
            _ => Err(format!("{name}: there is no such variant").into()),
        }
    });
    println!("{}", measured?);
    Ok(())
}

async fn measure<V: Variant>(
    mut server: Server,
    plan: Plan,
    connect: impl AsyncFnOnce(&Server) -> Result<V>,
) -> Result<Record> {
    if let Length::Memory = plan.length {
        return memory::measure(&server, &plan, connect).await;
    }
    let mut variant = connect(&server).await?;
    variant.cancel(&OPERATIONS[0]).await?;
    if let Length::Bulk(names) = plan.length {
        let before = Sample::take(&mut server)?;
        variant.cancel_all(names, plan.concurrency).await?;
        return Ok(Sample::take(&mut server)?.since(&before));
    }
    if plan.offered > 0 {
        return open_loop::measure(&variant, &plan).await;
    }
    let gates = Arc::new([
        Barrier::new(plan.concurrency + 1),
        Barrier::new(plan.concurrency + 1),
    ]);
    let mut workers = JoinSet::new();
    for number in 0..plan.concurrency {
        let worker = Worker {
            variant: variant.clone(),
            names: OPERATIONS
                .iter()
                .cycle()
                .skip(number * 61 % OPERATIONS.len()),
            latencies: Vec::with_capacity(1 << 18 >> plan.concurrency.ilog2()),
        };
        workers.spawn(worker.run(plan.clone(), gates.clone()));
    }
    gates[0].wait().await;
    let before = Sample::take(&mut server)?;
    gates[1].wait().await;
    let mut latencies = Vec::new();
    while let Some(done) = workers.join_next().await {
        latencies.push(done??);
    }
    let after = Sample::take(&mut server)?;
    let mut record = after.since(&before);
    let mut latencies = latencies.concat();
    latencies.sort_unstable();
    for (key, share) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
        if let Some(last) = latencies.len().checked_sub(1) {
            let nanos = latencies[(last as f64 * share) as usize];
            record.set(key, f64::from(nanos) / 1e3);
        }
    }
    Ok(record)
}

/// Makes one call after the other.
struct Worker<V, N> {
    variant: V,
    names: N,
    latencies: Vec<u32>,
}

impl<V: Variant, N: Iterator<Item = &'static String>> Worker<V, N> {
    /// Warms up, waits for the others, and does its part.
    async fn run(mut self, plan: Plan, gates: Arc<[Barrier; 2]>) -> Result<Vec<u32>> {
        // Connections are opened, buffers grow, and HPACK's tables fill.
        let warm = match plan.length {
            Length::Calls(_) => Length::Calls(8 * plan.concurrency),
            _ => Length::Time(Duration::from_millis(250)),
        };
        self.load(warm, plan.concurrency).await?;
        self.latencies.clear();
        gates[0].wait().await;
        gates[1].wait().await;
        self.load(plan.length, plan.concurrency).await?;
        Ok(self.latencies)
    }

    async fn load(&mut self, length: Length, workers: usize) -> Result {
        match length {
            Length::Calls(calls) => {
                for name in self.names.by_ref().take(calls / workers) {
                    self.variant.cancel(name).await?;
                }
            }
            Length::Time(time) => {
                let start = Instant::now();
                let mut called = start;
                for name in self.names.by_ref() {
                    self.variant.cancel(name).await?;
                    let answered = Instant::now();
                    let nanos = (answered - called).as_nanos();
                    self.latencies
                        .push(u32::try_from(nanos).unwrap_or(u32::MAX));
                    called = answered;
                    if answered - start >= time {
                        break;
                    }
                }
            }
            Length::Bulk(_) | Length::Memory => {}
        }
        Ok(())
    }
}

/// Where the counters stand.
struct Sample {
    at: Instant,
    cpu: Duration,
    allocations: u64,
    allocated: u64,
    server: Record,
}

impl Sample {
    fn take(server: &mut Server) -> Result<Self> {
        let server = server.counts()?;
        let (allocations, allocated) = allocations::so_far();
        Ok(Self {
            at: Instant::now(),
            cpu: spawn::cpu(),
            allocations,
            allocated,
            server,
        })
    }

    /// What a call took since an earlier sample.
    fn since(&self, before: &Self) -> Record {
        let server = |key| {
            let (before, after) = (before.server.get(key), self.server.get(key));
            after.unwrap_or(f64::NAN) - before.unwrap_or(f64::NAN)
        };
        let calls = server("calls");
        let cpu = self.cpu - before.cpu;
        let allocations = self.allocations - before.allocations;
        let allocated = self.allocated - before.allocated;
        let mut record = Record::default();
        record.set("calls", calls);
        record.set("rate", calls / (self.at - before.at).as_secs_f64());
        record.set("cpu", cpu.as_secs_f64() * 1e6 / calls);
        record.set("server_cpu", server("cpu") / 1e3 / calls);
        record.set("sent", server("bytes") / calls);
        record.set("allocations", allocations as f64 / calls);
        record.set("allocated", allocated as f64 / calls);
        record
    }
}
