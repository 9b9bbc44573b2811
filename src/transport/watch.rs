//! Whether a connection lives, and whether anybody needs it.

use std::{
    convert::Infallible,
    future::{pending, poll_fn},
    mem,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    connection::{Connection, End},
    pool::{Limits, Pool},
};

/// How long a suspect has to answer.
const SUSPECT_PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection that nobody needs may take to say good-bye.
const FAREWELL: Duration = Duration::from_secs(1);

/// Ends when the connection is dead, or takes too long to say good-bye.
pub(crate) async fn watch(
    connection: Arc<Connection>,
    ping: Option<PingPong>,
    limits: Limits,
    pool: Weak<Pool>,
    retired: oneshot::Receiver<Infallible>,
) -> End {
    let dead = async {
        match ping {
            Some(ping) => dead(&connection, ping, &limits, &pool).await,
            None => pending().await,
        }
    };
    tokio::select! {
        patience = dead => End::Unanswered(patience),
        () = dismiss_idle(&connection, limits.idle, &pool) => End::Closed,
        () = farewell(&connection, retired) => End::Closed,
    }
}

/// Returns when the peer said nothing for so long, although it was asked.
async fn dead(
    connection: &Connection,
    mut ping: PingPong,
    limits: &Limits,
    pool: &Weak<Pool>,
) -> Duration {
    loop {
        let patience = tokio::select! {
            () = connection.suspected() => {
                if !connection.may_ping() {
                    // Strict servers do not count this.
                    connection.probe();
                    let reads = connection.traffic().reads();
                    sleep(SUSPECT_PATIENCE).await;
                    match connection.traffic().reads() == reads {
                        true => return SUSPECT_PATIENCE,
                        false => continue,
                    }
                }
                SUSPECT_PATIENCE
            }
            () = quiet(connection, limits.keepalive, pool) => {
                connection.pinged();
                limits.keepalive_timeout
            }
        };
        let mut reads = connection.traffic().reads();
        if ping.send_ping(Ping::opaque()).is_err() {
            continue;
        }
        let mut pong = pin!(poll_fn(|cx| ping.poll_pong(cx)));
        while timeout(patience, pong.as_mut()).await.is_err() {
            // Whatever has come shows that the connection lives.
            let before = mem::replace(&mut reads, connection.traffic().reads());
            if before == reads {
                return patience;
            }
        }
    }
}

/// Returns when nothing has come for so long, and a call waits: on it, or for a stream.
async fn quiet(connection: &Connection, interval: Duration, pool: &Weak<Pool>) {
    let waits = || connection.calls() > 0 || pool.upgrade().is_some_and(|pool| pool.has_waiting());
    constant(interval, || waits().then(|| connection.traffic().reads())).await;
}

/// Has the pool dismiss the connection whenever it was idle for so long.
async fn dismiss_idle(connection: &Connection, interval: Duration, pool: &Weak<Pool>) {
    loop {
        constant(interval, || {
            (connection.calls() == 0).then(|| connection.uses())
        })
        .await;
        if let Some(pool) = pool.upgrade() {
            pool.dismiss(connection);
        }
    }
}

/// Returns when there was something, and always the same, for so long or an eighth longer.
async fn constant(interval: Duration, look: impl Fn() -> Option<usize>) {
    const LOOKS: u32 = 8;
    let mut last = look();
    let mut same = 0;
    while same < LOOKS {
        sleep(interval / LOOKS).await;
        let before = mem::replace(&mut last, look());
        same = match last.is_some() && last == before {
            true => same + 1,
            false => 0,
        };
    }
}

/// Returns when the pool has let go of the connection, no call is on it, and still it has not
/// closed: a peer that takes no bytes could keep it for ever.
async fn farewell(connection: &Connection, retired: oneshot::Receiver<Infallible>) {
    let _ = retired.await;
    loop {
        sleep(FAREWELL).await;
        if connection.calls() == 0 {
            return;
        }
    }
}
