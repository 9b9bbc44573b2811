//! A small HTTP/1.1 server whose every answer the test decides.

#![allow(clippy::unwrap_used, dead_code)] // each test uses its own part of it

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{
        AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite,
        AsyncWriteExt as _, BufReader,
    },
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// What came.
pub(crate) struct Request {
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

/// What goes back.
#[derive(Clone)]
pub(crate) enum Reply {
    Answer(u16, &'static str, String),
    Late(Duration, String),
    /// The connection stays, and nothing comes.
    Silence,
    /// The connection ends without an answer.
    Cut,
}

impl Reply {
    pub(crate) fn ok(body: impl Into<String>) -> Self {
        Self::Answer(200, "", body.into())
    }

    pub(crate) fn status(status: u16, body: impl Into<String>) -> Self {
        Self::Answer(status, "", body.into())
    }
}

type Handler = dyn Fn(Request) -> Reply + Send + Sync;

/// The server. It ends on drop, and fails the test if it panicked itself.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    accepting: JoinHandle<()>,
    connections: Arc<AtomicUsize>,
    panics: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(crate) async fn start(
        tls: Option<TlsAcceptor>,
        handler: impl Fn(Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start_on(listener, tls, handler)
    }

    pub(crate) fn start_on(
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        handler: impl Fn(Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let connections: Arc<AtomicUsize> = Arc::default();
        let accepted = Arc::clone(&connections);
        let handler: Arc<Handler> = Arc::new(handler);
        let panics: Arc<Mutex<Vec<String>>> = Arc::default();
        let notes = Arc::clone(&panics);
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, SeqCst);
                let handler = Arc::clone(&handler);
                let tls = tls.clone();
                let serving = tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &*handler).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &*handler).await,
                            Err(_) => Ok(()), // a client that does not trust us
                        },
                    }
                });
                let notes = Arc::clone(&notes);
                tokio::spawn(async move {
                    if let Err(error) = serving.await
                        && error.is_panic()
                    {
                        notes.lock().unwrap().push(error.to_string());
                    }
                });
            }
        });
        Self {
            address,
            accepting,
            connections,
            panics,
        }
    }

    /// Returns how many connections it has accepted.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
        let panics = self.panics.lock().unwrap();
        if !std::thread::panicking() {
            assert!(panics.is_empty(), "the server panicked: {panics:?}");
        }
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    handler: &Handler,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await? {
        let (status, headers, body) = match handler(request) {
            Reply::Answer(status, headers, body) => (status, headers, body),
            Reply::Late(time, body) => {
                tokio::time::sleep(time).await;
                (200, "", body)
            }
            Reply::Silence => std::future::pending().await,
            Reply::Cut => return Ok(()),
        };
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nmetadata-flavor: Google\r\n\
             {headers}content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
    }
    Ok(())
}

async fn read(stream: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let target = line.split(' ').nth(1).unwrap().to_owned();
    let mut headers = HashMap::new();
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Request {
        target,
        headers,
        body: String::from_utf8(body).unwrap(),
    }))
}
