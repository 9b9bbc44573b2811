//! What an idle client and a call in flight keep in memory.

use std::time::Duration;

use tokio::{task::JoinSet, time::sleep};

use crate::{
    Result,
    plan::Plan,
    record::Record,
    spawn::{Resident, Server},
    variants::{OPERATIONS, Variant},
};

/// Takes the resident memory before there is a client, after its first call, and while as many
/// calls as the plan says wait for a server that takes its time.
pub(crate) async fn measure<V: Variant>(
    server: &Server,
    plan: &Plan,
    connect: impl AsyncFnOnce(&Server) -> Result<V>,
) -> Result<Record> {
    let without = Resident::now()?;
    let mut variant = connect(server).await?;
    variant.cancel(&OPERATIONS[0]).await?;
    let idle = Resident::now()?;
    let mut calls = JoinSet::new();
    for name in OPERATIONS.iter().cycle().take(plan.concurrency) {
        let mut variant = variant.clone();
        calls.spawn(async move { variant.cancel(name).await });
    }
    // All have been sent by then, and none is answered.
    sleep(plan.delay.saturating_sub(Duration::from_millis(500))).await;
    let busy = Resident::now()?;
    if calls.len() != plan.concurrency || calls.try_join_next().is_some() {
        return Err("a call was answered before the memory was looked at".into());
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    let mut record = Record::default();
    record.set("idle", idle.own.saturating_sub(without.own) as f64);
    record.set("idle_all", idle.all.saturating_sub(without.all) as f64);
    record.set(
        "in_flight",
        busy.own.saturating_sub(idle.own) as f64 / plan.concurrency as f64,
    );
    Ok(record)
}
