//! A client keeps the identity with which it has started, whatever happens to files, directories and
//! variables later. Each client runs in a process of its own.
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

use std::{fs, path::Path};

use futures_util::future::join_all;

use self::{
    child::Process,
    google::{KEY, MetadataServer, ROTATED_KEY, TokenEndpoint, service_account, token},
    http::Reply,
};

/// The working directory in which the child creates its clients.
const DIRECTORY: &str = "TEST_DIRECTORY";
const VARIABLE: &str = "GOOGLE_APPLICATION_CREDENTIALS";
const GCLOUD: &str = "application_default_credentials.json";

/// Runs in the child processes that the tests start.
#[test]
fn child() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        std::env::set_current_dir(directory).unwrap();
    }
    child::obey();
}

/// Returns the headers of the endpoint's nth token.
fn bearer(n: usize) -> String {
    format!("authorization: Bearer token-{n}")
}

fn warns_of_an_unreadable_file(log: &str) -> bool {
    log.lines()
        .any(|line| line.contains(" WARN ") && line.contains("credentials file cannot be read"))
}

#[tokio::test]
async fn a_client_of_the_metadata_server_stays_with_it_when_gclouds_file_appears() {
    let metadata = MetadataServer::start().await;
    let endpoint = TokenEndpoint::start().await;
    endpoint.desk.answer(Reply::ok(token("of-the-file", 3600)));
    let home = tempfile::tempdir().unwrap();
    let (host, ca) = (metadata.host(), endpoint.ca());
    let variables = [
        ("HOME", home.path()),
        ("GCE_METADATA_HOST", Path::new(&host)),
        ("SSL_CERT_FILE", &ca),
    ];
    let mut process = Process::start("adc", &variables);
    assert_eq!(process.tell("ready").await, bearer(1));

    let gcloud = home.path().join(".config/gcloud");
    fs::create_dir_all(&gcloud).unwrap();
    fs::copy(endpoint.key_file(KEY), gcloud.join(GCLOUD)).unwrap();
    process.tell("reject").await;
    process.until("look", &bearer(2)).await;
    assert_eq!(endpoint.desk.count(), 0);

    // A client that is created now uses the file.
    assert_eq!(
        process.tell("new").await,
        "authorization: Bearer of-the-file"
    );
    assert_eq!(metadata.desk.count(), 2);
    process.end().await;
}

#[tokio::test]
async fn a_client_keeps_gclouds_file_while_its_folder_is_away() {
    let metadata = MetadataServer::start().await;
    let endpoint = TokenEndpoint::start().await;
    let parent = tempfile::tempdir().unwrap();
    let (folder, away) = (parent.path().join("gcloud"), parent.path().join("away"));
    fs::create_dir(&folder).unwrap();
    fs::copy(endpoint.key_file(KEY), folder.join(GCLOUD)).unwrap();
    let (host, ca) = (metadata.host(), endpoint.ca());
    let variables = [
        ("CLOUDSDK_CONFIG", &*folder),
        ("GCE_METADATA_HOST", Path::new(&host)),
        ("SSL_CERT_FILE", &ca),
    ];
    let mut process = Process::start("adc", &variables);
    assert_eq!(process.tell("ready").await, bearer(1));

    fs::rename(&folder, &away).unwrap();
    process.tell("reject").await;
    process.until("look", &bearer(2)).await;
    assert_eq!(metadata.desk.count(), 0);

    // The endpoint accepts only the new key from now on.
    *endpoint.key.lock().unwrap() = ROTATED_KEY;
    fs::copy(endpoint.key_file(ROTATED_KEY), away.join(GCLOUD)).unwrap();
    fs::rename(&away, &folder).unwrap();
    process.tell("reject").await;
    process.until("look", &bearer(3)).await;
    assert_eq!(metadata.desk.count(), 0);
    let log = process.end().await;
    assert_eq!(
        warns_of_an_unreadable_file(&log),
        cfg!(feature = "tracing"),
        "{log}"
    );
}

#[tokio::test]
async fn relative_paths_are_of_the_directory_in_which_the_client_was_created() {
    let endpoint = TokenEndpoint::start().await;
    let parent = tempfile::tempdir().unwrap();
    let (first, second) = (parent.path().join("first"), parent.path().join("second"));
    for (directory, project) in [(&first, "first"), (&second, "second")] {
        let mut account = service_account(KEY, &endpoint.uri());
        account["quota_project_id"] = project.into();
        fs::create_dir_all(directory.join("config")).unwrap();
        fs::write(directory.join("config").join(GCLOUD), account.to_string()).unwrap();
    }
    let carries = |answer: &str, project: &str| {
        answer.starts_with("authorization: Bearer token-")
            && answer.ends_with(&format!(", x-goog-user-project: {project}"))
    };
    let file = format!("config/{GCLOUD}");
    let ca = endpoint.ca();
    let clients = [
        ("adc".to_owned(), "CLOUDSDK_CONFIG", "config"),
        ("adc".to_owned(), VARIABLE, &*file),
        (format!("file:{file}"), "UNUSED", ""),
    ];
    let clients = clients.map(async |(credentials, variable, path)| {
        let variables = [
            (DIRECTORY, &*first),
            (variable, Path::new(path)),
            ("NO_GCE_CHECK", Path::new("true")),
            ("SSL_CERT_FILE", &ca),
        ];
        let mut process = Process::start(&credentials, &variables);
        let before = process.tell("ready").await;
        assert!(carries(&before, "first"), "{variable}: {before}");

        process.tell(&format!("chdir {}", second.display())).await;
        process.tell("reject").await;
        let after = process.until_not("look", &before).await;
        assert!(carries(&after, "first"), "{variable}: {after}");

        // A client that is created now uses the other file.
        let new = process.tell("new").await;
        assert!(carries(&new, "second"), "{variable}: {new}");
        let log = process.end().await;
        assert!(!warns_of_an_unreadable_file(&log), "{log}");
    });
    join_all(clients).await;
}

#[tokio::test]
async fn a_search_that_finds_nothing_decides_nothing() {
    let endpoint = TokenEndpoint::start().await;
    let home = tempfile::tempdir().unwrap();
    let ca = endpoint.ca();
    let variables = [
        ("HOME", home.path()),
        ("NO_GCE_CHECK", Path::new("true")),
        ("SSL_CERT_FILE", &ca),
    ];
    let mut process = Process::start("adc", &variables);
    let none = process.tell("ready").await;
    let expected = "Unauthenticated credentials: no application default credentials: ";
    assert!(none.starts_with(expected), "{none}");

    let gcloud = home.path().join(".config/gcloud");
    fs::create_dir_all(&gcloud).unwrap();
    // In one step, because half a file would be read as one that is cut off.
    fs::rename(endpoint.key_file(KEY), gcloud.join(GCLOUD)).unwrap();
    process.until("ready", &bearer(1)).await;
    process.end().await;
}

#[tokio::test]
async fn a_file_that_is_deleted_is_used_from_memory_with_a_warning() {
    let endpoint = TokenEndpoint::start().await;
    let ca = endpoint.ca();
    let folder = tempfile::tempdir().unwrap();
    let files = ["one.json", "two.json"].map(|name| folder.path().join(name));
    for file in &files {
        fs::copy(endpoint.key_file(KEY), file).unwrap();
    }
    let clients = [
        (format!("file:{}", files[0].display()), "UNUSED", &files[0]),
        ("adc".to_owned(), VARIABLE, &files[1]),
    ];
    let clients = clients.map(async |(credentials, variable, file)| {
        let variables = [(variable, &**file), ("SSL_CERT_FILE", &ca)];
        let mut process = Process::start(&credentials, &variables);
        let before = process.tell("ready").await;

        fs::remove_file(file).unwrap();
        process.tell("reject").await;
        let after = process.until_not("look", &before).await;
        assert!(after.starts_with("authorization: Bearer token-"), "{after}");

        // A client that is created now has no content to use.
        let new = process.tell("new").await;
        assert!(new.starts_with("Unauthenticated "), "{new}");
        assert!(new.contains("No such file or directory"), "{new}");
        let log = process.end().await;
        assert_eq!(
            warns_of_an_unreadable_file(&log),
            cfg!(feature = "tracing"),
            "{log}"
        );
    });
    join_all(clients).await;
}

/// Some writers truncate a file before they write it, or are stopped in the middle.
#[tokio::test]
async fn the_last_good_content_is_used_while_a_file_is_incomplete() {
    let endpoint = TokenEndpoint::start().await;
    let ca = endpoint.ca();
    let folder = tempfile::tempdir().unwrap();
    let contents = [
        ("empty.json", ""),
        ("half.json", "{\"type\": \"service_acc"),
    ];
    let clients = contents.map(async |(name, content)| {
        let file = folder.path().join(name);
        fs::copy(endpoint.key_file(KEY), &file).unwrap();
        let credentials = format!("file:{}", file.display());
        let mut process = Process::start(&credentials, &[("SSL_CERT_FILE", &ca)]);
        let before = process.tell("ready").await;
        fs::write(&file, content).unwrap();
        process.tell("reject").await;
        let after = process.until_not("look", &before).await;
        assert!(after.starts_with("authorization: Bearer token-"), "{after}");
        process.end().await;
    });
    join_all(clients).await;
}

/// Daemons commonly have such a home directory.
#[tokio::test]
async fn a_home_that_is_not_a_directory_has_no_file() {
    let metadata = MetadataServer::start().await;
    let host = metadata.host();
    let variables = [
        ("HOME", Path::new("/dev/null")),
        ("GCE_METADATA_HOST", Path::new(&host)),
    ];
    let mut process = Process::start("adc", &variables);
    assert_eq!(process.tell("new").await, bearer(1));
    process.end().await;
}
