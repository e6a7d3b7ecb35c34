//! What was delivered, how fast, and where it lies.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::bad::BadKind;
use super::generator::Encoding;

/// What is remembered of a record until its delivery report.
#[derive(Debug)]
pub struct Sent {
    /// When it should have been sent, by the schedule.
    pub intended: Instant,
    /// Sent while connections and producer id are still being fetched: delivered, but not measured.
    pub is_warm_up: bool,
    pub encoding: Encoding,
    pub planted: Option<BadKind>,
}

/// Filled by the delivery reports, all of them on the producer's one polling thread.
#[derive(Debug)]
pub struct Deliveries {
    delivered: AtomicU64,
    failed: AtomicU64,
    details: Mutex<Details>,
}

#[derive(Debug)]
struct Details {
    latency_us: Histogram<u64>,
    by_encoding: BTreeMap<&'static str, u64>,
    by_reason: BTreeMap<&'static str, u64>,
    value_bytes: u64,
    first_intended: Option<Instant>,
    last_delivered: Option<Instant>,
    first_error: Option<String>,
    list: Option<BufWriter<File>>,
}

const LATENCY_US_MAX: u64 = 600_000_000;

impl Deliveries {
    /// `list`: gets a line of JSON for each delivered record.
    pub fn new(list: Option<File>) -> anyhow::Result<Self> {
        Ok(Self {
            delivered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            details: Mutex::new(Details {
                latency_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?,
                by_encoding: BTreeMap::new(),
                by_reason: BTreeMap::new(),
                value_bytes: 0,
                first_intended: None,
                last_delivered: None,
                first_error: None,
                list: list.map(|file| BufWriter::with_capacity(1 << 18, file)),
            }),
        })
    }

    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub fn record_delivered(&self, sent: &Sent, partition: i32, offset: i64, value_bytes: usize) {
        let now = Instant::now();
        self.delivered.fetch_add(1, Ordering::Relaxed);
        let mut details = self.lock();
        details.measure(sent, now);
        details.last_delivered = Some(now);
        details.value_bytes += value_bytes as u64;
        *details.by_encoding.entry(sent.encoding.as_str()).or_default() += 1;
        if let Some(planted) = sent.planted {
            *details.by_reason.entry(planted.as_str()).or_default() += 1;
        }
        details.enter(sent, partition, offset);
    }

    /// A failure is as slow as it was until it was one.
    pub fn record_failed(&self, sent: &Sent, error: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut details = self.lock();
        details.measure(sent, Instant::now());
        details.first_error.get_or_insert(error);
    }

    /// Everything so far; the list of records is complete on the disk after this.
    pub fn report(&self, seed: u64) -> anyhow::Result<Report> {
        let mut details = self.lock();
        if let Some(list) = &mut details.list {
            list.flush()?;
        }
        let elapsed = match (details.first_intended, details.last_delivered) {
            (Some(first), Some(last)) => last.saturating_duration_since(first),
            _ => Duration::ZERO,
        };
        let seconds = elapsed.as_secs_f64();
        let latency = &details.latency_us;
        let quantile_ms = |q: f64| latency.value_at_quantile(q) as f64 / 1e3;
        Ok(Report {
            seed,
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            delivered: self.delivered(),
            failed: self.failed(),
            first_error: details.first_error.clone(),
            value_bytes: details.value_bytes,
            seconds,
            events_per_second: if seconds > 0.0 { self.delivered() as f64 / seconds } else { 0.0 },
            measured: latency.len(),
            latency_ms: Latency {
                p50: quantile_ms(0.5),
                p95: quantile_ms(0.95),
                p99: quantile_ms(0.99),
                p99_9: quantile_ms(0.999),
                max: latency.max() as f64 / 1e3,
            },
            by_encoding: details.by_encoding.clone(),
            planted_by_reason: details.by_reason.clone(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Details> {
        // Counters are valid after every single step, so a panic elsewhere does not spoil them.
        self.details.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Details {
    fn measure(&mut self, sent: &Sent, now: Instant) {
        if !sent.is_warm_up {
            let latency = now.saturating_duration_since(sent.intended).as_micros();
            self.latency_us.saturating_record(u64::try_from(latency).unwrap_or(u64::MAX).max(1));
        }
        let earlier = self.first_intended.is_none_or(|first| sent.intended < first);
        if earlier {
            self.first_intended = Some(sent.intended);
        }
    }

    fn enter(&mut self, sent: &Sent, partition: i32, offset: i64) {
        let Some(list) = &mut self.list else { return };
        let kind = if sent.planted.is_some() { "bad" } else { "valid" };
        let encoding = sent.encoding.as_str();
        let written = match sent.planted {
            Some(planted) => writeln!(
                list,
                r#"{{"partition":{partition},"offset":{offset},"kind":"{kind}","encoding":null,"reason":"{}"}}"#,
                planted.as_str()
            ),
            None => writeln!(
                list,
                r#"{{"partition":{partition},"offset":{offset},"kind":"{kind}","encoding":"{encoding}","reason":null}}"#
            ),
        };
        if let Err(error) = written {
            self.first_error.get_or_insert(format!("writing the list of records: {error}"));
            self.list = None;
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub seed: u64,
    pub profile: &'static str,
    pub delivered: u64,
    pub failed: u64,
    pub first_error: Option<String>,
    pub value_bytes: u64,
    /// From the first intended send to the last delivery.
    pub seconds: f64,
    pub events_per_second: f64,
    /// How many records the latencies are of: all but those of the warm-up.
    pub measured: u64,
    /// Delivery report − intended send time.
    pub latency_ms: Latency,
    pub by_encoding: BTreeMap<&'static str, u64>,
    pub planted_by_reason: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let latency = &self.latency_ms;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "delivered {} records ({:.1} MB of values) in {:.1} s: {:.0}/s, {} failed ({} build, seed {})",
            self.delivered,
            self.value_bytes as f64 / 1e6,
            self.seconds,
            self.events_per_second,
            self.failed,
            self.profile,
            self.seed,
        );
        let _ = writeln!(
            text,
            "latency from the intended send: p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, max {:.1} ms",
            latency.p50, latency.p95, latency.p99, latency.p99_9, latency.max,
        );
        for (title, counts) in [("encodings", &self.by_encoding), ("planted", &self.planted_by_reason)] {
            if !counts.is_empty() {
                let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
                let _ = writeln!(text, "{title}: {}", counts.join(", "));
            }
        }
        text
    }
}
