//! Results: each once, to one consumer, and nothing but what the server returned.

use std::{sync::Arc, time::SystemTime};

use longrunning::SetEntry;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::Code;

use super::*;

#[tokio::test(start_paused = true)]
async fn each_operation_is_returned_once_when_it_is_done() {
    let server = Server::default();
    let set = watched(&server, 3_000, 600 * SECOND);
    assert_done(&drain(&set, 3_000).await);
    assert!(set.is_empty() && set.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_present_name_is_not_inserted_again() {
    let server = Server::default();
    let set = watched(&server, 1, SECOND);
    assert!(!set.insert(name(0)));
    while set.stats().untaken == 0 {
        sleep(SECOND).await;
    }
    assert!(!set.insert(name(0)), "its result has not been taken");
    assert_eq!(set.len(), 1);
    drain(&set, 1).await;
    assert!(set.insert(name(0)));
    drain(&set, 1).await;
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_is_done_when_inserted_needs_no_call() {
    let server = Server::default();
    let set = server.client().operation_set();
    let operation = Operation {
        name: name(0),
        done: true,
        ..Operation::default()
    };
    assert!(set.insert(&operation));
    let (returned, result) = set.next().await.expect("one result");
    assert_eq!(
        (returned, result.expect("no failure")),
        (name(0), operation)
    );
    assert!(server.lock().calls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_removed_operation_is_not_returned() {
    let server = Server::default();
    let set = watched(&server, 10, SECOND);
    assert!(set.contains(&name(3)) && set.remove(&name(3)) && !set.remove(&name(3)));
    while set.stats().untaken < 9 {
        sleep(SECOND).await;
    }
    assert!(set.remove(&name(4)), "its result has not been taken");
    assert!(!set.contains(&name(4)));
    let results = drain(&set, 8).await;
    assert!(!results.contains_key(&name(3)) && !results.contains_key(&name(4)));
}

#[tokio::test(start_paused = true)]
async fn consumers_return_none_when_the_last_operation_is_removed() {
    let server = Server::default();
    let set = server.client().operation_set();
    server.start(name(0), None);
    set.insert(name(0));
    let mut consumers = JoinSet::new();
    for _ in 0..3 {
        let set = set.clone();
        consumers.spawn(async move { set.next().await.is_none() });
    }
    sleep(10 * SECOND).await;
    set.remove(&name(0));
    assert!(
        consumers
            .join_all()
            .await
            .into_iter()
            .all(|is_none| is_none)
    );
}

#[tokio::test(start_paused = true)]
async fn each_result_goes_to_one_consumer() {
    let server = Server::default();
    let set = watched(&server, 2_000, 60 * SECOND);
    let mut consumers = JoinSet::new();
    for _ in 0..5 {
        let set = set.clone();
        consumers.spawn(async move {
            let mut names = Vec::new();
            while let Some((name, _)) = set.next().await {
                names.push(name);
            }
            names
        });
    }
    let mut names = consumers.join_all().await.concat();
    names.sort();
    assert_eq!(names, (0..2_000).map(name).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn dropped_calls_of_next_lose_no_result() {
    let server = Server::default();
    let set = watched(&server, 500, 60 * SECOND);
    let mut names = Vec::new();
    while !set.is_empty() {
        let short = Duration::from_millis(fastrand::u64(0..500));
        if let Ok(Some((name, _))) = timeout(short, set.next()).await {
            names.push(name);
        }
    }
    names.sort();
    assert_eq!(names, (0..500).map(name).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_notification_of_a_dropped_consumer_goes_to_another() {
    let server = Server::default();
    let set = watched(&server, 1, 5 * SECOND);
    let mut dropped = Box::pin(set.next());
    assert!(poll_once(dropped.as_mut()).await.is_none());
    let other = set.clone();
    let other = tokio::spawn(async move { other.next().await });
    while set.stats().untaken == 0 {
        sleep(Duration::from_millis(1)).await;
        if set.stats().len == 0 {
            break; // the other consumer was notified
        }
    }
    drop(dropped);
    let (returned, _) = other.await.expect("no panic").expect("one result");
    assert_eq!(returned, name(0));
}

async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn polling_stops_while_too_many_results_are_untaken() {
    let server = Server::new(Faults {
        page_size: 50,
        ..Faults::default()
    });
    let set = watched(&server, 1_000, SECOND).max_untaken(5);
    sleep(60 * SECOND).await;
    assert_eq!(set.stats().untaken, 5);
    let calls = server.lock().calls.len();
    sleep(600 * SECOND).await;
    assert_eq!(server.lock().calls.len(), calls);
    assert_done(&drain(&set, 1_000).await);
    // A page with more results than fit is not requested again.
    assert!(
        server.count(Method::List) <= 80,
        "{}",
        server.count(Method::List)
    );
}

#[tokio::test(start_paused = true)]
async fn one_untaken_result_is_enough_to_make_progress() {
    let server = Server::default();
    let set = watched(&server, 300, SECOND).max_untaken(0);
    let results = drain(&set, 300).await;
    assert_done(&results);
}

#[tokio::test(start_paused = true)]
async fn permanent_failures_are_returned_and_transient_ones_are_not() {
    let server = Server::new(Faults {
        unavailable: 0.5,
        ..Faults::default()
    });
    let set = watched(&server, 100, 60 * SECOND);
    set.insert(name(999));
    let mut results = drain(&set, 101).await;
    let missing = results.remove(&name(999)).expect("it was inserted");
    assert_eq!(
        missing.expect_err("no such operation").code(),
        Code::NotFound
    );
    assert_done(&results);
    assert!(set.stats().transient_failures > 0);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_the_client_rejects_is_returned_with_the_failure() {
    let server = Server::default();
    let set = server.client().operation_set();
    assert!(set.insert(""));
    let (returned, result) = set.next().await.expect("one result");
    assert_eq!(returned, "");
    assert_eq!(result.expect_err("empty").code(), Code::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn entries_can_be_inserted_into_another_set() {
    let server = Server::default();
    let set = watched(&server, 200, 60 * SECOND);
    sleep(30 * SECOND).await;
    let untaken = set.stats().untaken;
    assert!(untaken > 0);
    let entries: Vec<SetEntry> = set.iter().collect();
    drop(set);
    assert_eq!(entries.len(), 200);
    let polled = entries.iter().filter(|entry| entry.attempts > 0).count();
    assert!(polled > 50, "{polled}");
    assert!(
        entries
            .iter()
            .all(|entry| entry.inserted_at <= SystemTime::now())
    );
    let other = server.client().operation_set();
    for entry in entries {
        assert!(other.insert(entry));
    }
    assert_done(&drain(&other, 200).await);
}

#[tokio::test(start_paused = true)]
async fn an_urgent_operation_is_returned_as_soon_as_it_is_done() {
    let server = Server::default();
    server.start(name(0), Some(100 * SECOND));
    let set = server.client().operation_set();
    let mut entry = SetEntry::new(name(0));
    entry.urgent = true;
    set.insert(entry);
    let begun = Instant::now();
    assert_done(&drain(&set, 1).await);
    assert!(begun.elapsed() <= 101 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(server.count(Method::Wait), 2);
    assert_eq!(server.count(Method::Get), 0);
}

#[tokio::test(start_paused = true)]
async fn urgent_operations_leave_calls_for_the_others() {
    let server = Server::default();
    let set = server.client().operation_set().max_in_flight(4);
    for n in 0..10 {
        server.start(name(n), Some(300 * SECOND));
        let mut entry = SetEntry::new(name(n));
        entry.urgent = true;
        set.insert(entry);
    }
    server.start(name(99), Some(50 * SECOND));
    set.insert(name(99));
    let begun = Instant::now();
    let (first, _) = set.next().await.expect("a result");
    assert_eq!(first, name(99));
    assert!(begun.elapsed() <= 75 * SECOND, "{:?}", begun.elapsed());
    drain(&set, 10).await;
    assert!(server.count(Method::Get) > 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_operation_is_returned() {
    let server = Server::default();
    let set = server.client().operation_set();
    server.start(name(0), None);
    set.insert(name(0));
    sleep(300 * SECOND).await;
    set.cancel(&name(0)).await.expect("accepted");
    let begun = Instant::now();
    assert_done(&drain(&set, 1).await);
    assert!(begun.elapsed() <= 2 * SECOND, "{:?}", begun.elapsed());
    let unknown = set.cancel(&name(1)).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn statistics_count_calls_and_operations() {
    let server = Server::default();
    let set = Arc::new(watched(&server, 100, 1_000 * SECOND));
    sleep(60 * SECOND).await;
    let stats = set.stats();
    assert_eq!(stats.len, 100);
    assert_eq!(stats.listed_parents, 1);
    assert_eq!(stats.listed_operations + stats.untaken, 100);
    assert_eq!(stats.list_calls, server.count(Method::List) as u64);
    assert_eq!(stats.get_calls, server.count(Method::Get) as u64);
    assert_eq!((stats.wait_calls, stats.in_flight), (0, 0));
    assert_eq!((stats.transient_failures, stats.quota_rejections), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_was_not_taken_is_kept_in_its_entry() {
    let server = Server::default();
    let set = watched(&server, 1, SECOND);
    while set.stats().untaken == 0 {
        sleep(SECOND).await;
    }
    let entry = set.iter().next().expect("one operation");
    drop(set);
    server.lock().faults.get = Some((Code::NotFound, "deleted"));
    let other = server.client().operation_set();
    assert!(other.insert(entry));
    assert_done(&drain(&other, 1).await);
    assert_eq!(other.stats().results, 1);
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_stops_some_time_after_its_cancellation_is_returned_soon() {
    for operations in [1, 20, 5_000] {
        let server = Server::default();
        let set = server.client().operation_set();
        for n in 0..operations {
            server.start(name(n), None);
            set.insert(name(n));
        }
        sleep(300 * SECOND).await;
        let gets = server.count(Method::Get);
        set.cancel(&name(0)).await.expect("accepted");
        server.start(name(0), Some(3 * SECOND));
        let begun = Instant::now();
        let (returned, result) = set.next().await.expect("a result");
        assert_eq!(returned, name(0));
        assert!(result.expect("no failure").done);
        assert!(begun.elapsed() <= 6 * SECOND, "{:?}", begun.elapsed());
        assert!(server.count(Method::Get) - gets <= 5);
    }
}

#[tokio::test(start_paused = true)]
async fn many_cancelled_operations_are_listed() {
    let server = Server::default();
    let set = server.client().operation_set();
    for n in 0..2_000 {
        server.start(name(n), None);
        set.insert(name(n));
    }
    sleep(300 * SECOND).await;
    let gets = server.count(Method::Get);
    let begun = Instant::now();
    for n in 0..2_000 {
        set.cancel(&name(n)).await.expect("accepted");
    }
    assert_done(&drain(&set, 2_000).await);
    assert!(begun.elapsed() <= 5 * SECOND, "{:?}", begun.elapsed());
    let gets = server.count(Method::Get) - gets;
    assert!(gets <= 40, "{gets}");
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_is_cancelled_again_and_again_is_polled() {
    let server = Server::default();
    server.start(name(0), None);
    let set = server.client().operation_set();
    set.insert(name(0));
    let begun = Instant::now();
    let result = loop {
        set.cancel(&name(0)).await.expect("accepted");
        if let Ok(result) = timeout(SECOND / 2, set.next()).await {
            break result;
        }
        assert!(begun.elapsed() < 60 * SECOND, "never polled");
    };
    assert_eq!(result.expect("a result").0, name(0));
}

#[tokio::test(start_paused = true)]
async fn the_call_of_an_urgent_operation_ends_when_it_is_removed() {
    let server = Server::default();
    let set = server.client().operation_set();
    for _ in 0..200 {
        server.start("jobs/1", None);
        let mut entry = SetEntry::new("jobs/1");
        entry.urgent = true;
        assert!(set.insert(entry));
        sleep(SECOND / 10).await;
        assert!(set.remove("jobs/1"));
        sleep(SECOND / 10).await;
        assert_eq!(set.stats().in_flight, 0);
    }
    assert_eq!(server.count(Method::Wait), 200);
    assert_eq!(server.count(Method::Get), 0);
}

#[tokio::test(start_paused = true)]
async fn the_maximum_number_of_calls_in_flight_can_be_raised() {
    let server = Server::new(Faults {
        latency: 9 * SECOND,
        ..Faults::default()
    });
    let set = server.client().operation_set().max_in_flight(1);
    for n in 0..50 {
        set.insert(format!("jobs/{n}"));
    }
    sleep(2 * SECOND).await;
    assert_eq!(set.stats().in_flight, 1);
    let set = set.max_in_flight(30);
    sleep(SECOND).await;
    assert_eq!(set.stats().in_flight, 30);
}

#[tokio::test(start_paused = true)]
async fn removed_operations_need_no_memory() {
    let server = Server::default();
    let set = server.client().operation_set();
    let day = Duration::from_secs(24 * 3_600);
    let set = set.initial_delay(day).max_delivery_delay(day);
    let measured = allocation_counter::measure(|| {
        for _ in 0..100_000 {
            assert!(set.insert("jobs/1") && set.remove("jobs/1"));
        }
    });
    assert!(measured.bytes_current < 50_000, "{measured:?}");
}

#[tokio::test(start_paused = true)]
async fn extreme_settings_cause_no_flood_of_calls() {
    for (initial, longest) in [
        (Duration::ZERO, Duration::ZERO),
        (Duration::MAX, Duration::ZERO),
        (Duration::ZERO, Duration::MAX),
        (Duration::MAX, Duration::MAX),
    ] {
        let server = Server::default();
        let set = server.client().operation_set();
        let set = set.initial_delay(initial).max_delivery_delay(longest);
        let set = set.max_in_flight(0).max_rate(f64::NAN);
        server.start("jobs/1", None);
        set.insert("jobs/1");
        sleep(SECOND).await;
        let calls = server.count(Method::Get);
        assert!(calls <= 1_300, "{initial:?}, {longest:?}: {calls}");
    }
}

#[tokio::test(start_paused = true)]
async fn removed_operations_do_not_count_against_the_rate() {
    let server = Server::default();
    let set = server.client().operation_set().max_rate(1.0);
    for n in 0..50 {
        set.insert(format!("jobs/{n}"));
    }
    sleep(2 * SECOND).await;
    for n in 0..50 {
        set.remove(&format!("jobs/{n}"));
    }
    while set.next().await.is_some() {}
    server.start("jobs/new", Some(Duration::ZERO));
    set.insert("jobs/new");
    let begun = Instant::now();
    drain(&set, 1).await;
    assert!(begun.elapsed() <= 3 * SECOND, "{:?}", begun.elapsed());
    let stats = set.stats();
    assert_eq!(stats.get_calls, server.count(Method::Get) as u64);
}
