//! A TCP proxy that cuts, silences and refuses connections on demand.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

use super::Stage;

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mood {
    Forward,
    /// Bytes are taken and not passed on.
    Silence,
    /// New connections are closed at once.
    Refuse,
}

pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    backend: Arc<Mutex<SocketAddr>>,
    mood: watch::Sender<Mood>,
    cuts: watch::Sender<u64>,
    _stage: Stage,
}

impl Proxy {
    pub(crate) fn start(backend: SocketAddr) -> Self {
        let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let addr = listener.local_addr().expect("a bound socket");
        let backend = Arc::new(Mutex::new(backend));
        let (mood, moods) = watch::channel(Mood::Forward);
        let (cuts, cut) = watch::channel(0);
        let stage = Stage::run(accept(listener, backend.clone(), moods, cut));
        Self {
            addr,
            backend,
            mood,
            cuts,
            _stage: stage,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn backend(&self, addr: SocketAddr) {
        *self.backend.lock().expect("no panic") = addr;
    }

    pub(crate) fn mood(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Ends all connections there are.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|n| *n += 1);
    }
}

async fn accept(
    listener: StdListener,
    backend: Arc<Mutex<SocketAddr>>,
    mood: watch::Receiver<Mood>,
    cut: watch::Receiver<u64>,
) {
    let listener = TcpListener::from_std(listener).expect("a socket");
    loop {
        let (client, _) = listener.accept().await.expect("a connection");
        if *mood.borrow() == Mood::Refuse {
            continue;
        }
        let backend = *backend.lock().expect("no panic");
        let (mood, mut cut) = (mood.clone(), cut.clone());
        cut.mark_unchanged();
        super::spawn(async move {
            tokio::select! {
                // One side that ends, or a backend that is not there, ends the other.
                _ = forward(client, backend, mood) => {}
                _ = cut.changed() => {}
            }
        });
    }
}

async fn forward(
    client: TcpStream,
    backend: SocketAddr,
    mood: watch::Receiver<Mood>,
) -> io::Result<()> {
    let server = TcpStream::connect(backend).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        end = pass(from_client, to_server, mood.clone()) => end,
        end = pass(from_server, to_client, mood) => end,
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mood: watch::Receiver<Mood>,
) -> io::Result<()> {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut bytes).await?;
        if read == 0 {
            return Ok(());
        }
        let spoken = mood.wait_for(|mood| *mood != Mood::Silence).await;
        drop(spoken.map_err(io::Error::other)?);
        to.write_all(&bytes[..read]).await?;
    }
}
