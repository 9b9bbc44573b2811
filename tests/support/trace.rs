//! Everything that any crate logs, at TRACE, on stderr.

/// Writes spans and events of `tracing`, and records of `log`, to stderr.
pub(crate) fn to_stderr() {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
}

/// Adds what a program may print of our types, too.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}
