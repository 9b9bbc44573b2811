//! Property tests: under random combinations of server faults, each operation is returned once, with the state that the
//! server returned, within a time limit.

use std::collections::BTreeMap;

use longrunning::SetEntry;
use proptest::{prelude::*, sample::select};
use tokio::{
    runtime,
    time::{Instant, sleep},
};
use tonic::Code;

use super::*;

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    operations: Vec<Planned>,
    phases: Vec<(Faults, Duration)>,
    max_untaken: usize,
    max_in_flight: usize,
    /// The time that the consumer needs for each result.
    consumer: Duration,
}

#[derive(Clone, Debug)]
struct Planned {
    name: String,
    inserted_after: Duration,
    /// The server does not know the operation if this is `None`.
    ends_after: Option<Duration>,
    is_hidden: bool,
    is_urgent: bool,
    is_removed: bool,
}

fn seconds(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    (1_000 * range.start..1_000 * range.end).prop_map(Duration::from_millis)
}

fn planned() -> impl Strategy<Value = Planned> {
    let names = prop_oneof![
        6 => (0..400_u32).prop_map(|n| format!("projects/p/locations/a/operations/{n}")),
        2 => (0..100_u32).prop_map(|n| format!("projects/p/locations/b/operations/{n}")),
        1 => (0..1_000_u32).prop_map(|n| format!("projects/{n}/operations/1")),
        1 => (0..1_000_u32).prop_map(|n| format!("jobs/{n}")),
    ];
    let ends = prop_oneof![1 => Just(None), 20 => seconds(0..1_000).prop_map(Some)];
    let share = |percent: u32| (0..100_u32).prop_map(move |n| n < percent);
    (names, seconds(0..300), ends, share(5), share(3), share(3)).prop_map(
        |(name, inserted_after, ends_after, is_hidden, is_urgent, is_removed)| Planned {
            name,
            inserted_after,
            ends_after,
            is_hidden,
            is_urgent,
            is_removed,
        },
    )
}

fn faults() -> impl Strategy<Value = Faults> {
    let list = select(vec![
        None,
        None,
        None,
        Some((Code::Unimplemented, "no List")),
        Some((Code::Unavailable, "busy")),
        Some((Code::ResourceExhausted, "quota of List")),
        Some((Code::Internal, "defect of List")),
        Some((Code::NotFound, "no such parent")),
    ]);
    let get = select(vec![
        None,
        None,
        None,
        Some((Code::Unavailable, "busy")),
        Some((Code::ResourceExhausted, "quota of Get")),
    ]);
    let share = || select(vec![0.0, 0.0, 0.05, 0.3, 0.7]);
    let repeats = select(vec![None, None, Some(1), Some(2)]);
    let latency = select(vec![0, 50, 900, 12_000]).prop_map(Duration::from_millis);
    let pages = select(vec![1, 7, 50, 1_000]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (list, get, share(), share(), repeats, latency, pages, flags).prop_map(
        |(list, get, unavailable, lost, tokens_repeat_after, latency, page_size, flags)| Faults {
            list,
            get,
            unavailable,
            lost,
            tokens_repeat_after,
            pages_never_end: false,
            tokens_expire: flags.0,
            rejects_filter: flags.1.then_some(Code::InvalidArgument),
            pushback: None,
            ignores_filter: flags.2,
            page_size,
            latency,
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let operations = prop::collection::vec(planned(), 1..250);
    let phases = prop::collection::vec((faults(), seconds(1..900)), 0..6);
    let limits = (select(vec![1, 2, 10, 1_000]), select(vec![1, 2, 5, 100]));
    let consumer = select(vec![0, 0, 10, 1_000]).prop_map(Duration::from_millis);
    (any::<u64>(), operations, phases, limits, consumer).prop_map(
        |(seed, operations, phases, (max_untaken, max_in_flight), consumer)| Case {
            seed,
            operations,
            phases,
            max_untaken,
            max_in_flight,
            consumer,
        },
    )
}

/// Runs a case. Each fault lasts for some time; after the last, the server has no faults.
async fn run(case: Case) {
    fastrand::seed(case.seed);
    let server = Server::default();
    let set = server.client().operation_set();
    let set = set
        .max_untaken(case.max_untaken)
        .max_in_flight(case.max_in_flight);
    let begun = Instant::now();
    let faults = {
        let (server, phases) = (server.clone(), case.phases.clone());
        async move {
            for (faults, time) in phases {
                server.lock().faults = faults;
                sleep(time).await;
            }
            server.lock().faults = Faults::default();
        }
    };
    let mut operations = case.operations;
    operations.sort_by_key(|planned| planned.inserted_after);
    let last = begun
        + operations
            .last()
            .map_or(Duration::ZERO, |last| last.inserted_after);
    let mut expected = BTreeMap::new();
    for planned in &operations {
        // A name that is inserted again, after its result was taken, would be returned again.
        expected
            .entry(planned.name.clone())
            .or_insert(planned.clone());
    }
    for planned in expected.values() {
        match planned.ends_after {
            Some(ends) if planned.is_hidden => server.start_hidden(&planned.name, Some(ends)),
            Some(ends) => server.start(&planned.name, Some(ends)),
            None => {}
        }
    }
    let inserts = {
        let (set, plan) = (set.clone(), expected.clone());
        async move {
            let mut plan: Vec<_> = plan.into_values().collect();
            plan.sort_by_key(|planned| planned.inserted_after);
            for planned in plan {
                tokio::time::sleep_until(begun + planned.inserted_after).await;
                let mut entry = SetEntry::new(planned.name.clone());
                entry.urgent = planned.is_urgent;
                assert!(set.insert(entry));
                if planned.is_removed {
                    assert!(set.remove(&planned.name));
                }
            }
        }
    };
    tokio::spawn(faults);
    tokio::spawn(inserts);
    let longest = Duration::from_secs(6 * 3600);
    let mut results = HashMap::new();
    let results_of_all = async {
        loop {
            match set.next().await {
                Some((name, result)) => {
                    let known = &expected[&name];
                    let ends = known
                        .ends_after
                        .filter(|ends| begun + *ends <= Instant::now());
                    match &result {
                        Ok(operation) => assert!(operation.done && ends.is_some(), "{name}"),
                        Err(status) => {
                            assert_eq!(status.code(), Code::NotFound, "{name}: {status}");
                            assert_eq!(known.ends_after, None, "{name}");
                        }
                    }
                    let stats = set.stats();
                    assert!(stats.untaken <= case.max_untaken, "{stats:?}");
                    assert!(stats.in_flight <= case.max_in_flight, "{stats:?}");
                    assert!(results.insert(name, result).is_none());
                    sleep(case.consumer).await;
                }
                None if Instant::now() > last => break,
                None => sleep(Duration::from_secs(1)).await,
            }
        }
    };
    let ended = timeout(longest, results_of_all).await;
    assert!(
        ended.is_ok(),
        "{:?}, {:?}",
        set,
        set.iter().collect::<Vec<_>>()
    );
    let removed = expected
        .values()
        .filter(|planned| planned.is_removed)
        .count();
    assert_eq!(results.len(), expected.len() - removed);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn each_operation_is_returned_once_with_the_state_that_the_server_returned(case in case()) {
        let mut runtime = runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().expect("a runtime");
        runtime.block_on(run(case));
    }
}

/// Faults that last, each alone and with the others: nothing is delayed without end.
#[tokio::test(start_paused = true)]
async fn no_operation_starves_while_a_fault_lasts() {
    let list = |code, message| Faults {
        list: Some((code, message)),
        ..Faults::default()
    };
    let lasting = [
        list(Code::Unavailable, "busy"),
        list(Code::ResourceExhausted, "quota"),
        Faults {
            unavailable: 0.5,
            lost: 0.5,
            ..list(Code::Internal, "a defect")
        },
        Faults {
            unavailable: 0.5,
            lost: 0.3,
            page_size: 7,
            ..Faults::default()
        },
        Faults {
            lost: 1.0,
            ..Faults::default()
        },
        Faults {
            page_size: 10,
            tokens_repeat_after: Some(2),
            unavailable: 0.3,
            ..Faults::default()
        },
        Faults {
            pages_never_end: true,
            ..Faults::default()
        },
        Faults {
            page_size: 3,
            tokens_expire: true,
            unavailable: 0.3,
            rejects_filter: Some(Code::Internal),
            ..Faults::default()
        },
    ];
    fastrand::seed(7);
    for faults in lasting {
        let server = Server::new(faults.clone());
        let set = watched(&server, 200, 400 * SECOND);
        for n in 0..20 {
            let name = format!("projects/{n}/operations/1");
            server.start(&name, Some(SECOND));
            set.insert(name);
        }
        let begun = Instant::now();
        assert_done(&drain(&set, 220).await);
        assert!(
            begun.elapsed() <= 700 * SECOND,
            "{faults:?}: {:?}",
            begun.elapsed()
        );
    }
}
