//! Compiles the vendored protos into tonic stubs, without `protoc`.

use std::{env, error::Error, fs, path::Path, process::Command};

use prost_build::Config;

const PROTOS: [&str; 4] = [
    "google/longrunning/operations.proto",
    "google/rpc/code.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
];

/// The tonic requirement of `Cargo.toml`, as `x-goog-api-client` reports it.
const TONIC: &str = "0.14";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = env::var("OUT_DIR")?;
    // The tests hold these descriptors against the published interface.
    fs::write(
        Path::new(&out).join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    let mut config = Config::new();
    config.enable_type_names(); // `prost::Name`, with which an `Any` is checked against its type
    config.type_name_domain(["."], "type.googleapis.com"); // as every other language packs an `Any`
    config.btree_map(["."]); // the same message is always the same bytes
    tonic_prost_build::configure()
        .build_server(env::var_os("CARGO_FEATURE_EMULATOR").is_some())
        .build_transport(false)
        .generate_default_stubs(true) // a mock implements only the methods that it needs
        .compile_fds_with_config(descriptors, config)?;
    println!("cargo:rustc-env=LONGRUNNING_API_CLIENT={}", api_client()?);
    Ok(())
}

/// The value of `x-goog-api-client`: who calls, for the statistics of Google's services.
fn api_client() -> Result<String, Box<dyn Error>> {
    let rustc = Command::new(env::var("RUSTC")?).arg("--version").output()?;
    let rustc = String::from_utf8(rustc.stdout)?;
    let rustc = rustc.split(' ').nth(1).unwrap_or("unknown").trim();
    let version = env::var("CARGO_PKG_VERSION")?;
    Ok(format!("gl-rust/{rustc} gccl/{version} grpc/{TONIC}"))
}
