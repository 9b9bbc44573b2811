//! Holds nothing but the tests that `Cargo.toml` names.
