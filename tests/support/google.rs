//! What Google has on its side, on loopback: a metadata server, and a token endpoint over TLS that
//! verifies what it is sent.

#![allow(clippy::unwrap_used, dead_code)] // each test uses its own part of it

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring::default_provider, pki_types::PrivateKeyDer},
};

use super::http::{Reply, Request, Server};

pub(crate) const KEY: &str = include_str!("keys/service_account.pem");
pub(crate) const ROTATED_KEY: &str = include_str!("keys/rotated.pem");
pub(crate) const EMAIL: &str = "robot@project.iam.gserviceaccount.com";
pub(crate) const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// The answer with a token that lives so long. Its name counts the answers.
pub(crate) fn token(name: &str, seconds: u64) -> String {
    json!({"access_token": name, "expires_in": seconds, "token_type": "Bearer"}).to_string()
}

/// What a fake answers, which the test may change at any time.
#[derive(Clone)]
pub(crate) struct Desk {
    reply: Arc<Mutex<Option<Reply>>>,
    seconds: Arc<Mutex<u64>>,
    pub(crate) requests: Arc<AtomicUsize>,
    /// When each request came.
    pub(crate) times: Arc<Mutex<Vec<Instant>>>,
}

impl Desk {
    fn new() -> Self {
        Self {
            reply: Arc::default(),
            seconds: Arc::new(Mutex::new(3600)),
            requests: Arc::default(),
            times: Arc::default(),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.requests.load(SeqCst)
    }

    /// Answers this from now on; `None` is a good token.
    pub(crate) fn answer(&self, reply: impl Into<Option<Reply>>) {
        *self.reply.lock().unwrap() = reply.into();
    }

    /// Lets tokens live so long from now on.
    pub(crate) fn live(&self, seconds: u64) {
        *self.seconds.lock().unwrap() = seconds;
    }

    fn reply(&self) -> Reply {
        self.times.lock().unwrap().push(Instant::now());
        let n = self.requests.fetch_add(1, SeqCst) + 1;
        let reply = self.reply.lock().unwrap().clone();
        let seconds = *self.seconds.lock().unwrap();
        match reply {
            None => Reply::ok(token(&format!("token-{n}"), seconds)),
            Some(Reply::Late(time, _)) => Reply::Late(time, token(&format!("token-{n}"), seconds)),
            Some(reply) => reply,
        }
    }
}

/// The metadata server. It fails the test if it is asked for anything but the token of an account.
pub(crate) struct MetadataServer {
    pub(crate) server: Server,
    pub(crate) desk: Desk,
    pub(crate) targets: Arc<Mutex<Vec<String>>>,
}

impl MetadataServer {
    pub(crate) async fn start() -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub(crate) fn start_on(listener: TcpListener) -> Self {
        let desk = Desk::new();
        let answering = desk.clone();
        let targets: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&targets);
        let server = Server::start_on(listener, None, move |request: Request| {
            assert_eq!(request.headers["metadata-flavor"], "Google");
            let target = request.target;
            let path = target.strip_prefix("/computeMetadata/v1/instance/service-accounts/");
            assert!(
                path.is_some_and(|path| path.contains("/token?scopes=")),
                "{target}"
            );
            seen.lock().unwrap().push(target);
            answering.reply()
        });
        Self {
            server,
            desk,
            targets,
        }
    }

    pub(crate) fn host(&self) -> String {
        self.server.address.to_string()
    }
}

/// The token endpoint of service accounts. It takes the keys that it is told of.
pub(crate) struct TokenEndpoint {
    pub(crate) server: Server,
    pub(crate) desk: Desk,
    /// The private key whose signatures are taken: the test rotates it.
    pub(crate) key: Arc<Mutex<&'static str>>,
    pub(crate) folder: tempfile::TempDir,
}

impl TokenEndpoint {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tls = tls(&folder.path().join("ca.pem"));
        let desk = Desk::new();
        let key = Arc::new(Mutex::new(KEY));
        let (answering, taken) = (desk.clone(), Arc::clone(&key));
        let server = Server::start(Some(tls), move |request: Request| {
            let aud = format!("https://{}/token", request.headers["host"]);
            let key = *taken.lock().unwrap();
            match verify(&request.body, key, &aud) {
                Ok(()) => answering.reply(),
                Err(reason) => Reply::status(
                    400,
                    json!({"error": "invalid_grant", "error_description": reason}).to_string(),
                ),
            }
        });
        Self {
            server: server.await,
            desk,
            key,
            folder,
        }
    }

    /// The certificate to trust, for `SSL_CERT_FILE`.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub(crate) fn uri(&self) -> String {
        format!("https://localhost:{}/token", self.server.address.port())
    }

    /// Writes a service account's file, and returns where.
    pub(crate) fn key_file(&self, private_key: &str) -> PathBuf {
        let path = self.folder.path().join("key.json");
        // In one step, as those who rotate keys should.
        let next = self.folder.path().join("next.json");
        std::fs::write(&next, service_account(private_key, &self.uri()).to_string()).unwrap();
        std::fs::rename(next, &path).unwrap();
        path
    }
}

pub(crate) fn service_account(private_key: &str, token_uri: &str) -> Value {
    json!({
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "key-1",
        "private_key": private_key,
        "client_email": EMAIL,
        "client_id": "1",
        "token_uri": token_uri,
    })
}

/// Checks a JWT bearer assertion as RFC 7523 and Google ask for it.
fn verify(body: &str, private_key: &str, aud: &str) -> Result<(), &'static str> {
    let field = |name: &str| {
        body.split('&')
            .find_map(|pair| pair.strip_prefix(&format!("{name}=")))
            .ok_or("a field is missing")
    };
    if field("grant_type")? != "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer" {
        return Err("grant_type");
    }
    let (head, claims) = decode(field("assertion")?, private_key)?;
    let now = now();
    let (iat, exp) = (claims["iat"].as_u64(), claims["exp"].as_u64());
    match () {
        () if head["alg"] != "RS256" || head["kid"] != "key-1" => Err("header"),
        () if claims["iss"] != EMAIL => Err("iss"),
        () if claims["aud"] != aud => Err("aud"),
        () if claims["scope"] != SCOPE => Err("scope"),
        () if !iat.is_some_and(|iat| iat <= now && iat + 60 > now) => Err("iat"),
        () if !exp.is_some_and(|exp| exp > now && exp <= now + 3600) => Err("exp"),
        () => Ok(()),
    }
}

/// Checks a token that a service account has signed itself, see <https://google.aip.dev/auth/4111>.
pub(crate) fn check_self_signed(token: &str, private_key: &str) -> Result<(), &'static str> {
    let (head, claims) = decode(token, private_key)?;
    let iat = claims["iat"].as_u64().ok_or("iat")?;
    let now = now();
    let expected =
        json!({"iss": EMAIL, "sub": EMAIL, "scope": SCOPE, "iat": iat, "exp": iat + 3600});
    match () {
        () if head != json!({"alg": "RS256", "typ": "JWT", "kid": "key-1"}) => Err("header"),
        () if iat > now || iat + 60 <= now => Err("iat"),
        () if claims != expected => Err("claims"),
        () => Ok(()),
    }
}

/// Returns the header and the claims of a JWT, if it is signed with this key.
fn decode(jwt: &str, private_key: &str) -> Result<(Value, Value), &'static str> {
    let (signed, signature) = jwt.rsplit_once('.').ok_or("no signature")?;
    let (head, claims) = signed.split_once('.').ok_or("no claims")?;
    let bytes = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| "base64");
    let json = |part: &str| -> Result<Value, &'static str> {
        serde_json::from_slice(&bytes(part)?).map_err(|_| "JSON")
    };
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public_key(private_key))
        .verify(signed.as_bytes(), &bytes(signature)?)
        .map_err(|_| "Invalid JWT Signature.")?;
    Ok((json(head)?, json(claims)?))
}

/// Returns the seconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs()
}

fn public_key(private_key: &str) -> Vec<u8> {
    use tokio_rustls::rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
    let der = PrivatePkcs8KeyDer::from_pem_slice(private_key.as_bytes()).unwrap();
    let pair = ring::rsa::KeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap();
    pair.public().as_ref().to_vec()
}

/// Makes an authority of its own, and a certificate for localhost.
fn tls(ca: &Path) -> TlsAcceptor {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(ca, params.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}
