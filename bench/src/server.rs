//! The server: its answers are canned, so that it is the client which is measured.

mod grpc;
mod rest;

use std::{
    io::{self, BufRead as _, Write as _},
    net::TcpListener as StdListener,
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

use crate::{Result, plan::Plan, spawn};

/// What has come in.
#[derive(Debug, Default)]
struct Counts {
    calls: AtomicU64,
    /// Above TLS, where there is TLS.
    bytes: AtomicU64,
}

/// Serves until its standard input ends.
///
/// It prints `grpc=ADDRESS`, `rest=ADDRESS`, the certificate if it speaks TLS, and an empty line;
/// then, for every line that it reads, one with what it has counted and the CPU it has used.
pub(crate) fn run(arguments: &[String]) -> Result {
    let plan = Arc::new(Plan::parse(arguments)?);
    spawn::pin(1);
    let counts = Arc::<Counts>::default();
    let grpc = StdListener::bind("127.0.0.1:0")?;
    let rest = StdListener::bind("127.0.0.1:0")?;
    println!("grpc={}", grpc.local_addr()?);
    println!("rest={}", rest.local_addr()?);
    let tls = match plan.tls {
        true => Some(acceptor()?),
        false => None,
    };
    println!();
    thread::spawn({
        let counts = counts.clone();
        move || report(&counts)
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        grpc.set_nonblocking(true)?;
        rest.set_nonblocking(true)?;
        let (grpc, rest) = (TcpListener::from_std(grpc)?, TcpListener::from_std(rest)?);
        loop {
            let (plan, counts) = (plan.clone(), counts.clone());
            tokio::select! {
                accepted = grpc.accept() => {
                    let (io, tls) = (nodelay(accepted?.0)?, tls.clone());
                    tokio::spawn(async move {
                        let served = match tls {
                            Some(tls) => grpc::serve(tls.accept(io).await?, &plan, &counts).await,
                            None => grpc::serve(io, &plan, &counts).await,
                        };
                        served.inspect_err(|error| eprintln!("the server gave up a connection: {error}"))
                    });
                }
                accepted = rest.accept() => {
                    let io = nodelay(accepted?.0)?;
                    tokio::spawn(async move { rest::serve(io, &plan, &counts).await });
                }
            }
        }
    })
}

fn report(counts: &Counts) {
    for line in io::stdin().lock().lines() {
        if line.is_err() {
            break;
        }
        let (calls, bytes) = (counts.calls.load(Relaxed), counts.bytes.load(Relaxed));
        println!(
            "calls={calls} bytes={bytes} cpu={}",
            spawn::cpu().as_nanos()
        );
        let _ = io::stdout().flush();
    }
    process::exit(0);
}

/// Makes a certificate for this one run, and prints it.
fn acceptor() -> Result<TlsAcceptor> {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    print!("{}", certified.cert.pem());
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certified.cert.der().clone()],
            PrivateKeyDer::Pkcs8(key),
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config).into())
}

fn nodelay(io: TcpStream) -> io::Result<TcpStream> {
    io.set_nodelay(true)?;
    Ok(io)
}

trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}
