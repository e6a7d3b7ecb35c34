//! Where metrics go: lines to the statsd agent, and a page for Prometheus, from the same calls.
//!
//! 1. Every counter whose tags are known is on the page from the start, at 0: `increase()` does not see the
//!    step from nothing to one.
//! 2. A gauge that is not set for a while leaves the page, so that nobody takes the lag of a partition that moved
//!    to another worker for a true one.
//! 3. Memory does not grow when nobody reads the page.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use metrics::{Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_exporter_statsd::{StatsdBuilder, StatsdRecorder};
use metrics_util::MetricKindMask;
use metrics_util::layers::{FanoutBuilder, Layer, PrefixLayer};

use super::metrics::{Kind, METRICS, Metric};
pub use super::statsd::FlushGuard;
use super::statsd::LineSink;
use super::variable;
use crate::config::{Config, Statsd};

/// Buckets of every time, in ms. They hold the objectives exactly: 50 (acknowledging a produced record) and 60,000
/// (from Kafka to COMMIT). More of them cost a series each, for each stage and worker.
const MS_BUCKETS: &[f64] = &[
    1.0,
    2.5,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    120_000.0,
    300_000.0,
    900_000.0,
    3_600_000.0,
];
const ROWS_BUCKETS: &[f64] = &[1.0, 10.0, 100.0, 1_000.0, 5_000.0, 10_000.0, 20_000.0, 40_000.0];

/// How long a silent gauge stays on the page, in lag reports. Fewer: a slow answer of the brokers makes gaps.
/// More: a partition that moved is told by two workers for longer.
const GAUGE_INTERVALS: u32 = 3;
/// Least of it: a page that is read every 15 s should not miss one.
const GAUGE_SILENCE_MIN: Duration = Duration::from_secs(30);

/// How often samples are put into their buckets when nobody reads the page. Longer: more samples in memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// Tagged counters that alerts look at, so that they begin at 0.
const KNOWN_TAGS: &[(&str, &str, &[&str])] = &[
    ("source.rebalances", "kind", &["assign", "revoke", "lost"]),
    ("registry.lookups", "outcome", &["found", "missing", "failed"]),
    ("retries", "dependency", &["kafka", "postgres", "registry", "s3"]),
];

/// The text of the page. Cheap to clone.
pub type Page = Arc<dyn Fn() -> String + Send + Sync>;

/// What keeps metrics going until the end of the process.
#[derive(Default)]
pub struct Metrics {
    _flush: FlushGuard,
    /// None: switched off.
    pub page: Option<Page>,
}

/// Counts from now on. Needs a runtime, and may be called once in a process.
pub fn install(config: &Config) -> anyhow::Result<Metrics> {
    let who = [("topic", config.kafka.topic.as_str()), ("consumer_group", config.kafka.group_id.as_str())];
    let mut fanout = FanoutBuilder::default();
    let sink = LineSink::default();
    if config.statsd.enabled {
        fanout = fanout.add_recorder(statsd(&config.statsd, sink.clone(), &who)?);
    }
    let mut page = None;
    if config.metrics.prometheus {
        let (recorder, handle) = prometheus(config, &who)?;
        let recorder = PrefixLayer::new(config.statsd.prefix.clone()).layer(recorder);
        describe(&recorder);
        begin_at_zero(&recorder);
        fanout = fanout.add_recorder(recorder);
        let upkeep = handle.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                upkeep.run_upkeep();
            }
        });
        page = Some(Arc::new(move || handle.render()) as Page);
    }
    metrics::set_global_recorder(fanout.build())
        .map_err(|_| anyhow::anyhow!("the metrics recorder is installed already"))?;
    let flush = if config.statsd.enabled {
        FlushGuard::start(&config.statsd.addr, sink).context("start the statsd thread")?
    } else {
        FlushGuard::default()
    };
    Ok(Metrics { _flush: flush, page })
}

fn statsd(config: &Statsd, sink: LineSink, who: &[(&str, &str)]) -> anyhow::Result<StatsdRecorder> {
    // Timers would be cut to whole milliseconds, plain histograms aggregated host by host.
    let mut builder = StatsdBuilder::from("", 0).with_sink(sink).histogram_is_distribution();
    for (name, value) in who {
        builder = builder.with_default_tag(*name, *value);
    }
    for (name, value) in unified_tags() {
        builder = builder.with_default_tag(name, value);
    }
    builder.build(Some(&config.prefix)).context("build the statsd recorder")
}

fn prometheus(
    config: &Config,
    who: &[(&str, &str)],
) -> anyhow::Result<(PrometheusRecorder, PrometheusHandle)> {
    let silence = Duration::from_millis(config.metrics.lag_interval_ms) * GAUGE_INTERVALS;
    let mut builder = PrometheusBuilder::new()
        .with_recommended_naming(true)
        .idle_timeout(MetricKindMask::GAUGE, Some(silence.max(GAUGE_SILENCE_MIN)))
        .set_buckets_for_metric(Matcher::Suffix("_ms".to_owned()), MS_BUCKETS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_rows".to_owned()), ROWS_BUCKETS))
        .context("build the Prometheus recorder")?;
    for (name, value) in who {
        builder = builder.add_global_label(*name, *value);
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    Ok((recorder, handle))
}

/// Datadog's own names for who sends, where they are set.
fn unified_tags() -> Vec<(&'static str, String)> {
    const TAGS: &[(&str, &str)] = &[
        ("DD_ENTITY_ID", "dd.internal.entity_id"),
        ("DD_ENV", "env"),
        ("DD_SERVICE", "service"),
        ("DD_VERSION", "version"),
    ];
    TAGS.iter().filter_map(|(name, tag)| Some((*tag, variable(name)?))).collect()
}

/// Without units: the recorder would put their names behind the one that stands there already.
fn describe(recorder: &impl Recorder) {
    for Metric { name, kind, about, .. } in METRICS {
        let about = about.trim();
        match kind {
            Kind::Counter => recorder.describe_counter((*name).into(), None, about.into()),
            Kind::Gauge => recorder.describe_gauge((*name).into(), None, about.into()),
            Kind::Distribution => recorder.describe_histogram((*name).into(), None, about.into()),
        }
    }
}

fn begin_at_zero(recorder: &impl Recorder) {
    let metadata = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
    for metric in METRICS.iter().filter(|metric| metric.kind == Kind::Counter && metric.tags.is_empty()) {
        recorder.register_counter(&Key::from_static_name(metric.name), &metadata).increment(0);
    }
    for (name, tag, values) in KNOWN_TAGS {
        for value in *values {
            let key = Key::from_parts(*name, vec![Label::new(*tag, *value)]);
            recorder.register_counter(&key, &metadata).increment(0);
        }
    }
}
