//! Makes calls to the emulator, and prints the events of level WARN, the spans as they close, the OpenTelemetry
//! metrics, and the statistics of the client.
//!
//!     cargo run --example observability --features opentelemetry,tracing

use std::{error::Error, sync::Arc, time::Duration};

use longrunning::{OpenTelemetryRecorder, OperationsClient, emulator::Emulator};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_stdout::MetricExporter;
use tonic::Status;
use tracing_subscriber::fmt::format::FmtSpan;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_span_events(FmtSpan::CLOSE)
        .init();
    let exporter = MetricExporter::default();
    let provider = SdkMeterProvider::builder()
        .with_periodic_exporter(exporter)
        .build();
    let recorder = OpenTelemetryRecorder::new(&provider).experimental();

    // A server that allows two streams per connection, and fails the first call.
    let emulator = Emulator::builder()
        .max_concurrent_streams(2)
        .start()
        .await?;
    emulator.delay(None, Duration::from_millis(50));
    emulator.fail_next(None, 1, Status::unavailable("try again"));
    let builder = OperationsClient::builder(emulator.endpoint()).max_connections(2);
    let client = builder.recorder(Arc::new(recorder)).connect().await?;

    let names = (0..20).map(|n| format!("operations/{n}"));
    names
        .clone()
        .try_for_each(|name| emulator.start_operation(name).map(drop))?;
    let mut reports = client.cancel_operations(tokio_stream::iter(names));
    while let Some(report) = reports.next().await {
        report.result?;
    }
    client.poller("operations/0").until_done().await?;

    println!("{:#?}", client.stats());
    provider.shutdown()?; // exports the metrics
    Ok(())
}
