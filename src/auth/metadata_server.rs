//! Whether this machine has Google Cloud's metadata server.

use std::{
    env, fmt,
    future::ready,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _},
    time::Duration,
};

use http::{Uri, uri::Authority};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};
use tonic::Status;

use super::{
    apart::apart,
    failure::{refused, unavailable},
    key_file::may_pass,
};

/// Where it is, on every machine that has one.
const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);
/// As long as Google's own libraries wait. One that is there answers in a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);
const HOST_VARIABLE: &str = "GCE_METADATA_HOST";
/// What Google's library for Python calls it, too.
const OFF_VARIABLE: &str = "NO_GCE_CHECK";

/// Where a metadata server is asked for.
#[derive(Debug)]
pub(super) enum Host {
    Usual,
    /// Where the environment says.
    Named(String),
}

impl Host {
    /// Reads the environment.
    ///
    /// # Errors
    ///
    /// `UNAUTHENTICATED`: it says that there is none, or names what is no host.
    pub(super) fn of_environment() -> Result<Self, Status> {
        if let Some(host) = env::var_os(HOST_VARIABLE) {
            return match host.into_string() {
                Ok(host) if is_host(&host) => Ok(Self::Named(host)),
                _ => Err(refused(format_args!(
                    "{HOST_VARIABLE} is not a host, or a host and a port, such as \
                     metadata.google.internal:80: set it so, or unset it"
                ))),
            };
        }
        if env::var_os(OFF_VARIABLE).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Err(refused(format_args!(
                "{OFF_VARIABLE} says that there is no metadata server of Google Cloud"
            )));
        }
        Ok(Self::Usual)
    }

    /// Finds out within 3 s whether one is there.
    ///
    /// # Errors
    ///
    /// `UNAVAILABLE`: this machine cannot ask.
    pub(super) async fn answers(&self) -> Result<bool, Status> {
        match self {
            Self::Usual => ask(ready(Ok(vec![ADDRESS])), is_googles).await,
            // The environment may name one of any kind.
            Self::Named(host) => ask(addresses(host), is_http).await,
        }
    }

    pub(super) fn silence(&self) -> String {
        let none = "no metadata server of Google Cloud answers at";
        match self {
            Self::Usual => format!("{none} {ADDRESS}"),
            Self::Named(host) => format!("{none} {host}, which {HOST_VARIABLE} names"),
        }
    }
}

async fn ask(
    addresses: impl Future<Output = Result<Vec<SocketAddr>, Status>>,
    is_it: fn(&[String]) -> bool,
) -> Result<bool, Status> {
    let asking = async { Ok::<_, Status>(head(&addresses.await?).await) };
    match timeout(PATIENCE, asking).await {
        Ok(Ok(Ok(head))) => Ok(is_it(&head)),
        Ok(Ok(Err(error))) if may_pass(&error) => Err(unreachable(error)),
        Ok(Err(status)) => Err(status),
        _ => Ok(false),
    }
}

/// This machine cannot ask at the moment.
fn unreachable(error: impl fmt::Display) -> Status {
    unavailable(format_args!("the metadata server cannot be asked: {error}"))
}

/// Refuses what is no account: it becomes a segment of a path.
pub(super) fn check_account(account: &str) -> Result<(), Status> {
    let is_allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'@' | b'-');
    let is_account = account.bytes().all(is_allowed)
        && account.bytes().any(|byte| byte.is_ascii_alphanumeric())
        && account.len() <= 256;
    match is_account {
        true => Ok(()),
        false => Err(refused(format_args!(
            "{account:?} is not an account of the metadata server: give an email, or None"
        ))),
    }
}

/// Narrower than a URI's authority: the crates below put it into a URL, each in its own way.
fn is_host(host: &str) -> bool {
    // As one of them reads it, to which "*" is no authority but a path.
    let authority = host
        .parse::<Uri>()
        .ok()
        .and_then(|uri| uri.into_parts().authority);
    let Some(authority) = authority else {
        return false;
    };
    let port = host.strip_prefix(authority.host());
    !authority.host().is_empty()
        && port.is_some_and(|port| port.is_empty() || authority.port_u16().is_some())
}

/// Looks a host up. On a thread of its own: there is no way to stop a look-up, and on one of
/// tokio's it would hold up the end of the runtime.
///
/// # Errors
///
/// `UNAVAILABLE`: a name that the environment gives is one that exists, so that a failure is likely
/// the resolver's, or a lack of file descriptors, which the resolver does not report as such.
async fn addresses(host: &str) -> Result<Vec<SocketAddr>, Status> {
    let authority: Authority = host.parse().map_err(unreachable)?;
    let name = authority.host().trim_matches(['[', ']']).to_owned();
    let port = authority.port_u16().unwrap_or(80);
    let found = apart(move || (&*name, port).to_socket_addrs().map(Iterator::collect)).await?;
    found.map_err(|error| unreachable(format_args!("{HOST_VARIABLE}: look-up of {host}: {error}")))
}

/// Other clouds have a server at the same address, but not one that sends this. The value is compared
/// as google-authz does, which panics on any other.
fn is_googles(head: &[String]) -> bool {
    head.iter().any(|line| {
        let (name, value) = line.split_once(':').unwrap_or_default();
        name.eq_ignore_ascii_case("metadata-flavor") && value.trim() == "Google"
    })
}

fn is_http(head: &[String]) -> bool {
    head.first().is_some_and(|line| line.starts_with("HTTP/1."))
}

/// Asks, and returns the lines of the answer's head.
async fn head(addresses: &[SocketAddr]) -> io::Result<Vec<String>> {
    let mut stream = TcpStream::connect(addresses).await?;
    let request = "GET / HTTP/1.1\r\n\
        host: metadata.google.internal\r\n\
        metadata-flavor: Google\r\n\
        connection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut lines = BufReader::new(stream.take(16 * 1024)).lines();
    let mut head = Vec::new();
    while let Some(line) = lines.next_line().await?.filter(|line| !line.is_empty()) {
        head.push(line);
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn server(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn googles_metadata_server_is_known_by_its_header() {
        let google = server("HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\n\r\n").await;
        assert!(ask(ready(Ok(vec![google])), is_googles).await.unwrap());
    }

    #[tokio::test]
    async fn the_metadata_server_of_another_cloud_is_not_googles() {
        let amazon =
            server("HTTP/1.1 401 Unauthorized\r\nServer: EC2ws\r\n\r\nmetadata-flavor: google")
                .await;
        assert!(!ask(ready(Ok(vec![amazon])), is_googles).await.unwrap());
    }

    #[tokio::test]
    async fn a_flavor_that_google_authz_does_not_accept_is_not_googles() {
        let other = server("HTTP/1.1 200 OK\r\nmetadata-flavor: google\r\n\r\n").await;
        assert!(!ask(ready(Ok(vec![other])), is_googles).await.unwrap());
    }

    #[tokio::test]
    async fn one_that_the_environment_names_may_answer_anything() {
        let emulator = server("HTTP/1.1 404 Not Found\r\n\r\n").await;
        let host = Host::Named(emulator.to_string());
        assert!(host.answers().await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_without_an_answer_is_given_up_after_three_seconds() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let start = tokio::time::Instant::now();
        assert!(!ask(ready(Ok(vec![address])), is_googles).await.unwrap());
        assert_eq!(start.elapsed(), PATIENCE);
        drop(silent);
        assert!(!ask(ready(Ok(vec![address])), is_googles).await.unwrap());
    }

    #[tokio::test]
    async fn a_machine_without_descriptors_cannot_ask() {
        let failure = unreachable(io::Error::from(io::ErrorKind::OutOfMemory));
        let status = ask(ready(Err(failure)), is_googles).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert_eq!(
            status.message(),
            "credentials: the metadata server cannot be asked: out of memory"
        );
    }

    #[test]
    fn a_host_is_a_host_with_or_without_a_port() {
        for host in [
            "127.0.0.1:80",
            "metadata.google.internal",
            "[::1]:80",
            "[::1]",
        ] {
            assert!(is_host(host), "{host}");
        }
        for host in [
            "",
            ":80",
            "http://127.0.0.1",
            "a/b",
            "a b",
            "u@h:80",
            "h:",
            "h:99999",
            "*",
            "/",
        ] {
            assert!(!is_host(host), "{host}");
        }
    }

    #[test]
    fn an_account_is_a_segment_of_a_path() {
        for account in ["default", "me@project.iam.gserviceaccount.com"] {
            assert!(check_account(account).is_ok(), "{account}");
        }
        for account in ["", "..", "a/b", "a?b", "a b", "ä", "a\n"] {
            assert!(check_account(account).is_err(), "{account:?}");
        }
    }
}
