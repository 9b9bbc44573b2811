//! Watching many operations.
//!
//! The server is in this process and time is paused, so that hours are fast and no result depends on the machine.

mod lists;
mod properties;
mod results;
mod server;
mod task;

use std::{collections::HashMap, time::Duration};

use longrunning::{GrpcStack, Operation, OperationSet};
use server::{Faults, Method, Server};
use tokio::time::timeout;
use tonic::Status;

const PARENT: &str = "projects/p/locations/l";
const SECOND: Duration = Duration::from_secs(1);

fn name(n: usize) -> String {
    format!("{PARENT}/operations/{n:06}")
}

/// Starts operations under one parent that end evenly over the given time, and returns a set that watches them.
fn watched(
    server: &Server,
    operations: usize,
    over: Duration,
) -> OperationSet<impl GrpcStack + Sync> {
    let set = server.client().operation_set();
    for n in 0..operations {
        server.start(name(n), Some(over.mul_f64(n as f64 / operations as f64)));
        assert!(set.insert(name(n)));
    }
    set
}

/// Takes all results, and checks that each name has one.
async fn drain<S: GrpcStack + Sync>(
    set: &OperationSet<S>,
    operations: usize,
) -> HashMap<String, Result<Operation, Status>> {
    let mut results = HashMap::new();
    let all = async {
        while let Some((name, result)) = set.next().await {
            let earlier = results.insert(name, result);
            assert!(earlier.is_none(), "{earlier:?}");
        }
    };
    let hours = Duration::from_secs(24 * 3600);
    timeout(hours, all)
        .await
        .expect("all operations are delivered");
    assert_eq!(results.len(), operations);
    results
}

fn assert_done(results: &HashMap<String, Result<Operation, Status>>) {
    for (name, result) in results {
        let operation = result.as_ref().expect("no failure");
        assert!(operation.done && operation.name == *name, "{operation:?}");
    }
}
