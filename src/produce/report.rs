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
    /// Told of every record: how long it took, and whether it was delivered.
    observer: Option<fn(Duration, bool)>,
    details: Mutex<Details>,
}

#[derive(Debug)]
struct Details {
    latency_us: Histogram<u64>,
    timeline: Timeline,
    by_encoding: BTreeMap<&'static str, u64>,
    by_reason: BTreeMap<&'static str, u64>,
    value_bytes: u64,
    first_intended: Option<Instant>,
    last_delivered: Option<Instant>,
    first_error: Option<String>,
    list: Option<BufWriter<File>>,
}

/// The longest latency of each tenth of a second of the schedule: where a stall began, and how long it was.
#[derive(Debug, Default)]
struct Timeline {
    first_intended: Option<Instant>,
    longest_us: Vec<u64>,
}

/// What one entry of the timeline stands for. Longer hides where a stall began; shorter makes long reports of long runs.
const TIMELINE_STEP_MS: u64 = 100;

/// What a failure counts as, too. Larger: a coarser histogram for nothing. Smaller: a long outage looks short.
const LATENCY_US_MAX: u64 = 600_000_000;

impl Deliveries {
    /// `list`: gets a line of JSON for each delivered record.
    pub fn new(list: Option<File>) -> anyhow::Result<Self> {
        Ok(Self {
            delivered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            observer: None,
            details: Mutex::new(Details {
                latency_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?,
                timeline: Timeline::default(),
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

    /// Tells each record's fate as it comes.
    pub fn told_to(mut self, observer: fn(Duration, bool)) -> Self {
        self.observer = Some(observer);
        self
    }

    fn tell(&self, sent: &Sent, is_delivered: bool) {
        if let Some(observer) = self.observer.filter(|_| !sent.is_warm_up) {
            observer(sent.intended.elapsed(), is_delivered);
        }
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
        self.tell(sent, true);
        let mut details = self.lock();
        let latency = now.saturating_duration_since(sent.intended).as_micros();
        details.measure(sent, u64::try_from(latency).unwrap_or(u64::MAX));
        details.last_delivered = Some(now);
        details.value_bytes += value_bytes as u64;
        *details.by_encoding.entry(sent.encoding.as_str()).or_default() += 1;
        if let Some(planted) = sent.planted {
            *details.by_reason.entry(planted.as_str()).or_default() += 1;
        }
        details.enter(sent, partition, offset);
    }

    /// A failure counts as the largest latency there is: who gives up early must not look fast.
    pub fn record_failed(&self, sent: &Sent, error: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.tell(sent, false);
        let mut details = self.lock();
        details.measure(sent, LATENCY_US_MAX);
        details.first_error.get_or_insert(error);
    }

    /// Everything so far; the list of records is complete on the disk after this.
    pub fn report(&self, seed: Option<u64>) -> anyhow::Result<Report> {
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
            timeline_ms: details.timeline.longest_us.iter().map(|us| *us as f64 / 1e3).collect(),
            by_encoding: details.by_encoding.clone(),
            planted_by_reason: details.by_reason.clone(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Details> {
        // Counters are valid after every single step, so a panic elsewhere does not spoil them.
        self.details.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Timeline {
    /// Reports of one partition come in order, those of several do not: what is older than the first one heard of
    /// counts to its step.
    fn record(&mut self, intended: Instant, latency_us: u64) {
        let first = *self.first_intended.get_or_insert(intended);
        let step = intended.saturating_duration_since(first).as_millis() as usize / TIMELINE_STEP_MS as usize;
        if step >= self.longest_us.len() {
            self.longest_us.resize(step + 1, 0);
        }
        self.longest_us[step] = self.longest_us[step].max(latency_us);
    }
}

impl Details {
    fn measure(&mut self, sent: &Sent, latency_us: u64) {
        if !sent.is_warm_up {
            self.latency_us.saturating_record(latency_us.max(1));
            self.timeline.record(sent.intended, latency_us);
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
    /// Of generated events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
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
    /// Delivery report − intended send time; a failure is the largest value there is.
    pub latency_ms: Latency,
    /// The longest latency of each 100 ms of the schedule, by intended send time; 0 where nothing was due.
    pub timeline_ms: Vec<f64>,
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
            "delivered {} records ({:.1} MB of values) in {:.1} s: {:.0}/s, {} failed ({} build{})",
            self.delivered,
            self.value_bytes as f64 / 1e6,
            self.seconds,
            self.events_per_second,
            self.failed,
            self.profile,
            self.seed.map(|seed| format!(", seed {seed}")).unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(intended: Instant) -> Sent {
        Sent { intended, is_warm_up: false, encoding: Encoding::Json, planted: None }
    }

    #[test]
    fn a_failure_counts_as_the_maximum() {
        let deliveries = Deliveries::new(None).unwrap();
        let now = Instant::now();
        for offset in 0..98 {
            deliveries.record_delivered(&sent(now), 0, offset, 10);
        }
        for _ in 0..2 {
            deliveries.record_failed(&sent(now), "no".to_owned());
        }
        let report = deliveries.report(None).unwrap();
        assert_eq!((report.delivered, report.failed, report.measured), (98, 2, 100));
        let (latency, max_ms) = (report.latency_ms, LATENCY_US_MAX as f64 / 1e3);
        assert!(latency.p95 < 10_000.0, "{latency:?}");
        assert!(latency.p99 >= max_ms && latency.max >= max_ms, "{latency:?}");
        assert_eq!(report.first_error.as_deref(), Some("no"));
    }

    #[test]
    fn a_stall_shows_where_it_began() {
        let deliveries = Deliveries::new(None).unwrap();
        let now = Instant::now();
        let began = now.checked_sub(Duration::from_secs(2)).unwrap();
        for (offset, intended) in [(0, began), (1, began + Duration::from_millis(350)), (2, now)] {
            deliveries.record_delivered(&sent(intended), 0, offset, 1);
        }
        deliveries.record_delivered(&sent(began.checked_sub(Duration::from_secs(1)).unwrap()), 1, 0, 1);
        let timeline = deliveries.report(None).unwrap().timeline_ms;
        assert_eq!(timeline.len(), 21);
        assert!(timeline[0] >= 3000.0, "{timeline:?}");
        assert!((1650.0..3000.0).contains(&timeline[3]), "{timeline:?}");
        assert!(timeline[1] == 0.0 && timeline[20] < 1000.0, "{timeline:?}");
    }

    #[test]
    fn latency_counts_from_the_intended_send() {
        let deliveries = Deliveries::new(None).unwrap();
        let late = Instant::now().checked_sub(Duration::from_secs(3)).unwrap();
        deliveries.record_delivered(&sent(late), 0, 0, 1);
        let warm_up = Sent { is_warm_up: true, ..sent(late) };
        deliveries.record_delivered(&warm_up, 0, 1, 1);
        let report = deliveries.report(Some(1)).unwrap();
        assert_eq!((report.delivered, report.measured), (2, 1));
        assert!((3000.0..4000.0).contains(&report.latency_ms.p50), "{:?}", report.latency_ms);
    }
}
