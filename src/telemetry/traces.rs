//! Traces: one span a batch, with its stages, by OTLP (protobuf over HTTP). Off unless `traces.endpoint` is set.
//!
//! 1. A span says which offsets it covers, as links: topic, partition, first and next offset. It holds no user and no value.
//! 2. A collector that is absent, slow or full costs spans, never time or memory: what does not fit the queue is dropped.
//! 3. Switched off, a batch costs one look at a flag.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use opentelemetry::trace::{
    Link, Span, SpanBuilder, SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer, TracerProvider,
};
use opentelemetry::{Context as Parent, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;
use tokio::time::Instant;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::variable;
use crate::config::Config;
use crate::postgres::lane::PartitionBatch;

/// How long a collector may take. Longer: spans wait in the queue meanwhile, and the end of the process for them.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Partitions that one transaction can have; a span with fewer links would not say what it covers.
const LINKS_MAX: u32 = 10_000;

static TRACING: OnceLock<Tracing> = OnceLock::new();

struct Tracing {
    tracer: SdkTracer,
    topic: String,
    group: String,
}

/// Sends what is left when it is told to.
#[derive(Default)]
pub struct Traces(Option<SdkTracerProvider>);

/// When things happened to a batch; what is not known did not happen, or somewhere else.
#[derive(Debug, Default, Clone, Copy)]
pub struct Times {
    /// Its first record was taken.
    pub opened_at: Option<Instant>,
    /// What decoding its records took, all in all.
    pub decoding: Duration,
    /// It was handed to a lane.
    pub handed_at: Option<Instant>,
    /// The transaction that was committed began.
    pub began_at: Option<Instant>,
    pub committed_at: Option<Instant>,
}

/// What one partition gave to a transaction.
#[derive(Debug)]
pub struct Range {
    pub partition: i32,
    pub first: i64,
    pub next: i64,
    pub rows: u64,
    pub rejects: u64,
    pub times: Times,
}

impl Range {
    pub fn of(batch: &PartitionBatch) -> Self {
        Range {
            partition: batch.partition,
            first: batch.first,
            next: batch.next,
            rows: batch.rows,
            rejects: batch.rejects,
            times: batch.times,
        }
    }
}

/// Spans are made from now on, if the configuration says where they go. Needs a runtime; once in a process.
pub fn install(config: &Config) -> anyhow::Result<Traces> {
    let Some(endpoint) = &config.traces.endpoint else { return Ok(Traces::default()) };
    let http = reqwest::Client::builder().timeout(TIMEOUT).build().context("build the client for traces")?;
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(Collector { http, runtime: Handle::current() })
        .with_endpoint(endpoint)
        .with_timeout(TIMEOUT)
        .build()
        .context("build the exporter of traces")?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::TraceIdRatioBased(config.traces.ratio))
        .with_max_links_per_span(LINKS_MAX)
        .with_resource(resource())
        .build();
    let tracing = Tracing {
        tracer: provider.tracer("feed-worker"),
        topic: config.kafka.topic.clone(),
        group: config.kafka.group_id.clone(),
    };
    TRACING.set(tracing).map_err(|_| anyhow::anyhow!("traces are installed already"))?;
    Ok(Traces(Some(provider)))
}

/// Who sends: Datadog's unified tags under OpenTelemetry's names. `OTEL_RESOURCE_ATTRIBUTES` adds to them.
fn resource() -> Resource {
    let mut about = vec![KeyValue::new(
        "service.version",
        variable("DD_VERSION").unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
    )];
    about.extend(variable("DD_ENV").map(|env| KeyValue::new("deployment.environment.name", env)));
    let service = variable("DD_SERVICE").or_else(|| variable("OTEL_SERVICE_NAME"));
    Resource::builder()
        .with_service_name(service.unwrap_or_else(|| "feed-worker".to_owned()))
        .with_attributes(about)
        .build()
}

impl Traces {
    /// Sends what is left; a collector that is away is not waited for longer than for one answer.
    pub async fn finish(self) {
        let Some(provider) = self.0 else { return };
        // It blocks, and its requests need the runtime.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(TIMEOUT));
        if let Ok(Err(error)) = ended.await {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Whether times are worth taking.
pub fn is_on() -> bool {
    TRACING.get().is_some()
}

/// A transaction was committed, and its rows are in their open files (`appending` took so long, until now).
pub fn batch(ranges: &[Range], appending: Duration) {
    let Some(tracing) = TRACING.get() else { return };
    if !ranges.is_empty() {
        tracing.batch(ranges, appending);
    }
}

impl Tracing {
    fn batch(&self, ranges: &[Range], appending: Duration) {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let at = |instant: Instant| clock - now.duration_since(instant);
        let times = || ranges.iter().map(|range| range.times);
        let opened = times().filter_map(|times| times.opened_at).min();
        let handed = times().filter_map(|times| times.handed_at).min();
        let transaction = times().filter_map(|times| times.began_at.zip(times.committed_at)).min();
        let decoding: Duration = times().map(|times| times.decoding).sum();
        let start = opened.or(handed).unwrap_or(now);
        let total = |count: fn(&Range) -> u64| ranges.iter().map(count).sum::<u64>().cast_signed();
        let about = [
            KeyValue::new("messaging.system", "kafka"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.destination.name", self.topic.clone()),
            KeyValue::new("messaging.consumer.group.name", self.group.clone()),
            KeyValue::new("rows", total(|range| range.rows)),
            KeyValue::new("rejects", total(|range| range.rejects)),
        ];
        let span = SpanBuilder::from_name("batch")
            .with_kind(SpanKind::Consumer)
            .with_start_time(at(start))
            .with_attributes(about)
            .with_links(ranges.iter().map(|range| self.link(range)).collect());
        let parent = Parent::new().with_span(self.tracer.build_with_context(span, &Parent::new()));
        let stage = |name: &'static str, from: Instant, to: SystemTime| {
            let span = SpanBuilder::from_name(Cow::from(name)).with_start_time(at(from));
            self.tracer.build_with_context(span, &parent).end_with_timestamp(to);
        };
        if let Some(opened) = opened {
            // Decoding goes on in pieces, of several partitions in turn: its length is true, its place is not.
            stage("decode", opened, at(opened) + decoding);
            stage("wait", opened, at(handed.unwrap_or(now)));
        }
        if let Some((began, committed)) = transaction {
            stage("transaction", began, at(committed));
        }
        stage("append", now.checked_sub(appending).unwrap_or(now), clock);
        parent.span().end_with_timestamp(clock);
    }

    /// The ids are made of what they stand for, so that whoever has the same records has the same link.
    fn link(&self, range: &Range) -> Link {
        let partition = format!("{}/{}", self.topic, range.partition);
        let first = format!("{partition}/{}", range.first);
        let context = SpanContext::new(
            TraceId::from_bytes(xxh3_128(partition.as_bytes()).to_be_bytes()),
            SpanId::from_bytes(xxh3_64(first.as_bytes()).to_be_bytes()),
            TraceFlags::default(),
            true,
            TraceState::default(),
        );
        let about = vec![
            KeyValue::new("topic", self.topic.clone()),
            KeyValue::new("partition", i64::from(range.partition)),
            KeyValue::new("first_offset", range.first),
            KeyValue::new("next_offset", range.next),
        ];
        Link::new(context, about, 0)
    }
}

/// The way to the collector: the exporter's thread has no runtime, and borrows the worker's.
struct Collector {
    http: reqwest::Client,
    runtime: Handle,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Collector {
    fn send_bytes<'a, 'b>(&'a self, request: Request<Bytes>) -> Answer<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        let http = self.http.clone();
        let sending = self.runtime.spawn(async move {
            let (head, body) = request.into_parts();
            let url = head.uri.to_string();
            let answer = http.request(head.method, url).headers(head.headers).body(body).send().await?;
            let status = answer.status();
            let mut response = Response::new(answer.bytes().await?);
            *response.status_mut() = status;
            Ok::<_, reqwest::Error>(response)
        });
        Box::pin(async move {
            let sent = sending.await?;
            match &sent {
                Ok(response) if response.status().is_success() => {}
                Ok(response) => {
                    tracing::warn!(status = response.status().as_u16(), "the collector takes no traces");
                }
                // Where it is, is in the configuration; the error has the address with all that may stand in it.
                Err(error) => {
                    tracing::warn!(timeout = error.is_timeout(), "the collector of traces does not answer");
                }
            }
            Ok(sent.map_err(reqwest::Error::without_url)?)
        })
    }
}
