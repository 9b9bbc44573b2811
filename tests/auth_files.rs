//! Files and machines with which credentials cannot work: each is told at once, in words that name the source, the field and
//! the remedy; none panics, and none hangs. Each runs in a process of its own.
#![cfg(feature = "google-authz")]
#![allow(clippy::unwrap_used)] // in the helpers, too

#[path = "support/child.rs"]
mod child;
#[path = "support/google.rs"]
mod google;
#[path = "support/http.rs"]
mod http;
#[path = "support/trace.rs"]
mod trace;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use self::{
    child::set_up,
    google::{KEY, service_account},
};

const URI: &str = "https://localhost:1/token";

/// Runs in the child processes that the tests start.
#[test]
fn child() {
    child::obey();
}

/// A folder with one file in it.
struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn file(text: impl AsRef<[u8]>) -> File {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.json");
    std::fs::write(&path, text).unwrap();
    File {
        _folder: folder,
        path,
    }
}

/// What a file of this text is told to be.
async fn told_of(text: impl AsRef<[u8]>) -> String {
    let file = file(text);
    told_of_path(&file.path, &[]).await
}

async fn told_of_path(path: &Path, variables: &[(&str, &Path)]) -> String {
    let (answer, took) = set_up(&format!("file:{}", path.display()), variables).await;
    assert!(took < Duration::from_secs(6), "{took:?}: {answer}");
    let prefix = format!(
        "Unauthenticated credentials: credentials file {}: ",
        path.display()
    );
    let Some(told) = answer.strip_prefix(&prefix) else {
        panic!("{answer:?} does not start with {prefix:?}");
    };
    told.to_owned()
}

fn account_with(field: &str, value: impl Into<Value>) -> String {
    let mut account = service_account(KEY, URI);
    account[field] = value.into();
    account.to_string()
}

#[tokio::test]
async fn a_file_that_is_no_credentials_file() {
    let again = "download the file again";
    let whole = service_account(KEY, URI).to_string();
    for (text, expected) in [
        ("", format!("it is empty: {again}")),
        (" \n", format!("it is empty: {again}")),
        (
            &whole[..100],
            format!("the JSON is cut off at line 1, column 100: {again}"),
        ),
        (
            "key",
            format!("it is not JSON at line 1, column 1: {again}"),
        ),
        ("[]", format!("it is not a JSON object: {again}")),
        ("{}", format!("field \"type\" is missing: {again}")),
        (
            r#"{"type": 1}"#,
            format!("field \"type\" is not text: {again}"),
        ),
    ] {
        assert_eq!(told_of(text).await, expected, "{text:?}");
    }
    let told = told_of(b"\xff\xfe").await;
    assert!(told.contains("UTF-8"), "{told}");
}

#[tokio::test]
async fn a_kind_that_nobody_supports() {
    let kind = json!({"type": "external_account_authorized_user"}).to_string();
    assert_eq!(
        told_of(kind).await,
        "field \"type\" is none of \"service_account\", \"authorized_user\", \
         \"external_account\", \"impersonated_service_account\": use a file of one of these"
    );
}

#[cfg(not(feature = "google-cloud-auth"))]
#[tokio::test]
async fn a_kind_that_needs_a_feature() {
    let file = file(json!({"type": "external_account"}).to_string());
    let (answer, _) = set_up(&format!("file:{}", file.path.display()), &[]).await;
    assert_eq!(
        answer,
        format!(
            "FailedPrecondition credentials: credentials file {}: field \"type\": \
             \"external_account\" needs the feature google-cloud-auth of the crate longrunning",
            file.path.display()
        )
    );
}

#[tokio::test]
async fn a_field_that_is_missing_or_empty_or_no_text() {
    let again = "download the file again";
    for field in ["client_email", "private_key_id", "private_key", "token_uri"] {
        let mut account = service_account(KEY, URI);
        account.as_object_mut().unwrap().remove(field);
        assert_eq!(
            told_of(account.to_string()).await,
            format!("field {field:?} is missing: {again}")
        );
        assert_eq!(
            told_of(account_with(field, "")).await,
            format!("field {field:?} is empty: {again}")
        );
    }
    assert_eq!(
        told_of(account_with("private_key", json!({"pem": "x"}))).await,
        format!("field \"private_key\" is not text: {again}")
    );
    for field in ["client_id", "client_secret", "refresh_token"] {
        let mut user = json!({
            "type": "authorized_user",
            "client_id": "id",
            "client_secret": "secret",
            "refresh_token": "token",
        });
        user.as_object_mut().unwrap().remove(field);
        assert_eq!(
            told_of(user.to_string()).await,
            format!("field {field:?} is missing: {again}")
        );
    }
}

#[tokio::test]
async fn a_key_that_cannot_sign() {
    let expected = "field \"private_key\" is not an RSA key in PEM form of 2048 bits or more: \
        download the file again";
    let mut corrupt = KEY.to_owned();
    corrupt.replace_range(1000..1004, "AAAA");
    let cut_off: String = KEY.lines().take(10).collect::<Vec<_>>().join("\n");
    for key in [
        "key",
        include_str!("support/keys/elliptic_curve.pem"),
        include_str!("support/keys/too_short.pem"),
        &corrupt,
        &cut_off,
        include_str!("support/keys/public.pem"),
        "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nMAA=\n-----END RSA PRIVATE KEY-----\n",
    ] {
        assert_eq!(
            told_of(account_with("private_key", key)).await,
            expected,
            "{key}"
        );
    }
}

#[tokio::test]
async fn a_token_uri_that_is_no_https_url() {
    for uri in [
        "token",
        "http://localhost/token",
        "https://",
        "https:// /",
        "/token",
        "a b",
    ] {
        assert_eq!(
            told_of(account_with("token_uri", uri)).await,
            "field \"token_uri\" is not an https URL: Google's is \
             https://oauth2.googleapis.com/token",
            "{uri:?}"
        );
    }
}

#[tokio::test]
async fn a_path_that_is_no_readable_file() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(
        told_of_path(folder.path(), &[]).await,
        "it is a directory or a pipe: name a file of JSON"
    );
    let told = told_of_path(&folder.path().join("none.json"), &[]).await;
    assert!(told.starts_with("No such file or directory"), "{told}");
    assert!(
        told.ends_with(": put the file there, or name another"),
        "{told}"
    );
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    assert_eq!(
        told_of_path(&pipe, &[]).await,
        "it is a directory or a pipe: name a file of JSON"
    );
}

#[tokio::test]
async fn the_text_of_a_file_where_its_path_belongs() {
    let text = service_account(KEY, URI).to_string();
    let told = "credentials file: what was given looks like the text of a file or a token, and is not \
        shown: give the path of a file there; Credentials::json takes the text, and \
        Credentials::bearer_token a token";
    for text in [
        &*text,
        KEY,
        "{",
        "ya29.c",
        &"a".repeat(60),
        &"a".repeat(600),
    ] {
        let (answer, took) = set_up(&format!("file:{}", text.replace('\n', "\\n")), &[]).await;
        assert_eq!(answer, format!("Unauthenticated credentials: {told}"));
        assert!(took < Duration::from_secs(6), "{took:?}");
    }
    let variable = ("GOOGLE_APPLICATION_CREDENTIALS", Path::new(&text));
    let (answer, _) = set_up("adc", &[variable]).await;
    assert_eq!(
        answer,
        format!("Unauthenticated credentials: GOOGLE_APPLICATION_CREDENTIALS: {told}")
    );
}

#[tokio::test]
async fn text_that_is_not_a_credentials_file_is_refused_and_not_shown() {
    for given in ["/etc/key.json", "ya29.c", "\"ya29.c\"", "[]"] {
        let credentials = longrunning::Credentials::json(given);
        let status = credentials.interceptor().await.expect_err("no credentials");
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        assert_eq!(
            status.message(),
            "credentials: credentials JSON: not the text of a credentials file (the value is not shown): pass a \
             path to Credentials::file, or an access token to Credentials::bearer_token"
        );
    }
}

#[tokio::test]
async fn a_path_that_only_looks_like_text_is_read_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("{key}.json");
    std::fs::write(&path, "{}").unwrap();
    let told = told_of_path(&path, &[]).await;
    assert_eq!(told, "field \"type\" is missing: download the file again");
}

#[cfg(target_os = "linux")]
async fn first_failure(auth: &longrunning::AuthInterceptor) -> tonic::Status {
    loop {
        let status = auth.status();
        assert!(!status.is_valid, "a token, and no failure");
        if let Some(failure) = status.last_failure {
            return failure;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(target_os = "linux")]
const LIMITED: &str = "TEST_LIMITED";

/// Runs a test of this file again, in a process that has few file descriptors.
#[cfg(target_os = "linux")]
fn run_limited(test: &str) {
    let file = file(service_account(KEY, URI).to_string());
    let program = std::env::current_exe().unwrap();
    let limited = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 64 && exec \"$0\" --exact \"$1\""])
        .args([program.as_os_str(), test.as_ref()])
        .env(LIMITED, &file.path)
        .env("GOOGLE_APPLICATION_CREDENTIALS", "")
        .env("CLOUDSDK_CONFIG", "/nonexistent")
        .env("GCE_METADATA_HOST", "localhost:1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&limited.stdout);
    let log = String::from_utf8_lossy(&limited.stderr);
    assert!(
        limited.status.success() && said.contains("1 passed") && !log.contains("panicked"),
        "{said}{log}"
    );
}

/// Returns how the first fetch fails in a process that has so many file descriptors left.
#[cfg(target_os = "linux")]
fn failure_with_descriptors(left: usize, credentials: longrunning::Credentials) -> tonic::Status {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let auth = {
        let _guard = runtime.enter();
        credentials.interceptor_lazy().unwrap()
    };
    let mut taken = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    taken.truncate(taken.len() - left);
    runtime.block_on(first_failure(&auth))
}

#[cfg(target_os = "linux")]
const NO_RUNTIME: &str = "credentials: cannot fetch a token: Too many open files (os error 24): the \
    fetch will be retried";

/// Returns how the first fetch fails with one more file descriptor each time, until it does no longer fail
/// like this. Each failure must be `UNAVAILABLE`.
#[cfg(target_os = "linux")]
fn failure_after(failures: &[&str], credentials: &longrunning::Credentials) -> String {
    let mut seen = vec![false; failures.len()];
    for left in 0..32 {
        let failure = failure_with_descriptors(left, credentials.clone());
        let message = failure.message().to_owned();
        assert_eq!(
            failure.code(),
            tonic::Code::Unavailable,
            "{left}: {message}"
        );
        match failures.iter().position(|failure| *failure == message) {
            Some(place) => seen[place] = true,
            None => {
                assert!(seen.iter().all(|it| *it), "{seen:?}");
                return message;
            }
        }
    }
    panic!("32 file descriptors are not enough");
}

/// The machine is at fault, not the file: a later fetch may succeed.
#[cfg(target_os = "linux")]
#[test]
fn a_credentials_file_is_unavailable_without_file_descriptors() {
    let Some(path) = std::env::var_os(LIMITED).map(PathBuf::from) else {
        return run_limited("a_credentials_file_is_unavailable_without_file_descriptors");
    };
    let failure = failure_with_descriptors(0, longrunning::Credentials::file(&path));
    assert_eq!(failure.code(), tonic::Code::Unavailable);
    assert_eq!(
        failure.message(),
        format!(
            "credentials: credentials file {}: Too many open files (os error 24): the fetch will be \
             retried",
            path.display()
        )
    );
}

/// `GCE_METADATA_HOST` specifies that there is a metadata server, so the credentials are not missing.
#[cfg(target_os = "linux")]
#[test]
fn a_named_metadata_server_is_unavailable_without_file_descriptors() {
    if std::env::var_os(LIMITED).is_none() {
        return run_limited("a_named_metadata_server_is_unavailable_without_file_descriptors");
    }
    let credentials = longrunning::Credentials::application_default();
    // With one descriptor more, the connection is refused.
    let message = failure_after(&[NO_RUNTIME], &credentials);
    let start = "credentials: the metadata server localhost:1 cannot be reached: ";
    assert!(message.starts_with(start), "{message}");
}

/// However many there are, the certificate store is not reported as missing, and nothing panics.
#[cfg(target_os = "linux")]
#[test]
fn the_token_endpoint_is_unavailable_with_few_file_descriptors() {
    let Some(path) = std::env::var_os(LIMITED).map(PathBuf::from) else {
        return run_limited("the_token_endpoint_is_unavailable_with_few_file_descriptors");
    };
    let text = std::fs::read_to_string(path).unwrap();
    let no_store = "credentials: cannot read the system's CA certificates: Too many open files (os \
        error 24): the fetch will be retried";
    let message = failure_after(
        &[NO_RUNTIME, no_store],
        &longrunning::Credentials::json(text),
    );
    let start = "credentials: credentials JSON: the token endpoint localhost:1 cannot be reached: ";
    assert!(message.starts_with(start), "{message}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_may_not_be_read() {
    use std::os::unix::fs::PermissionsExt as _;

    let file = file("{}");
    std::fs::set_permissions(&file.path, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::read(&file.path).is_ok() {
        // The superuser may read every file. This one fails to be read, as one of a broken disk does.
        let (answer, _) = set_up("file:/proc/self/mem", &[]).await;
        assert_eq!(
            answer,
            "Unavailable credentials: credentials file /proc/self/mem: Input/output error (os error 5): the \
             fetch will be retried"
        );
        return;
    }
    let told = told_of_path(&file.path, &[]).await;
    assert!(told.starts_with("Permission denied"), "{told}");
    assert!(
        told.ends_with(": let the user of this process read it"),
        "{told}"
    );
}

#[tokio::test]
async fn a_machine_without_certificates() {
    let account = service_account(KEY, URI).to_string();
    let (none, empty) = (Path::new("/nonexistent/ca.pem"), file(""));
    let broken = file("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n");
    for store in [none, &empty.path, &broken.path] {
        let (answer, _) = set_up(&format!("json:{account}"), &[("SSL_CERT_FILE", store)]).await;
        assert_eq!(
            answer,
            "Unauthenticated credentials: no CA certificates found, cannot verify the token \
             endpoint: install the package ca-certificates, or set SSL_CERT_FILE to a PEM bundle"
        );
    }
}

#[tokio::test]
async fn the_variable_is_named_if_its_file_is_no_good() {
    let variable = (
        "GOOGLE_APPLICATION_CREDENTIALS",
        Path::new("/nonexistent.json"),
    );
    let (answer, _) = set_up("adc", &[variable]).await;
    assert_eq!(
        answer,
        "Unauthenticated credentials: GOOGLE_APPLICATION_CREDENTIALS: credentials file \
         /nonexistent.json: No such file or directory (os error 2): put the file there, or name \
         another"
    );
}

#[tokio::test]
async fn no_credentials_anywhere_is_told_within_six_seconds() {
    let home = tempfile::tempdir().unwrap();
    let off = ("NO_GCE_CHECK", Path::new("true"));
    let empty = ("GOOGLE_APPLICATION_CREDENTIALS", Path::new(""));
    let remedy = "run \"gcloud auth application-default login\", or set \
        GOOGLE_APPLICATION_CREDENTIALS to a key file";
    let (answer, took) = set_up("adc", &[off, empty, ("HOME", home.path())]).await;
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(
        answer,
        format!(
            "Unauthenticated credentials: no application default credentials: \
             GOOGLE_APPLICATION_CREDENTIALS is not set, there is no file \
             {}/.config/gcloud/application_default_credentials.json, and NO_GCE_CHECK says that \
             there is no metadata server of Google Cloud: {remedy}",
            home.path().display()
        )
    );
    for home in [
        &[off][..],
        &[off, ("HOME", Path::new(""))],
        &[off, ("HOME", Path::new("a"))],
    ] {
        let (answer, _) = set_up("adc", home).await;
        assert_eq!(
            answer,
            format!(
                "Unauthenticated credentials: no application default credentials: \
                 GOOGLE_APPLICATION_CREDENTIALS is not set, there is no home directory to look for \
                 gcloud's file in, and NO_GCE_CHECK says that there is no metadata server of \
                 Google Cloud: {remedy}"
            )
        );
    }
}
