//! The README says what compiles.

use longrunning::OperationsClient;

/// The README's example is the body of this function, letter for letter.
#[allow(dead_code)]
#[rustfmt::skip]
async fn example() -> Result<longrunning::Operation, tonic::Status> {
    // begin
    let client = OperationsClient::builder("https://automl.googleapis.com").connect().await?;
    client.cancel_operation("projects/p/locations/us-central1/operations/ICN42").await?;
    let operation = client.get_operation("projects/p/locations/us-central1/operations/ICN42").await?;
    // end
    Ok(operation)
}

#[test]
fn the_example_of_the_readme_is_the_one_that_was_compiled() {
    let (_, body) = include_str!("readme.rs")
        .split_once("// begin\n")
        .expect("is there");
    let (body, _) = body.split_once("    // end\n").expect("is there");
    let body: String = body
        .lines()
        .map(|line| format!("{}\n", line.trim_start()))
        .collect();
    assert!(
        include_str!("../README.md").contains(&format!("```rust\n{body}```")),
        "{body}"
    );
}
