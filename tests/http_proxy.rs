//! Connections through the HTTP proxy that is set in environment variables.

#[path = "support/tls.rs"]
mod certificates;
mod support;

use std::{
    env,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use longrunning::{OperationsClient, RetryPolicy};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::TcpStream,
    process::Command,
};
use tonic::Status;

use self::{
    certificates::{Authority, Tls},
    support::wire::{Listener, Peer},
};

const ENDPOINT: &str = "TEST_ENDPOINT";
const CA: &str = "TEST_CA";
const USES_PROXY: &str = "TEST_USES_PROXY";
/// The connect timeout, in milliseconds.
const CONNECT_TIMEOUT: &str = "TEST_CONNECT_TIMEOUT";

/// A host name that does not resolve: only the proxy can connect to it.
const HOST: &str = "server.invalid";

/// A TLS server, and a proxy that connects to it whatever host the client requests.
struct Setup {
    ca: String,
    server: Listener,
    proxy: Listener,
    /// The heads of the requests to the proxy.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Setup {
    fn start(response: &'static str) -> Self {
        let authority = Authority::new();
        let tls = Tls::new(
            &authority.identity(&[HOST, "127.0.0.1", "localhost"]),
            &["h2"],
            None,
        );
        let server = Listener::start(move |_, io| {
            let tls = tls.clone();
            async move { Peer::accept(tls.accept(io).await?).await?.serve().await }
        });
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let (seen, addr) = (heads.clone(), server.addr);
        let proxy = Listener::start(move |_, io| connect(io, addr, response, seen.clone()));
        Self {
            ca: authority.pem(),
            server,
            proxy,
            heads,
        }
    }

    /// Makes one call in a process with this environment, and returns what it printed.
    async fn call(&self, endpoint: &str, uses_proxy: bool, variables: &[(&str, String)]) -> String {
        let output = Command::new(env::current_exe().expect("this binary"))
            .args(["child", "--exact", "--nocapture"])
            .env_clear()
            .env(ENDPOINT, endpoint)
            .env(CA, &self.ca)
            .env(USES_PROXY, uses_proxy.to_string())
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .output()
            .await
            .expect("it runs");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).expect("text");
        assert!(output.status.success(), "{text}");
        assert!(!text.contains("secret"), "{text}");
        let line = text.lines().find_map(|line| line.split_once("> "));
        line.expect("it prints the outcome").1.to_owned()
    }

    fn proxy(&self) -> String {
        format!("http://user:secret@{}", self.proxy.addr)
    }

    fn server(&self) -> String {
        format!("https://{}", self.server.addr)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no panic").clone()
    }
}

/// Serves one CONNECT request.
async fn connect(
    mut io: TcpStream,
    server: SocketAddr,
    response: &str,
    heads: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    heads.lock().expect("no panic").push(head);
    io.write_all(response.as_bytes()).await?;
    if response.contains(" 200 ") {
        let mut server = TcpStream::connect(server).await?;
        copy_bidirectional(&mut io, &mut server).await?;
    }
    if response == SILENT {
        io.read_to_end(&mut Vec::new()).await?;
    }
    Ok(())
}

/// A response that is never complete.
const SILENT: &str = "HTTP/1.1 ";
const ESTABLISHED: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

/// Makes the call if [`Setup::call`] started this process; otherwise does nothing.
#[tokio::test]
async fn child() {
    let Ok(endpoint) = env::var(ENDPOINT) else {
        return;
    };
    let outcome = match call(endpoint).await {
        Ok(()) => "ok".to_owned(),
        Err(status) => format!("{:?} {}", status.code(), status.message()),
    };
    println!("\n> {outcome}");
}

async fn call(endpoint: String) -> Result<(), Status> {
    let mut builder = OperationsClient::builder(&endpoint).retry(RetryPolicy::none());
    if endpoint.starts_with("https:") {
        builder = builder.ca_certificate(env::var(CA).expect("it is set"));
    }
    if env::var(USES_PROXY).is_ok_and(|uses| uses == "true") {
        builder = builder.proxy_from_env();
    }
    if let Ok(timeout) = env::var(CONNECT_TIMEOUT) {
        let millis = timeout.parse().expect("a number");
        builder = builder.connect_timeout(Duration::from_millis(millis));
    }
    println!("{builder:?}");
    let client = builder.connect().await?;
    println!("{client:?}");
    client.cancel_operation("operations/1").await
}

#[tokio::test]
async fn a_call_goes_through_a_tunnel() {
    let setup = Setup::start(ESTABLISHED);
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        let variables = [(name, setup.proxy())];
        let url = format!("https://{HOST}");
        let outcome = setup.call(&url, true, &variables);
        assert_eq!(outcome.await, "ok", "{name}");
    }
    let heads = setup.heads();
    assert_eq!(heads.len(), 4);
    for head in heads {
        let start = format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n");
        assert!(head.starts_with(&start), "{head}");
        // user:secret
        let auth = "\r\nProxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n";
        assert!(head.contains(auth), "{head}");
    }
}

#[tokio::test]
async fn the_first_variable_that_is_set_names_the_proxy() {
    let setup = Setup::start(ESTABLISHED);
    let names = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    for first in 0..names.len() {
        let mut variables = vec![(names[first], setup.proxy())];
        for later in &names[first + 1..] {
            variables.push((later, "not a proxy".to_owned()));
        }
        let url = format!("https://{HOST}");
        assert_eq!(setup.call(&url, true, &variables).await, "ok", "{first}");
    }
}

#[tokio::test]
async fn the_connect_timeout_includes_the_tunnel_and_its_error_names_the_proxy() {
    let setup = Setup::start(SILENT);
    let variables = [
        ("HTTPS_PROXY", setup.proxy()),
        (CONNECT_TIMEOUT, "500".to_owned()),
    ];
    let url = format!("https://{HOST}");
    let expected = format!(
        "Unavailable cannot connect to {HOST} through proxy {}: not connected within 500ms",
        setup.proxy.addr
    );
    assert_eq!(setup.call(&url, true, &variables).await, expected);
}

#[tokio::test]
async fn the_proxy_is_not_used_for_hosts_in_no_proxy_or_by_clients_without_the_setting() {
    let setup = Setup::start(ESTABLISHED);
    let proxy = ("HTTPS_PROXY", setup.proxy());
    let named = format!("https://localhost:{}", setup.server.addr.port());
    for (endpoint, exceptions) in [
        (&setup.server(), "127.0.0.1"),
        (&setup.server(), "example.com, 127.0.0.0/8"),
        (&named, "localhost"),
        (&named, "*"),
        (&setup.server(), "example.com, *"),
    ] {
        let variables = [proxy.clone(), ("NO_PROXY", exceptions.to_owned())];
        assert_eq!(setup.call(endpoint, true, &variables).await, "ok");
    }
    let variables = [proxy.clone(), ("no_proxy", "127.0.0.1".to_owned())];
    assert_eq!(setup.call(&setup.server(), true, &variables).await, "ok");
    assert_eq!(setup.call(&setup.server(), false, &[proxy]).await, "ok");
    let empty = [("HTTPS_PROXY", String::new())];
    assert_eq!(setup.call(&setup.server(), true, &empty).await, "ok");
    assert_eq!(setup.proxy.accepted(), 0);
    assert_eq!(setup.server.accepted(), 8);
}

#[tokio::test]
async fn an_endpoint_without_tls_is_connected_to_directly() {
    let setup = Setup::start(ESTABLISHED);
    let plain =
        Listener::start(|_, io: TcpStream| async move { Peer::accept(io).await?.serve().await });
    let variables = [("ALL_PROXY", setup.proxy())];
    assert_eq!(setup.call(&plain.url(), true, &variables).await, "ok");
    assert_eq!(setup.proxy.accepted(), 0);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_in_the_error() {
    let table = [
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
            "proxy authorization required",
        ),
        ("HTTP/1.1 502 Bad Gateway\r\n\r\n", "unsuccessful"),
    ];
    for (response, why) in table {
        let setup = Setup::start(response);
        let variables = [("HTTPS_PROXY", setup.proxy())];
        let url = format!("https://{HOST}:8443");
        let outcome = setup.call(&url, true, &variables);
        let expected = format!(
            "Unavailable cannot connect to {HOST}:8443 through proxy {}: tunnel error: {why}",
            setup.proxy.addr
        );
        assert_eq!(outcome.await, expected);
    }
}

#[tokio::test]
async fn a_value_that_is_not_the_url_of_an_http_proxy_is_refused_and_not_shown() {
    let setup = Setup::start(ESTABLISHED);
    for value in [
        "socks5://user:secret@127.0.0.1:1080",
        "https://secret",
        "http://a b:secret",
        "::",
        "http://user:p@secret@127.0.0.1:1080",
        "http://user:secret/x@127.0.0.1:1080",
        "http://user:secret?x@127.0.0.1:1080",
        "http://user:secret#x@127.0.0.1:1080",
        "http://127.0.0.1:1080/secret",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://127.0.0.1:+80",
        "http://127.0.0.1:",
        "http://:1080",
    ] {
        let variables = [("HTTPS_PROXY", value.to_owned())];
        assert_eq!(
            setup.call(&setup.server(), true, &variables).await,
            "InvalidArgument HTTPS_PROXY: must be the URL of an HTTP proxy, such as \
             http://proxy.example.com:3128"
        );
    }
    assert_eq!(setup.server.accepted(), 0);
}
