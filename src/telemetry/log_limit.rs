//! A bound on how much is logged of one kind.
//!
//! 1. A kind is a place in the program. Each may log [`BURST`] lines at once and [`LINES_PER_S`] from then on,
//!    whatever goes wrong and how often.
//! 2. What was left out is counted and said, each [`TELL_INTERVAL`]: a line that is missing is never a secret.
//! 3. One kind never takes another's lines.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines of a kind that may come at once. Larger: an outage fills a log store. Smaller: of a fault of many partitions
/// only some are named.
const BURST: f64 = 100.0;
/// Lines of a kind a second after that. Larger: the same, more slowly. Smaller: what goes on for hours looks over.
const LINES_PER_S: f64 = 1.0;
/// How often it is said how many lines were left out. Longer: a crash takes the number with it.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// Lines of one kind that were left out.
#[derive(Debug, PartialEq, Eq)]
struct LeftOut {
    lines: u64,
    place: String,
    /// Of the first of them.
    message: String,
}

struct Bucket {
    tokens: f64,
    filled_at: Instant,
    left_out: Option<LeftOut>,
}

impl Bucket {
    /// Whether one more line may be written at `now`.
    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + since * LINES_PER_S).min(BURST);
        self.filled_at = now;
        let may = self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }
}

/// The layer that leaves lines out. Clones are one.
#[derive(Clone, Default)]
pub(super) struct LogLimit(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// As many as there are places that log.
    kinds: Mutex<HashMap<Identifier, Bucket>>,
    teller: OnceLock<()>,
}

impl LogLimit {
    fn kinds(&self) -> MutexGuard<'_, HashMap<Identifier, Bucket>> {
        self.0.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admits(&self, event: &Event<'_>, now: Instant) -> bool {
        let metadata = event.metadata();
        let mut kinds = self.kinds();
        let full = || Bucket { tokens: BURST, filled_at: now, left_out: None };
        let bucket = kinds.entry(metadata.callsite()).or_insert_with(full);
        if bucket.take(now) {
            return true;
        }
        let left_out = bucket.left_out.get_or_insert_with(|| {
            let mut message = Message(String::new());
            event.record(&mut message);
            LeftOut { lines: 0, place: place(metadata), message: message.0 }
        });
        left_out.lines += 1;
        false
    }

    fn take_left_out(&self) -> Vec<LeftOut> {
        self.kinds().values_mut().filter_map(|bucket| bucket.left_out.take()).collect()
    }

    /// Says what was left out, from a thread of its own: a line cannot be written from within another.
    fn tell(&self) {
        let limit = self.clone();
        // Without the thread lines are still bounded, and nobody hears of it.
        let _ = std::thread::Builder::new().name("log-limit".to_owned()).spawn(move || {
            loop {
                std::thread::sleep(TELL_INTERVAL);
                for LeftOut { lines, place, message } in limit.take_left_out() {
                    tracing::warn!(target: TELLS, suppressed = lines, place, like = message, "log lines suppressed");
                }
            }
        });
    }
}

/// Its own lines are bounded by the number of kinds.
const TELLS: &str = "feed_worker::log_limit";

impl<S: Subscriber> Layer<S> for LogLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if event.metadata().target() == TELLS {
            return true;
        }
        let admitted = self.admits(event, Instant::now());
        if !admitted {
            self.0.teller.get_or_init(|| self.tell());
        }
        admitted
    }
}

fn place(metadata: &Metadata<'_>) -> String {
    match (metadata.file(), metadata.line()) {
        (Some(file), Some(line)) => format!("{file}:{line}"),
        _ => metadata.target().to_owned(),
    }
}

/// The text of an event, without its fields.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_kind_that_repeats_itself_is_cut_and_counted_and_no_other() {
        let (lines, limit) = (Lines::default(), LogLimit::default());
        let writer = lines.clone();
        let fmt = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_ansi(false);
        let subscriber = tracing_subscriber::registry().with(fmt).with(limit.clone());
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..1000 {
                tracing::warn!(n, "again");
            }
            tracing::warn!("once");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let written = text.lines().filter(|line| line.contains("again")).count();
        // A slow machine fills the bucket meanwhile.
        assert!((100..200).contains(&written), "{written}");
        assert_eq!(text.lines().filter(|line| line.contains("once")).count(), 1);
        let left_out = limit.take_left_out();
        let [LeftOut { lines, place, message }] = left_out.as_slice() else { panic!("{left_out:?}") };
        assert_eq!((*lines, message.as_str()), (1000 - written as u64, "again"));
        assert!(place.starts_with("src/telemetry/log_limit.rs:"), "{place}");
        assert_eq!(limit.take_left_out(), [], "it is told once");
    }

    #[test]
    fn the_bucket_fills_with_time_and_no_further_than_its_size() {
        let began = Instant::now();
        let mut bucket = Bucket { tokens: BURST, filled_at: began, left_out: None };
        let taken = |bucket: &mut Bucket, after_s| {
            let now = began + Duration::from_secs(after_s);
            (0..1000).filter(|_| bucket.take(now)).count()
        };
        assert_eq!(taken(&mut bucket, 0), 100);
        assert_eq!(taken(&mut bucket, 7), 7);
        assert_eq!(taken(&mut bucket, 100_000), 100);
    }
}
