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

/// Runs in the child processes that the tests start.
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
    let answer = json!({
        "access_token": name,
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "token_type": "Bearer",
        "expires_in": 3600,
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
async fn a_rejection_that_is_later_taken_back_needs_no_restart() {
    let federation = Federation::start().await;
    let quoting = json!({"error": "invalid_grant", "error_description": SUBJECT});
    federation.answer(Reply::status(400, quoting.to_string()));
    let mut process = federation.process(&federation.file());
    let refusal = federation.told(&format!(
        "the token endpoint {} answered invalid_grant: check that the key or login is not revoked, \
         that the account exists, and that this machine's clock is right",
        federation.server.address
    ));
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

/// The executables of AIP-4117 may take longer than any other fetch.
#[cfg(unix)]
#[tokio::test]
async fn an_executable_has_the_time_limit_of_the_file() {
    const TAKES: Duration = Duration::from_secs(10);
    const LIMIT: Duration = Duration::from_secs(5);
    let federation = Federation::start().await;
    let next_year = std::time::SystemTime::now() + Duration::from_secs(365 * 24 * 3600);
    let since_epoch = next_year.duration_since(std::time::UNIX_EPOCH).unwrap();
    let response = json!({
        "version": 1,
        "success": true,
        "token_type": "urn:ietf:params:oauth:token-type:jwt",
        "id_token": SUBJECT,
        "expiration_time": since_epoch.as_secs(),
    });
    let script = federation.path("script");
    let text = format!("sleep {}\necho '{response}'\n", TAKES.as_secs());
    std::fs::write(&script, text).unwrap();
    let ca = federation.path("ca.pem");
    let start = |allowed: &str, timeout: Option<Duration>| {
        let mut file = federation.file();
        let command = format!("/bin/sh {}", script.display());
        file["credential_source"] = json!({"executable": {"command": command}});
        if let Some(timeout) = timeout {
            let millis = u64::try_from(timeout.as_millis()).unwrap();
            file["credential_source"]["executable"]["timeout_millis"] = millis.into();
        }
        let variables = [
            (
                "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES",
                Path::new(allowed),
            ),
            ("PATH", Path::new("/usr/bin:/bin")),
            ("SSL_CERT_FILE", &ca),
        ];
        Process::start(&format!("json:{file}"), &variables)
    };
    let fails = "credentials: credentials JSON: google-cloud-auth got no token:";
    let in_time = async {
        let (mut process, start) = (start("1", None), Instant::now());
        assert_eq!(process.tell("new").await, carrying("token-1"));
        assert!(start.elapsed() >= TAKES, "{:?}", start.elapsed());
        process.end().await
    };
    let too_late = async {
        let (mut process, start) = (start("1", Some(LIMIT)), Instant::now());
        let pending = process.tell("look").await;
        assert_eq!(
            pending,
            "Unavailable credentials: the first token has not been fetched yet"
        );
        assert_eq!(
            process.until_not("look", &pending).await,
            format!("Unavailable {fails} the fetch will be retried")
        );
        assert!(start.elapsed() >= LIMIT, "{:?}", start.elapsed());
        process.end().await
    };
    let not_allowed = async {
        let mut process = start("", None);
        assert_eq!(
            process.tell("ready").await,
            format!(
                "Unauthenticated {fails} check what each field of the file names, and what the \
                 account may do"
            )
        );
        process.end().await
    };
    let said = tokio::join!(in_time, too_late, not_allowed);
    for said in [said.0, said.1, said.2] {
        assert!(!said.contains(SUBJECT), "{said}");
    }
    let requests = federation.requests.lock().unwrap();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].body.contains(SUBJECT));
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
            "field \"token_url\" is not an https URL: correct the URL".to_owned(),
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
            "field \"source_credentials.{field}\" is not an https URL: correct the URL"
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

    /// This crate requests these tokens itself, so it needs no certificates.
    #[tokio::test]
    async fn the_metadata_server_serves_all_accounts() {
        let targets: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&targets);
        let server = Server::start(None, move |request: Request| {
            assert_eq!(request.headers["metadata-flavor"], "Google");
            seen.lock().unwrap().push(request.target);
            token("token-1")
        })
        .await;
        let host = server.address.to_string();
        let variables = [
            ("GCE_METADATA_HOST", Path::new(&*host)),
            ("SSL_CERT_FILE", Path::new("/nonexistent.pem")),
        ];
        for (credentials, account) in [
            ("adc", "default"),
            ("metadata", "default"),
            ("metadata:me@p", "me@p"),
        ] {
            let mut process = Process::start(credentials, &variables);
            assert_eq!(process.tell("new").await, "authorization: Bearer token-1");
            process.end().await;
            let target = format!(
                "/computeMetadata/v1/instance/service-accounts/{account}/token?\
                 scopes=https%3A%2F%2Fwww.googleapis.com%2Fauth%2Fcloud-platform"
            );
            assert_eq!(std::mem::take(&mut *targets.lock().unwrap()), [target]);
        }
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
