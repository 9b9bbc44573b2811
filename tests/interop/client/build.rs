//! Compiles the vendored protos as the crate itself does, for the parity check.

use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let protos = "../../../proto";
    println!("cargo:rerun-if-changed={protos}");
    let files = [
        "google/longrunning/operations.proto",
        "google/rpc/code.proto",
        "google/rpc/error_details.proto",
        "google/rpc/status.proto",
    ];
    let descriptors = protox::compile(files, [protos])?;
    let path = Path::new(&env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(path, prost::Message::encode_to_vec(&descriptors))?;
    Ok(())
}
