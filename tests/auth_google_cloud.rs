//! Workload identity federation by google-cloud-auth, end to end on loopback.
#![cfg(feature = "google-cloud-auth")]
#![allow(clippy::unwrap_used)] // in the helpers, too

#[path = "support/child.rs"]
mod child;
#[path = "support/http.rs"]
mod http;
#[path = "support/trace.rs"]
mod trace;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use self::{
    child::Process,
    http::{Reply, Request, Server},
};

const SUBJECT: &str = "PLANTED-SECRET-subject";

/// What the tests start, in a process of its own.
#[test]
fn child() {
    child::obey();
}

/// A security token service, and the files of a workload that trades its own token there.
struct Federation {
    server: Server,
    reply: Arc<Mutex<Reply>>,
    requests: Arc<Mutex<Vec<Request>>>,
    folder: tempfile::TempDir,
}

impl Federation {
    async fn start() -> Self {
        let reply = Arc::new(Mutex::new(token("token-1")));
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (replying, noted) = (Arc::clone(&reply), Arc::clone(&requests));
        let server = Server::start(None, move |request: Request| {
            let reply = match request.target.as_str() {
                "/impersonate" => impersonated(),
                _ => replying.lock().unwrap().clone(),
            };
            noted.lock().unwrap().push(request);
            reply
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("subject"), SUBJECT).unwrap();
        let federation = Self {
            server: server.await,
            reply,
            requests,
            folder,
        };
        // The client of that crate wants some certificate, although it needs none here.
        let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(federation.path("ca.pem"), certificate.cert.pem()).unwrap();
        federation
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn answer(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    fn file(&self) -> Value {
        json!({
            "type": "external_account",
            "audience": "//iam.googleapis.com/pools/p/providers/q",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": format!("http://{}/token", self.server.address),
            "credential_source": {"file": self.path("subject")},
            "quota_project_id": "of-the-file",
        })
    }

    fn process(&self, file: &Value) -> Process {
        let path = self.path("config.json");
        std::fs::write(&path, file.to_string()).unwrap();
        let variables: [(&str, &Path); 2] = [
            ("GOOGLE_APPLICATION_CREDENTIALS", &path),
            ("SSL_CERT_FILE", &self.path("ca.pem")),
        ];
        Process::start("adc", &variables)
    }

    fn told(&self, message: &str) -> String {
        format!(
            "credentials: GOOGLE_APPLICATION_CREDENTIALS: credentials file {}: {message}",
            self.path("config.json").display()
        )
    }
}

fn token(name: &str) -> Reply {
    token_for(name, 3600)
}

fn token_for(name: &str, seconds: u64) -> Reply {
    let answer = json!({
        "access_token": name,
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "token_type": "Bearer",
        "expires_in": seconds,
    });
    Reply::ok(answer.to_string())
}

fn impersonated() -> Reply {
    let answer = json!({"accessToken": "impersonated", "expireTime": "2999-01-01T00:00:00Z"});
    Reply::ok(answer.to_string())
}

fn carrying(name: &str) -> String {
    format!("authorization: Bearer {name}, x-goog-user-project: of-the-file")
}

#[tokio::test]
async fn a_workload_trades_its_own_token_for_googles() {
    let federation = Federation::start().await;
    let mut process = federation.process(&federation.file());
    assert_eq!(process.tell("burst").await, carrying("token-1"));
    let said = process.end().await;
    assert!(!said.contains(SUBJECT), "{said}");
    let requests = federation.requests.lock().unwrap();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].body.contains(SUBJECT));
}

#[tokio::test]
async fn an_account_is_impersonated() {
    let federation = Federation::start().await;
    let mut file = federation.file();
    let url = format!("http://{}/impersonate", federation.server.address);
    file["service_account_impersonation_url"] = url.into();
    let requests = Arc::clone(&federation.requests);
    let mut process = federation.process(&file);
    assert_eq!(process.tell("ready").await, carrying("impersonated"));
    process.end().await;
    let requests = requests.lock().unwrap();
    assert_eq!(requests[0].target, "/token");
    assert_eq!(requests[1].target, "/impersonate");
    assert_eq!(requests[1].headers["authorization"], "Bearer token-1");
}

#[tokio::test]
async fn a_refusal_that_is_later_taken_back_needs_no_restart() {
    let federation = Federation::start().await;
    let quoting = json!({"error": "invalid_grant", "error_description": SUBJECT});
    federation.answer(Reply::status(400, quoting.to_string()));
    let mut process = federation.process(&federation.file());
    let refusal = federation.told(
        "the token endpoint answered invalid_grant: check that the key or login is not revoked, \
         that the account exists, and that this machine's clock is right",
    );
    assert_eq!(
        process.tell("ready").await,
        format!("Unauthenticated {refusal}")
    );
    federation.answer(token("token-2"));
    process.until("ready", &carrying("token-2")).await;
    let said = process.end().await;
    assert!(!said.contains(SUBJECT), "{said}");
}

#[tokio::test]
async fn an_outage_ends_by_itself() {
    let federation = Federation::start().await;
    federation.answer(Reply::Cut);
    let mut process = federation.process(&federation.file());
    process.tell("look").await;
    while federation.requests.lock().unwrap().is_empty() {
        let answer = process.tell("look").await;
        assert!(answer.starts_with("Unavailable"), "{answer}");
    }
    federation.answer(token("token-2"));
    process.until("ready", &carrying("token-2")).await;
    process.end().await;
}

#[tokio::test]
async fn a_rejected_token_is_fetched_anew() {
    let federation = Federation::start().await;
    let mut process = federation.process(&federation.file());
    assert_eq!(process.tell("ready").await, carrying("token-1"));
    federation.answer(token("token-2"));
    process.tell("reject").await;
    process.until("look", &carrying("token-2")).await;
    process.end().await;
}

#[tokio::test]
async fn a_token_is_sent_until_its_end_and_not_beyond() {
    let federation = Federation::start().await;
    federation.answer(token_for("token-1", 4));
    let mut process = federation.process(&federation.file());
    assert_eq!(process.tell("ready").await, carrying("token-1"));
    let start = Instant::now();
    federation.answer(Reply::status(503, ""));
    let refusal = loop {
        let answer = process.tell("look").await;
        if answer != carrying("token-1") {
            break answer;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let good_for = start.elapsed();
    assert!(refusal.starts_with("Unavailable"), "{refusal}");
    assert!(good_for > Duration::from_secs(3), "{good_for:?}");
    assert!(good_for < Duration::from_secs(5), "{good_for:?}");
    process.end().await;
}

#[tokio::test]
async fn what_is_wrong_is_told_before_anyone_is_asked() {
    let federation = Federation::start().await;
    let again = "download the file again";
    for (field, value, message) in [
        (
            "audience",
            Value::Null,
            format!("field \"audience\" is not text: {again}"),
        ),
        (
            "token_url",
            "http://sts.invalid".into(),
            "field \"token_url\" is not an https URL: mend it".to_owned(),
        ),
        (
            "credential_source",
            SUBJECT.into(),
            format!("field \"credential_source\" is missing or not an object: {again}"),
        ),
        (
            "credential_source",
            json!({"file": federation.path("none")}),
            "google-cloud-auth got no token: entity not found: check the file in the field \
             \"credential_source\""
                .to_owned(),
        ),
        (
            "credential_source",
            json!({"file": [SUBJECT]}),
            "google-cloud-auth cannot read a field of it: download the file again".to_owned(),
        ),
    ] {
        let mut file = federation.file();
        file[field] = value;
        let mut process = federation.process(&file);
        let refusal = federation.told(&message);
        assert_eq!(
            process.tell("ready").await,
            format!("Unauthenticated {refusal}")
        );
        let said = process.end().await;
        assert!(!said.contains(SUBJECT), "{said}");
    }
    assert!(federation.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn no_secret_within_source_credentials_goes_off_this_machine_in_plaintext() {
    let federation = Federation::start().await;
    let user = |uri: &str| {
        json!({
            "type": "authorized_user",
            "client_id": "id",
            "client_secret": SUBJECT,
            "refresh_token": SUBJECT,
            "token_uri": uri,
        })
    };
    let impersonating = |source: Value| {
        json!({
            "type": "impersonated_service_account",
            "service_account_impersonation_url": "https://localhost:1/a:generateAccessToken",
            "source_credentials": source,
        })
    };
    let plain = "http://sts.invalid/token";
    let mut workload = federation.file();
    workload["token_url"] = plain.into();
    for (source, field) in [
        (user(plain), "token_uri"),
        (workload, "token_url"),
        (impersonating(user(plain)), "source_credentials.token_uri"),
    ] {
        let mut process = federation.process(&impersonating(source));
        let refusal = federation.told(&format!(
            "field \"source_credentials.{field}\" is not an https URL: mend it"
        ));
        assert_eq!(
            process.tell("ready").await,
            format!("Unauthenticated {refusal}")
        );
        let said = process.end().await;
        assert!(!said.contains(SUBJECT), "{said}");
    }
}

#[cfg(not(feature = "google-authz"))]
mod without_google_authz {
    use super::*;

    #[tokio::test]
    async fn the_metadata_server_serves_too() {
        let server = Server::start(None, |request: Request| {
            assert_eq!(request.headers["metadata-flavor"], "Google");
            match request.target.contains("/token") {
                true => token("token-1"),
                false => Reply::ok("googleapis.com"),
            }
        })
        .await;
        let federation = Federation::start().await;
        let (host, ca) = (server.address.to_string(), federation.path("ca.pem"));
        let variables = [
            ("GCE_METADATA_HOST", Path::new(&host)),
            ("SSL_CERT_FILE", &ca),
        ];
        let mut process = Process::start("adc", &variables);
        assert_eq!(process.tell("new").await, "authorization: Bearer token-1");
        process.end().await;
        let mut process = Process::start("metadata:me@p", &variables);
        let answer = process.tell("new").await;
        assert_eq!(
            answer,
            "FailedPrecondition credentials: an account of the metadata server other than the \
             default needs the feature google-authz of the crate longrunning"
        );
        process.end().await;
    }

    #[tokio::test]
    async fn a_service_account_signs_its_own_token() {
        let federation = Federation::start().await;
        let file = |key: &str| {
            json!({
                "type": "service_account",
                "project_id": "project",
                "private_key_id": "key-1",
                "private_key": key,
                "client_email": "robot@project.iam.gserviceaccount.com",
            })
        };
        let mut process =
            federation.process(&file(include_str!("support/keys/service_account.pem")));
        let answer = process.tell("new").await;
        assert!(answer.starts_with("authorization: Bearer eyJ"), "{answer}");
        process.end().await;
        let start = Instant::now();
        let mut process = federation.process(&file("key"));
        let answer = process.tell("new").await;
        assert!(
            answer.starts_with("Unauthenticated credentials: "),
            "{answer}"
        );
        assert!(start.elapsed() < Duration::from_secs(6));
        process.end().await;
    }

    #[tokio::test]
    async fn without_certificates_nothing_panics() {
        let federation = Federation::start().await;
        std::fs::write(federation.path("ca.pem"), "").unwrap();
        let mut process = federation.process(&federation.file());
        let answer = process.tell("new").await;
        assert!(answer.contains("no CA certificates"), "{answer}");
        process.end().await;
    }
}
