//! Many pollers of one client at a time.

use std::{collections::BTreeSet, time::Duration};

use longrunning::{OperationsClient, PollPolicy};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tonic::Status;

use crate::{
    in_process::{Look, Server},
    timing::{NAME, SECOND, look_for, running, waited},
};

#[tokio::test(start_paused = true)]
async fn thousands_of_pollers_that_start_together_do_not_look_in_step() {
    const POLLERS: usize = 2_000;
    let server = Server::of_looks(|_| running());
    let client: OperationsClient<_> = server.client();
    let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
    let begun = Instant::now();
    let mut pollers = JoinSet::new();
    for _ in 0..POLLERS {
        let mut states = client.poller(NAME).policy(policy);
        pollers.spawn(async move { while states.next().await.is_some() {} });
    }
    sleep(3 * SECOND).await;
    pollers.shutdown().await;
    // The first interval is 1 s, the jitter 20 % either way: 0.8 s to 1.2 s.
    let mut tenths = [0; 10];
    for call in server.calls() {
        let at = (call.at - begun).as_secs_f64();
        if (0.8..1.201).contains(&at) {
            let tenth = ((at - 0.8) / 0.04) as usize;
            tenths[tenth.min(9)] += 1;
        }
    }
    assert_eq!(tenths.iter().sum::<usize>(), POLLERS, "{tenths:?}");
    // In step, all would fall into one of them. Evenly spread, 200 do, give or take 13.
    assert!(tenths.iter().all(|n| (120..280).contains(n)), "{tenths:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_50_pollers_of_a_client_wait_at_a_time() {
    let server = Server::of_looks(|look| match look {
        Look::Wait(asked) => waited(asked),
        Look::Get => running(),
    });
    let client = server.client();
    let mut pollers = JoinSet::new();
    for _ in 0..60 {
        let mut poller = client.clone().poller(NAME);
        pollers.spawn(async move { poller.until_done().await });
    }
    sleep(Duration::from_millis(1)).await;
    let looks = server.calls();
    let gets = looks.iter().filter(|call| call.look == Look::Get).count();
    assert_eq!((looks.len(), gets), (60, 10));
    // Room that is left is taken by others.
    pollers.shutdown().await;
    look_for(&server, SECOND, PollPolicy::default()).await;
    let last = server.calls().pop().expect("a look");
    assert!(matches!(last.look, Look::Wait(_)), "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn how_many_may_wait_is_the_clients_choice_and_counts_those_of_its_clones() {
    let server = Server::of_looks(|look| match look {
        Look::Wait(asked) => waited(asked),
        Look::Get => running(),
    });
    let client = server.client();
    let mut earlier = 0;
    for (most, waits) in [(0, 0), (1, 1), (5, 4), (60, 55)] {
        let client = client.clone().max_concurrent_waits(most);
        let mut pollers = JoinSet::new();
        for _ in 0..60 {
            let mut poller = client.poller(NAME);
            pollers.spawn(async move { poller.until_done().await });
        }
        sleep(Duration::from_millis(1)).await;
        let looks = server.calls();
        let waiting = looks[earlier..]
            .iter()
            .filter(|call| call.look != Look::Get);
        assert_eq!((waiting.count(), looks.len() - earlier), (waits, 60));
        earlier = looks.len();
        pollers.detach_all();
    }
}

#[tokio::test(start_paused = true)]
async fn waits_that_a_restart_cuts_off_do_not_come_back_in_one_instant() {
    let ends = Instant::now() + 30 * SECOND;
    let server = Server::of_looks(move |_| {
        Box::pin(async move {
            sleep_until(ends).await;
            Err(Status::unavailable("restarting"))
        })
    });
    let client = server.client();
    let mut pollers = JoinSet::new();
    for _ in 0..50 {
        let mut poller = client.poller(NAME);
        pollers.spawn(async move { poller.until_done().await });
    }
    // A random part of the first delay, which is 1.2 s at most.
    sleep_until(ends + Duration::from_millis(1_202)).await;
    let calls = server.calls();
    assert!(calls.len() >= 100, "each has polled again: {}", calls.len());
    let gets: BTreeSet<_> = calls[50..100].iter().map(|call| call.at).collect();
    assert!(calls[50..100].iter().all(|call| call.look == Look::Get));
    assert!(gets.len() > 40, "{gets:?}");
    assert!(*gets.last().expect("some") - ends > SECOND / 2, "{gets:?}");
}
