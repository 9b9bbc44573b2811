//! The programs that measure the variants.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::Result;

/// A program that measures one variant. It takes the arguments of a plan, starts the server, and prints a record.
pub(crate) struct Program {
    variant: &'static str,
    /// The path, relative to the folder of the benchmark.
    path: &'static str,
    arguments: &'static [&'static str],
    /// The error if the program does not exist.
    missing: &'static str,
    /// Whether it is written in another language. Such a program gets the path of this one as an argument, to start the
    /// server.
    pub(crate) is_foreign: bool,
    /// Whether it can cancel many operations with [`Length::Bulk`](crate::plan::Length::Bulk).
    pub(crate) has_bulk: bool,
}

/// Returns the program of a variant, or `None` if this program measures it.
pub(crate) fn find(variant: &str) -> Option<&'static Program> {
    PROGRAMS.iter().find(|program| program.variant == variant)
}

/// Returns the path and the first arguments of the program that measures a variant. Paths in the arguments are relative to
/// [`FOLDER`].
pub(crate) fn command(variant: &str) -> Result<(PathBuf, Vec<String>)> {
    let own = env::current_exe()?;
    let Some(program) = find(variant) else {
        return Ok((own, vec!["client".to_owned(), variant.to_owned()]));
    };
    let path = Path::new(FOLDER).join(program.path);
    if !path.exists() {
        return Err(program.missing.into());
    }
    let mut arguments: Vec<_> = program.arguments.iter().map(ToString::to_string).collect();
    arguments.extend(program.is_foreign.then(|| own.display().to_string()));
    Ok((path, arguments))
}

/// The folder of the benchmark.
pub(crate) const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

const PROGRAMS: [Program; 3] = [
    Program {
        variant: "longrunning, patched h2",
        path: "target/patched/release/longrunning-bench",
        arguments: &["client", "longrunning"],
        missing: "the build with the patched h2 failed",
        is_foreign: false,
        has_bulk: true,
    },
    Program {
        variant: "google-api-core",
        path: "target/venv/bin/python",
        arguments: &["python/client.py"],
        missing: "google-api-core is not installed in target/venv: install Python 3 with venv",
        is_foreign: true,
        has_bulk: false,
    },
    Program {
        variant: "grpc-go",
        path: "target/go/client",
        arguments: &[],
        missing: "target/go/client is missing: install Go 1.26, or see why its build failed",
        is_foreign: true,
        has_bulk: true,
    },
];
