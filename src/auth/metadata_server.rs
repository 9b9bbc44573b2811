//! Whether this machine has Google Cloud's metadata server.

use std::{env, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::Status;

use super::failure::refused;

/// Where it is, on every machine that has one. Asked by address: a name server that does not answer
/// would hold up the end of the runtime, for there is no way to stop a look-up.
const ADDRESS: &str = "169.254.169.254:80";
/// As long as Google's own libraries wait. One that is there answers in a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);
const HOST_VARIABLE: &str = "GCE_METADATA_HOST";
/// What Google's library for Python calls it, too.
const OFF_VARIABLE: &str = "NO_GCE_CHECK";

/// Finds out whether there is a metadata server, within 3 s.
///
/// # Errors
///
/// `UNAUTHENTICATED` if there is none.
pub(super) async fn detect() -> Result<(), Status> {
    if let Some(host) = env::var_os(HOST_VARIABLE) {
        return match host.to_str() {
            Some(host) if is_host(host) => Ok(()),
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
    ask(ADDRESS).await
}

async fn ask(address: &str) -> Result<(), Status> {
    match timeout(PATIENCE, is_metadata_server(address)).await {
        Ok(Ok(true)) => Ok(()),
        _ => Err(refused(format_args!(
            "no metadata server of Google Cloud answers at {address}"
        ))),
    }
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
    let Ok(authority) = host.parse::<http::uri::Authority>() else {
        return false;
    };
    let port = host.strip_prefix(authority.host());
    !authority.host().is_empty()
        && port.is_some_and(|port| port.is_empty() || authority.port_u16().is_some())
}

/// Other clouds have a server at the same address, but not one that says this.
async fn is_metadata_server(address: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    let request = "GET / HTTP/1.1\r\n\
        host: metadata.google.internal\r\n\
        metadata-flavor: Google\r\n\
        connection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(16 * 1024).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    Ok(answer
        .lines()
        .take_while(|line| !line.is_empty())
        .any(|line| line.replace(' ', "") == "metadata-flavor:google"))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn server(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
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
        assert!(is_metadata_server(&google).await.unwrap());
    }

    #[tokio::test]
    async fn the_metadata_server_of_another_cloud_is_not_googles() {
        let amazon =
            server("HTTP/1.1 401 Unauthorized\r\nServer: EC2ws\r\n\r\nmetadata-flavor: google")
                .await;
        assert!(!is_metadata_server(&amazon).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_without_an_answer_is_given_up_after_three_seconds() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let start = tokio::time::Instant::now();
        let status = ask(&address).await.unwrap_err();
        assert_eq!(start.elapsed(), PATIENCE);
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        assert_eq!(
            status.message(),
            format!("credentials: no metadata server of Google Cloud answers at {address}")
        );
        drop(silent);
        let refused = ask(&address).await.unwrap_err();
        assert_eq!(refused.message(), status.message());
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
