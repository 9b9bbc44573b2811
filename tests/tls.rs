//! TLS: whom the client trusts, as whom it shows itself, and what it says when it does not work.

#[path = "support/tls.rs"]
mod certificates;
mod support;

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use longrunning::{ClientBuilder, OperationsClient, RetryPolicy, Transport};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tonic::{Code, Status};

use self::{
    certificates::{Authority, Tls},
    support::wire::{Listener, Peer},
};

const NAME: &str = "operations/1";

fn serve(tls: Tls) -> Listener {
    Listener::start(move |_, io| {
        let tls = tls.clone();
        async move { Peer::accept(tls.accept(io).await?).await?.serve().await }
    })
}

fn builder(listener: &Listener) -> ClientBuilder {
    OperationsClient::builder(format!("https://{}", listener.addr))
        .retry(RetryPolicy::none())
        .connect_timeout(Duration::from_secs(2))
}

fn refused(result: Result<OperationsClient<Transport>, Status>, tells: &str) {
    let status = result.expect_err("no connection");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(
        status.message().starts_with("cannot connect to "),
        "{status:?}"
    );
    assert!(status.message().contains(tells), "{status:?}");
}

fn invalid(result: Result<OperationsClient<Transport>, Status>, tells: &str) {
    let status = result.expect_err("a bad value");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains(tells), "{status:?}");
}

#[tokio::test]
async fn a_server_of_a_trusted_authority_is_called() {
    let authority = Authority::new();
    let identity = authority.identity(&["127.0.0.1"]);
    let listener = serve(Tls::new(&identity, &["h2"], None));
    let client = builder(&listener)
        .ca_certificate(authority.pem())
        .connect()
        .await;
    let client = client.expect("a connection");
    client.cancel_operation(NAME).await.expect("an answer");
}

#[cfg(not(any(feature = "tls-native-roots", feature = "tls-webpki-roots")))]
#[test]
fn without_roots_the_error_names_the_features() {
    let client = OperationsClient::builder("https://127.0.0.1").connect_lazy();
    let status = client.expect_err("no certificate is trusted");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(
        status.message(),
        "no root certificates for TLS: turn on the feature `tls-native-roots` or \
         `tls-webpki-roots` of `longrunning`, or call `ca_certificate`"
    );
}

/// The variable is of the process: a child of this very binary makes the call.
#[tokio::test]
async fn the_roots_in_ssl_cert_file_are_trusted() {
    const URL: &str = "TLS_TEST_URL";
    if let Ok(url) = std::env::var(URL) {
        let client = OperationsClient::builder(url).connect().await;
        let client = client.expect("a connection");
        return client.cancel_operation(NAME).await.expect("an answer");
    }
    let authority = Authority::new();
    let listener = serve(Tls::new(&authority.identity(&["127.0.0.1"]), &["h2"], None));
    let path = std::env::temp_dir().join(format!("longrunning-{}.pem", std::process::id()));
    std::fs::write(&path, authority.pem()).expect("a file");
    let child = tokio::process::Command::new(std::env::current_exe().expect("this binary"))
        .args(["the_roots_in_ssl_cert_file_are_trusted", "--exact"])
        .env("SSL_CERT_FILE", &path)
        .env(URL, format!("https://{}", listener.addr))
        .output()
        .await
        .expect("it runs");
    std::fs::remove_file(path).expect("it is there");
    assert!(child.status.success(), "{child:?}");
    assert_eq!(listener.accepted(), 1);
}

#[tokio::test]
async fn a_server_of_an_unknown_authority_is_not() {
    let identity = Authority::new().identity(&["127.0.0.1"]);
    let listener = serve(Tls::new(&identity, &["h2"], None));
    let client = builder(&listener).ca_certificate(Authority::new().pem());
    refused(client.connect().await, "invalid peer certificate");
}

#[tokio::test]
async fn a_certificate_of_another_name_is_refused() {
    let authority = Authority::new();
    let identity = authority.identity(&["example.com"]);
    let listener = serve(Tls::new(&identity, &["h2"], None));
    let client = builder(&listener).ca_certificate(authority.pem());
    refused(client.connect().await, "not valid for name");
}

#[tokio::test]
async fn a_server_without_http2_is_named() {
    let authority = Authority::new();
    let identity = authority.identity(&["127.0.0.1"]);
    let listener = serve(Tls::new(&identity, &[], None));
    let client = builder(&listener).ca_certificate(authority.pem());
    refused(client.connect().await, "has not agreed to h2 by ALPN");
    let listener = serve(Tls::new(&identity, &["http/1.1"], None));
    let client = builder(&listener).ca_certificate(authority.pem());
    refused(client.connect().await, "TLS handshake failed: ");
}

#[tokio::test]
async fn a_plaintext_server_behind_https_is_named() {
    let listener = Listener::start(|_, mut io: TcpStream| async move {
        use tokio::io::AsyncWriteExt as _;
        io.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
        tokio::io::copy(&mut io, &mut tokio::io::sink())
            .await
            .map(drop)
    });
    let client = builder(&listener).ca_certificate(Authority::new().pem());
    refused(
        client.connect().await,
        "write http:// in the endpoint if the server has no TLS",
    );
}

#[tokio::test]
async fn a_client_shows_its_identity_to_a_server_that_asks() {
    let authority = Authority::new();
    let identity = authority.identity(&["127.0.0.1"]);
    let listener = serve(Tls::new(&identity, &["h2"], Some(&authority)));
    let own = authority.identity(&["client"]);
    let with = builder(&listener)
        .ca_certificate(authority.pem())
        .identity(own.certificate, own.key);
    let client = with.connect().await.expect("a connection");
    client.cancel_operation(NAME).await.expect("an answer");

    let without = builder(&listener).ca_certificate(authority.pem());
    refused(without.connect().await, "");
}

#[tokio::test]
async fn what_is_no_pem_is_refused_by_name() {
    let authority = Authority::new();
    let own = authority.identity(&["client"]);
    let other = authority.identity(&["client"]);
    let builder = || OperationsClient::builder("https://localhost");
    let ca = builder().ca_certificate("nonsense");
    invalid(
        ca.connect_lazy(),
        "the CA certificate: no CERTIFICATE in the PEM",
    );
    let certificate = builder().identity("", own.key.as_str());
    invalid(
        certificate.connect_lazy(),
        "the identity's certificate: no CERTIFICATE",
    );
    let key = builder().identity(own.certificate.as_str(), own.certificate.as_str());
    invalid(
        key.connect_lazy(),
        "the identity's key is not a private key in PEM",
    );
    let mixed = builder().identity(own.certificate.as_str(), other.key.as_str());
    invalid(mixed.connect_lazy(), "the identity cannot be used");
}

#[tokio::test]
async fn every_bad_value_is_refused_by_name() {
    let builder = || OperationsClient::builder("http://localhost");
    invalid(
        builder().user_agent("a\nb").connect_lazy(),
        "user agent \"a\\nb\"",
    );
    invalid(
        builder().timeout(Duration::ZERO).connect_lazy(),
        "timeout 0s",
    );
    invalid(
        builder().connect_timeout(Duration::ZERO).connect_lazy(),
        "connect timeout 0s",
    );
    let second = Duration::from_secs(1);
    invalid(
        builder()
            .keepalive_interval(Duration::ZERO)
            .keepalive_timeout(second)
            .connect_lazy(),
        "keepalive interval 0s",
    );
    invalid(
        builder()
            .keepalive_interval(second)
            .keepalive_timeout(Duration::ZERO)
            .connect_lazy(),
        "keepalive timeout 0s",
    );
    let endpoint = OperationsClient::builder("automl.googleapis.com");
    invalid(
        endpoint.connect_lazy(),
        "endpoint \"automl.googleapis.com\": no scheme",
    );
}

#[tokio::test]
async fn a_connector_of_ones_own_gives_the_stream_and_tls_goes_over_it() {
    let authority = Authority::new();
    let tls = Tls::new(&authority.identity(&["db.internal"]), &["h2"], None);
    let path = std::env::temp_dir().join(format!("longrunning-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let socket = UnixListener::bind(&path).expect("a socket");
    let server = tokio::spawn(async move {
        let (io, _) = socket.accept().await?;
        let io = tls.accept(io).await?;
        Peer::accept(io).await?.serve().await
    });
    let asked = Arc::<Mutex<Vec<Uri>>>::default();
    let (log, socket) = (asked.clone(), path.clone());
    let connector = tower::service_fn(move |uri: Uri| {
        log.lock().expect("no panic").push(uri);
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    let client = OperationsClient::builder("https://db.internal:7000")
        .ca_certificate(authority.pem())
        .connector(connector)
        .connect()
        .await
        .expect("a connection");
    client.cancel_operation(NAME).await.expect("an answer");
    assert_eq!(
        *asked.lock().expect("no panic"),
        ["https://db.internal:7000/"]
    );
    drop(client);
    server.abort();
    std::fs::remove_file(path).expect("it is there");
}

#[cfg(feature = "rustls")]
#[tokio::test]
async fn a_whole_configuration_of_rustls_replaces_the_rest() {
    use tokio_rustls::rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, pem::PemObject as _},
    };
    let authority = Authority::new();
    let listener = serve(Tls::new(&authority.identity(&["127.0.0.1"]), &["h2"], None));
    let mut roots = RootCertStore::empty();
    let pem = authority.pem();
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
    roots.add(certificate).expect("a CA");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider's own")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = builder(&listener).rustls_config(config).connect().await;
    let client = client.expect("a connection");
    client.cancel_operation(NAME).await.expect("an answer");
}

#[tokio::test]
async fn settings_of_tls_are_refused_for_an_endpoint_without_it() {
    let authority = Authority::new();
    let plain = || OperationsClient::builder("http://127.0.0.1:1");
    let tells = "endpoint \"http://127.0.0.1:1/\": settings of TLS are for https";
    invalid(
        plain().ca_certificate(authority.pem()).connect().await,
        tells,
    );
    invalid(plain().identity("a", "b").connect_lazy(), tells);
}

#[tokio::test]
async fn the_authority_is_the_name_in_the_certificate_and_in_every_call() {
    let authority = Authority::new();
    let tls = Tls::new(&authority.identity(&["server.test"]), &["h2"], None);
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let seen = heads.clone();
    let listener = Listener::start(move |_, io| {
        let (tls, seen) = (tls.clone(), seen.clone());
        async move {
            let mut http2 = h2::server::handshake(tls.accept(io).await?)
                .await
                .map_err(io::Error::other)?;
            while let Some(call) = http2.accept().await {
                let (request, mut respond) = call.map_err(io::Error::other)?;
                let uri = request.uri().to_string();
                seen.lock().expect("no panic").push(uri);
                let response = http::Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", "5")
                    .body(());
                let response = response.map_err(io::Error::other)?;
                respond
                    .send_response(response, true)
                    .map_err(io::Error::other)?;
            }
            Ok(())
        }
    });
    let trusting = || builder(&listener).ca_certificate(authority.pem());
    refused(trusting().connect().await, "not valid for name");
    for name in ["server.test", "server.test:443"] {
        let client = trusting().authority(name).connect().await;
        let status = client.expect("a connection").cancel_operation(NAME).await;
        assert_eq!(status.expect_err("not found").code(), Code::NotFound);
        let uri = heads.lock().expect("no panic").pop().expect("a call");
        assert!(uri.starts_with(&format!("https://{name}/")), "{uri}");
    }
    for bad in [
        "",
        "a b",
        "user@host",
        "host:0",
        "host:99999",
        "host:",
        "a/b",
        "host:+443",
        "https://host",
    ] {
        let shown = if bad == "user@host" { "..@.." } else { bad };
        invalid(
            trusting().authority(bad).connect_lazy(),
            &format!("invalid authority {shown:?}: expected a host with an optional port"),
        );
    }
}

#[tokio::test]
async fn a_count_of_0_is_refused_with_an_error_that_names_it() {
    let builder = || OperationsClient::builder("http://127.0.0.1:1");
    let message = |name| format!("{name} 0: must be at least 1");
    invalid(
        builder().max_connections(0).connect_lazy(),
        &message("max_connections"),
    );
    invalid(
        builder().streams_per_connection(0).connect_lazy(),
        &message("streams_per_connection"),
    );
    invalid(
        builder().max_queued_calls(0).connect_lazy(),
        &message("max_queued_calls"),
    );
    invalid(
        builder().max_header_list_size(0).connect_lazy(),
        &message("max_header_list_size"),
    );
}
