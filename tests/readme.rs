//! The README says what compiles.

use longrunning::OperationsClient;

/// Each part between the marks is an example of the README, letter for letter.
#[allow(dead_code, unused_variables, unused_mut)]
#[rustfmt::skip]
async fn examples() -> Result<(), tonic::Status> {
    // begin
    let client = OperationsClient::builder("https://automl.googleapis.com").connect().await?;
    client.cancel_operation("projects/p/locations/us-central1/operations/ICN42").await?;
    let operation = client.get_operation("projects/p/locations/us-central1/operations/ICN42").await?;
    // end
    // begin
    use std::time::Duration;
    use longrunning::{CancelOutcome, PollPolicy};

    let name = "projects/p/locations/us-central1/operations/ICN42";
    let policy = PollPolicy::default().total_timeout(Duration::from_secs(60));
    match client.cancel_and_wait(name, policy).await? {
        CancelOutcome::Cancelled(_) => println!("cancelled"),
        CancelOutcome::Succeeded(operation) => println!("completed instead: {operation:?}"),
        other => println!("{other:?}"),
    }
    // end
    // begin
    let done = client.poller(name).policy(policy).until_done().await?; // or state by state, with `next`
    let mut all = client.operations("projects/p/locations/us-central1"); // all pages
    while let Some(operation) = all.next().await {
        println!("{}", operation?.name);
    }
    let mut reports = client.cancel_operations(tokio_stream::iter([name])); // at a rate that adapts to the server's quota
    let set = client.operation_set(); // watches any number of operations
    set.insert(name);
    while let Some((name, result)) = set.next().await {
        println!("{name}: {result:?}");
    }
    // end
    Ok(())
}

#[tokio::test]
#[rustfmt::skip]
async fn a_test_on_the_emulator_is_as_short_as_it_says() -> Result<(), tonic::Status> {
    // begin
    use longrunning::{OperationsClient, emulator::Emulator};

    let emulator = Emulator::start().await?;
    emulator.start_operation("operations/1")?;
    let client = OperationsClient::builder(emulator.endpoint()).connect().await?;
    client.cancel_operation("operations/1").await?;
    assert!(emulator.operation("operations/1").is_some_and(|operation| operation.done));
    // end
    Ok(())
}

#[allow(dead_code, unused_variables)]
#[rustfmt::skip]
async fn a_shared_connection() -> Result<(), tonic::Status> {
    // begin
    use longrunning::{Credentials, proto::operations_client::OperationsClient as OtherClient};

    let auth = Credentials::application_default().interceptor().await?;
    let client = OperationsClient::builder("https://automl.googleapis.com").auth(auth.clone());
    let client = client.connect().await?;
    let other = OtherClient::with_interceptor(client.stack().clone(), auth);
    // end
    Ok(())
}

#[test]
fn the_readme_shows_what_is_compiled_here_and_nothing_else() {
    let compiled = include_str!("readme.rs")
        .split("    // begin\n")
        .skip(1)
        .map(|part| {
            let (part, _) = part.split_once("    // end\n").expect("begin has an end");
            let lines = part
                .lines()
                .map(|line| line.strip_prefix("    ").unwrap_or(line));
            lines.map(|line| format!("{line}\n")).collect::<String>()
        });
    let shown = include_str!("../README.md").split("```rust\n").skip(1);
    let shown = shown.map(|part| part.split_once("```").expect("it ends").0);
    assert_eq!(shown.collect::<Vec<_>>(), compiled.collect::<Vec<_>>());
}
