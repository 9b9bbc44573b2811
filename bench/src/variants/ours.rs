//! This crate: its default stack with all its defaults, and over one Channel.

use std::time::Duration;

use longrunning::{
    AuthInterceptor, ClientBuilder, Credentials, GrpcStack, OperationsClient, Transport,
    proto::CancelOperationRequest,
};
use tonic::{
    IntoRequest as _, Request, service::interceptor::InterceptedService, transport::Channel,
};

use super::{OPERATIONS, TOKEN, Variant, channel, url};
use crate::{Result, spawn::Server};

#[derive(Clone)]
pub(crate) struct Ours<S>(OperationsClient<S>);

impl Ours<Transport> {
    pub(crate) async fn connect(server: &Server) -> Result<Self> {
        Ok(Self(Self::builder(server).connect().await?))
    }

    /// Records metrics with the OpenTelemetry SDK, without an exporter.
    #[cfg(feature = "observability")]
    pub(crate) async fn with_metrics(server: &Server) -> Result<Self> {
        let reader = opentelemetry_sdk::metrics::ManualReader::builder().build();
        let provider = opentelemetry_sdk::metrics::SdkMeterProvider::builder();
        let provider = provider.with_reader(reader).build();
        let recorder = longrunning::OpenTelemetryRecorder::new(&provider).experimental();
        let builder = Self::builder(server).recorder(std::sync::Arc::new(recorder));
        // The instruments record nothing once the provider is dropped.
        std::mem::forget(provider);
        Ok(Self(builder.connect().await?))
    }

    /// Records spans with the OpenTelemetry SDK, without an exporter.
    #[cfg(feature = "observability")]
    pub(crate) async fn with_spans(server: &Server) -> Result<Self> {
        use opentelemetry::trace::TracerProvider as _;
        use tracing_subscriber::{
            Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
        };

        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("bench"));
        // Without the spans of h2, which would be the majority.
        let ours = Targets::new()
            .with_target("longrunning", tracing_subscriber::filter::LevelFilter::INFO);
        tracing_subscriber::registry()
            .with(layer.with_filter(ours))
            .init();
        Self::connect(server).await
    }

    fn builder(server: &Server) -> ClientBuilder {
        let mut builder = OperationsClient::builder(url(server)).credentials(credentials());
        if !server.certificate.is_empty() {
            builder = builder.ca_certificate(server.certificate.as_str());
        }
        builder
    }
}

impl Ours<InterceptedService<Channel, AuthInterceptor>> {
    pub(crate) async fn on_channel(server: &Server) -> Result<Self> {
        let auth = credentials().interceptor().await?;
        let stack = InterceptedService::new(channel(server).await?, auth);
        Ok(Self(OperationsClient::new(stack)))
    }
}

fn credentials() -> Credentials {
    Credentials::bearer_token(TOKEN.as_str())
}

impl<S: GrpcStack + Sync> Variant for Ours<S> {
    async fn cancel(&mut self, name: &'static str) -> Result {
        self.0.cancel_operation(name).await?;
        Ok(())
    }

    async fn cancel_within(&mut self, name: &'static str, timeout: Duration) -> Result {
        let mut request: Request<CancelOperationRequest> = name.into_request();
        request.set_timeout(timeout);
        self.0.cancel_operation(request).await?;
        Ok(())
    }

    async fn cancel_all(&self, names: usize, concurrency: usize) -> Result {
        let names = tokio_stream::iter(OPERATIONS.iter().cycle().take(names));
        let mut reports = self
            .0
            .cancel_operations(names)
            .max_in_flight(concurrency)
            .fixed();
        while let Some(report) = reports.next().await {
            report.result?;
        }
        Ok(())
    }
}
