//! The choice between List and Get.

use longrunning::SetEntry;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::*;

/// Calls within a time, by method: List and Get.
async fn calls_within(server: &Server, time: Duration) -> (usize, usize) {
    let before = (server.count(Method::List), server.count(Method::Get));
    sleep(time).await;
    let after = (server.count(Method::List), server.count(Method::Get));
    (after.0 - before.0, after.1 - before.1)
}

/// Starts operations that do not end, and returns a set that has watched them for some time.
async fn running(
    server: &Server,
    operations: usize,
) -> OperationSet<impl GrpcStack + Sync + use<>> {
    let set = server.client().operation_set();
    for n in 0..operations {
        server.start(name(n), None);
        set.insert(name(n));
    }
    sleep(120 * SECOND).await;
    set
}

#[tokio::test(start_paused = true)]
async fn operations_under_one_parent_are_listed() {
    let server = Server::default();
    let set = running(&server, 10_000).await;
    let (list, get) = calls_within(&server, 600 * SECOND).await;
    // 10 pages per sweep, and a sweep each 16 to 20 seconds.
    assert!((280..=400).contains(&list), "{list}");
    assert_eq!(get, 0);
    assert_eq!(set.stats().listed_operations, 10_000);
}

#[tokio::test(start_paused = true)]
async fn a_single_operation_is_not_listed() {
    let server = Server::default();
    let set = running(&server, 1).await;
    let (list, get) = calls_within(&server, 600 * SECOND).await;
    assert_eq!(list, 0);
    assert!((30..=38).contains(&get), "{get}");
    assert_eq!(set.stats().listed_parents, 0);
}

#[tokio::test(start_paused = true)]
async fn results_are_delivered_within_the_maximum_delay() {
    let server = Server::default();
    let set = server.client().operation_set();
    let begun = Instant::now();
    for n in 0..5_000 {
        server.start(name(n), Some((60 + n as u32 % 600) * SECOND));
        set.insert(name(n));
    }
    let mut worst = Duration::ZERO;
    while let Some((name, _)) = set.next().await {
        let n: u32 = name
            .rsplit('/')
            .next()
            .and_then(|n| n.parse().ok())
            .expect("a number");
        let end = begun + (60 + n % 600) * SECOND;
        worst = worst.max(end.elapsed());
    }
    assert!(worst <= 25 * SECOND, "{worst:?}");
}

#[tokio::test(start_paused = true)]
async fn get_is_used_for_10_minutes_if_the_server_does_not_implement_list() {
    let server = Server::new(Faults {
        list: Some((Code::Unimplemented, "no List")),
        ..Faults::default()
    });
    let set = running(&server, 100).await;
    assert_eq!(server.count(Method::List), 1);
    let (list, get) = calls_within(&server, 400 * SECOND).await;
    assert_eq!(list, 0);
    assert!((2_000..=2_500).contains(&get), "{get}");
    server.lock().faults.list = None;
    sleep(200 * SECOND).await;
    assert_eq!(set.stats().listed_parents, 1);
    let (_, get) = calls_within(&server, 600 * SECOND).await;
    assert_eq!(get, 0);
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_is_not_listed_is_polled_with_get() {
    let server = Server::default();
    let set = server.client().operation_set();
    for n in 0..100 {
        server.start(name(n), Some(300 * SECOND));
        set.insert(name(n));
    }
    server.start_hidden(name(500), Some(300 * SECOND));
    set.insert(name(500));
    set.insert(name(999));
    let begun = Instant::now();
    let (missing, result) = set.next().await.expect("a result");
    assert_eq!(missing, name(999));
    assert_eq!(result.expect_err("unknown").code(), Code::NotFound);
    assert!(begun.elapsed() < 60 * SECOND, "{:?}", begun.elapsed());
    assert_done(&drain(&set, 101).await);
    assert!(begun.elapsed() <= 345 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_parent_with_many_other_operations_is_not_listed() {
    let server = Server::new(Faults {
        page_size: 10,
        ..Faults::default()
    });
    for n in 1_000..3_000 {
        server.start(name(n), None);
    }
    let set = running(&server, 20).await;
    assert_eq!(set.stats().listed_parents, 0);
    let (list, get) = calls_within(&server, 400 * SECOND).await;
    assert_eq!(list, 0);
    assert!((400..=500).contains(&get), "{get}");
    // With many more operations of the set, List is the better choice.
    for n in 1_000..3_000 {
        set.insert(name(n));
    }
    sleep(120 * SECOND).await;
    assert_eq!(set.stats().listed_parents, 1);
    let (_, get) = calls_within(&server, 400 * SECOND).await;
    assert_eq!(get, 0);
}

#[tokio::test(start_paused = true)]
async fn the_filter_is_used_if_it_saves_pages() {
    let server = Server::new(Faults {
        page_size: 10,
        ..Faults::default()
    });
    for n in 1_000..2_000 {
        server.start(name(n), Some(Duration::ZERO));
    }
    let set = running(&server, 500).await;
    let (list, get) = calls_within(&server, 400 * SECOND).await;
    // 50 pages in place of 150.
    assert!((50 * 20..=50 * 26).contains(&list), "{list}");
    assert_eq!(get, 0);
    assert_eq!(set.stats().listed_operations, 500);
}

/// Asserts that a filter that the server does not support is sent in `expected` calls.
async fn assert_filter_is_given_up(faults: Faults, expected: usize) {
    let server = Server::new(Faults {
        page_size: 10,
        ..faults
    });
    for n in 1_000..1_500 {
        server.start(name(n), Some(Duration::ZERO));
    }
    let set = running(&server, 500).await;
    sleep(400 * SECOND).await;
    let filtered = server
        .lock()
        .calls
        .iter()
        .filter(|call| !call.filter.is_empty())
        .count();
    assert_eq!(filtered, expected);
    assert_eq!(set.stats().listed_operations, 500);
}

#[tokio::test(start_paused = true)]
async fn the_filter_is_not_used_if_the_server_rejects_it() {
    for code in [Code::InvalidArgument, Code::Unimplemented, Code::Internal] {
        let faults = Faults {
            rejects_filter: Some(code),
            ..Faults::default()
        };
        assert_filter_is_given_up(faults, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_filter_is_not_used_if_the_server_ignores_it() {
    let faults = Faults {
        ignores_filter: true,
        ..Faults::default()
    };
    // One sweep of 100 pages.
    assert_filter_is_given_up(faults, 100).await;
}

#[tokio::test(start_paused = true)]
async fn operations_are_delivered_while_the_filter_is_used() {
    let server = Server::new(Faults {
        page_size: 10,
        ..Faults::default()
    });
    for n in 1_000..2_000 {
        server.start(name(n), Some(Duration::ZERO));
    }
    let set = watched(&server, 500, 1_200 * SECOND);
    assert_done(&drain(&set, 500).await);
    let calls = server.lock().calls.clone();
    assert!(calls.iter().any(|call| !call.filter.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn operations_are_not_listed_if_page_tokens_repeat() {
    let server = Server::new(Faults {
        page_size: 10,
        tokens_repeat_after: Some(3),
        ..Faults::default()
    });
    let set = watched(&server, 200, 300 * SECOND);
    assert_done(&drain(&set, 200).await);
    assert!(
        server.count(Method::List) <= 20,
        "{}",
        server.count(Method::List)
    );
}

#[tokio::test(start_paused = true)]
async fn operations_are_not_listed_if_the_pages_never_end() {
    let server = Server::new(Faults {
        pages_never_end: true,
        ..Faults::default()
    });
    let set = watched(&server, 200, 300 * SECOND);
    assert_done(&drain(&set, 200).await);
    let lists = server.count(Method::List);
    assert!(lists <= 200, "{lists}");
}

#[tokio::test(start_paused = true)]
async fn a_sweep_is_restarted_once_if_a_page_token_is_rejected() {
    let server = Server::new(Faults {
        page_size: 50,
        tokens_expire: true,
        ..Faults::default()
    });
    let set = watched(&server, 200, 300 * SECOND);
    assert_done(&drain(&set, 200).await);
    // Page 1, the rejected page 2, and the same again.
    assert_eq!(server.count(Method::List), 4);
}

#[tokio::test(start_paused = true)]
async fn the_page_size_is_halved_if_a_response_is_too_large() {
    let server = Server::default();
    for n in 0..1_000 {
        server.start(name(n), None);
    }
    // A page of 1,000 operations needs about 42 KiB.
    let client = server.client().max_decoding_message_size(12_000);
    let set = client.operation_set();
    for n in 0..1_000 {
        set.insert(name(n));
    }
    sleep(60 * SECOND).await;
    let sizes: Vec<_> = {
        let state = server.lock();
        let lists = state
            .calls
            .iter()
            .filter(|call| call.method == Method::List);
        let mut sizes: Vec<_> = lists.map(|call| call.page_size).collect();
        sizes.dedup();
        sizes
    };
    assert_eq!(sizes, [1_000, 500, 250]);
    assert!(
        server.count(Method::Get) <= 50,
        "{}",
        server.count(Method::Get)
    );
    assert_eq!(set.stats().listed_operations, 1_000);
}

#[tokio::test(start_paused = true)]
async fn get_is_used_if_only_list_fails() {
    for (code, message) in [
        (Code::Unavailable, "busy"),
        (Code::DeadlineExceeded, "too slow"),
        (Code::ResourceExhausted, "the quota of List is exceeded"),
        (Code::PermissionDenied, "no List"),
        (Code::Internal, "a defect"),
    ] {
        let server = Server::new(Faults {
            list: Some((code, message)),
            ..Faults::default()
        });
        let set = watched(&server, 100, 200 * SECOND);
        let begun = Instant::now();
        assert_done(&drain(&set, 100).await);
        assert!(
            begun.elapsed() <= 225 * SECOND,
            "{code:?}: {:?}",
            begun.elapsed()
        );
        assert!(
            server.count(Method::List) <= 5,
            "{code:?}: {}",
            server.count(Method::List)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn few_calls_are_made_while_the_server_is_unavailable() {
    let server = Server::default();
    let set = running(&server, 10_000).await;
    server.lock().faults.unavailable = 1.0;
    sleep(60 * SECOND).await;
    let (list, get) = calls_within(&server, 600 * SECOND).await;
    assert!(list + get <= 80, "{list} + {get}");
    server.lock().faults.unavailable = 0.0;
    sleep(60 * SECOND).await;
    let (list, get) = calls_within(&server, 600 * SECOND).await;
    assert!((280..=400).contains(&list), "{list}");
    assert_eq!(get, 0);
    assert_eq!(set.len(), 10_000);
}

#[tokio::test(start_paused = true)]
async fn names_without_a_parent_are_polled_with_get() {
    let server = Server::default();
    let set = server.client().operation_set();
    for n in 0..50 {
        let name = format!("jobs/{n}");
        server.start(&name, Some(60 * SECOND));
        set.insert(name);
    }
    assert_done(&drain(&set, 50).await);
    assert_eq!(server.count(Method::List), 0);
}

#[tokio::test(start_paused = true)]
async fn polls_are_not_in_step() {
    let server = Server::default();
    let set = server.client().operation_set();
    for n in 0..1_000 {
        let name = format!("projects/{n}/operations/1");
        server.start(&name, None);
        set.insert(name);
    }
    sleep(60 * SECOND).await;
    let from = Instant::now();
    sleep(200 * SECOND).await;
    let mut buckets = vec![0; 200];
    for call in &server.lock().calls {
        if let Some(since) = call.at.checked_duration_since(from)
            && let Some(bucket) = buckets.get_mut(since.as_secs() as usize)
        {
            *bucket += 1;
        }
    }
    // 1,000 operations each 16 to 20 seconds are 56 calls per second.
    let most = buckets.iter().max();
    assert!(most.is_some_and(|most| *most < 150), "{buckets:?}");
}

#[tokio::test(start_paused = true)]
async fn delays_grow_up_to_the_maximum_and_continue_from_the_attempts_of_an_entry() {
    let server = Server::default();
    let set = server.client().operation_set();
    server.start("operations/1", None);
    set.insert("operations/1");
    sleep(300 * SECOND).await;
    let calls: Vec<_> = server.lock().calls.iter().map(|call| call.at).collect();
    let delays: Vec<_> = calls.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (n, delay) in delays.iter().enumerate() {
        let full = 1.5_f64.powi(n as i32).min(20.0);
        let seconds = delay.as_secs_f64();
        // The first of the longest delays is random.
        let shortest = if n == 8 { 0.0 } else { 0.79 * full };
        assert!((shortest..=1.01 * full).contains(&seconds), "{delays:?}");
    }
    let mut entry = SetEntry::new("operations/2");
    entry.attempts = 20;
    server.start("operations/2", None);
    let other = server.client().operation_set();
    other.insert(entry);
    let before = server.lock().calls.len();
    sleep(100 * SECOND).await;
    drop(set);
    let after = server.lock().calls.len();
    assert!(after - before <= 2 * 8, "{}", after - before);
}

#[tokio::test(start_paused = true)]
async fn the_rate_of_all_calls_is_limited() {
    let server = Server::new(Faults {
        list: Some((Code::Unimplemented, "no List")),
        ..Faults::default()
    });
    let set = server.client().operation_set().max_rate(20.0);
    for n in 0..10_000 {
        server.start(name(n), None);
        set.insert(name(n));
    }
    sleep(60 * SECOND).await;
    let (list, get) = calls_within(&server, 100 * SECOND).await;
    assert!((1_990..=2_010).contains(&(list + get)), "{list} + {get}");
    assert_eq!(set.stats().rate_limit, 20.0);
}

#[tokio::test(start_paused = true)]
async fn get_is_used_if_only_list_fails_and_all_operations_are_done_or_deleted() {
    for is_known in [true, false] {
        let server = Server::new(Faults {
            list: Some((Code::Unavailable, "busy")),
            ..Faults::default()
        });
        let set = server.client().operation_set();
        for n in 0..100 {
            if is_known {
                server.start(name(n), Some(Duration::ZERO));
            }
            set.insert(name(n));
        }
        let begun = Instant::now();
        drain(&set, 100).await;
        assert!(begun.elapsed() <= 60 * SECOND, "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn get_is_used_if_the_server_asks_to_delay_list_for_long() {
    let server = Server::new(Faults {
        list: Some((Code::Unavailable, "busy")),
        pushback: Some(3_600_000),
        ..Faults::default()
    });
    let set = watched(&server, 10, 10 * SECOND);
    let begun = Instant::now();
    assert_done(&drain(&set, 10).await);
    assert!(begun.elapsed() <= 60 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(server.count(Method::List), 1);
}

#[tokio::test(start_paused = true)]
async fn old_operations_that_are_not_listed_need_few_calls_beside_young_ones() {
    let server = Server::default();
    let set = server.client().operation_set();
    for n in 0..500 {
        server.start_hidden(name(n), None);
        set.insert(name(n));
    }
    for n in 500..510 {
        server.start(name(n), None);
        set.insert(name(n));
    }
    let young = {
        let (server, set) = (server.clone(), set.clone());
        async move {
            for n in 1_000.. {
                sleep(SECOND / 10).await;
                server.start(name(n), Some(SECOND));
                set.insert(name(n));
            }
        }
    };
    let consumer = set.clone();
    let young = tokio::spawn(young);
    let consumer = tokio::spawn(async move { while consumer.next().await.is_some() {} });
    sleep(600 * SECOND).await;
    let (list, get) = calls_within(&server, 600 * SECOND).await;
    // One poll each 16 to 20 seconds for each old operation that is not listed, and at most two for each young one.
    assert!(list + get <= 500 * 38 + 2 * 6_000, "{list} + {get}");
    young.abort();
    consumer.abort();
}

#[tokio::test(start_paused = true)]
async fn done_operations_are_returned_if_get_fails_while_the_filter_is_used() {
    let server = Server::new(Faults {
        page_size: 10,
        ..Faults::default()
    });
    for n in 1_000..2_000 {
        server.start(name(n), Some(Duration::ZERO));
    }
    let set = running(&server, 500).await;
    server.lock().faults.get = Some((Code::Unavailable, "only Get fails"));
    server.start(name(0), Some(Duration::ZERO));
    let begun = Instant::now();
    let (returned, result) = set.next().await.expect("a result");
    assert_eq!(returned, name(0));
    assert!(result.expect("no failure").done);
    assert!(begun.elapsed() <= 120 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_new_operation_among_many_old_ones_is_polled_soon() {
    let server = Server::default();
    let set = server.client().operation_set();
    let set = set.max_delivery_delay(3_600 * SECOND);
    for n in 0..10_000 {
        server.start(name(n), None);
        let mut entry = SetEntry::new(name(n));
        entry.attempts = 50;
        set.insert(entry);
    }
    sleep(7_200 * SECOND).await;
    server.start(name(99_999), Some(3 * SECOND));
    set.insert(name(99_999));
    let begun = Instant::now();
    let (returned, _) = set.next().await.expect("a result");
    assert_eq!(returned, name(99_999));
    assert!(begun.elapsed() <= 6 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_few_operations_remain_listed() {
    for operations in 2..8 {
        let server = Server::default();
        let set = running(&server, operations).await;
        for _ in 0..20 {
            sleep(60 * SECOND).await;
            assert_eq!(set.stats().listed_parents, 1, "{operations}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_a_slow_consumer_delays_does_not_delay_the_next_ones() {
    let server = Server::new(Faults {
        page_size: 50,
        ..Faults::default()
    });
    let set = running(&server, 500).await.max_untaken(5);
    for n in 0..20 {
        server.start(name(n), Some(Duration::ZERO));
    }
    sleep(3_600 * SECOND).await;
    for _ in 0..20 {
        let (_, result) = set.next().await.expect("a result");
        assert!(result.expect("no failure").done);
    }
    sleep(30 * SECOND).await;
    server.start(name(499), Some(Duration::ZERO));
    let begun = Instant::now();
    let (_, result) = set.next().await.expect("a result");
    assert!(result.expect("no failure").done);
    assert!(begun.elapsed() <= 25 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn operations_are_listed_after_an_outage_in_which_calls_time_out() {
    for offset in 0..10 {
        let server = Server::default();
        let set = running(&server, 1_000).await;
        server.lock().faults.latency = 60 * SECOND;
        sleep((120 + 3 * offset) * SECOND).await;
        server.lock().faults.latency = Duration::ZERO;
        sleep(60 * SECOND).await;
        assert_eq!(set.stats().listed_parents, 1, "{offset}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_single_failure_of_list_does_not_stop_it() {
    let server = Server::default();
    let set = running(&server, 100).await;
    let set = set.max_delivery_delay(SECOND / 2);
    sleep(60 * SECOND).await;
    server.lock().faults.list = Some((Code::Unavailable, "busy"));
    let lists = server.count(Method::List);
    while server.count(Method::List) == lists {
        sleep(SECOND / 100).await;
    }
    server.lock().faults.list = None;
    sleep(60 * SECOND).await;
    assert_eq!(set.stats().listed_parents, 1);
}
