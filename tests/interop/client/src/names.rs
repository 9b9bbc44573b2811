//! The routing header of each name of `names.json`, as our client sends it.

use longrunning::OperationsClient;
use serde_json::{Value, json};

use crate::scripts::Control;

pub async fn run(port: &str, control: &str) -> Result<(), Box<dyn std::error::Error>> {
    let names: Vec<String> = serde_json::from_str(include_str!("../../names.json"))?;
    let mut control = Control::connect(control).await?;
    control.send(json!({ "do": "calls" })).await?;
    let url = format!("http://127.0.0.1:{port}");
    let client = OperationsClient::builder(url).connect().await?;
    for name in &names {
        client.get_operation(name).await.expect_err("unknown");
    }
    let calls: Value = control.send(json!({ "do": "calls" })).await?;
    println!("{calls}");
    Ok(())
}
