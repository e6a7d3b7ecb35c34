//! Every metric: its name, its tags and the function that counts it. Nowhere else is there any.
//!
//! A function is called once a batch, file or change, never once an event. A gauge holds until it is set
//! again, but the agent forgets one that is silent: set each every ten seconds while it is true. Tag values
//! come from small fixed sets; an id or an offset is never one. A name never changes its kind.

use std::fmt::Display;
use std::time::Duration;

use anyhow::Context;
use metrics::{Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_statsd::{StatsdBuilder, StatsdRecorder};

pub use super::statsd::FlushGuard;
use super::statsd::LineSink;
use crate::config::Statsd;

/// How values of a metric are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Added up.
    Counter,
    /// The last one counts.
    Gauge,
    /// Percentiles are taken over all workers.
    Distribution,
}

/// A metric as the documentation shows it.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Without the prefix of the configuration.
    pub name: &'static str,
    pub kind: Kind,
    pub tags: &'static [&'static str],
    pub about: &'static str,
}

/// One declaration per metric makes its function and its row of [`METRICS`].
///
/// `counter` takes how many, `event` counts one, `gauge` takes the present number, `distribution` takes a
/// value whose unit is the last part of the name.
macro_rules! declare {
    ($( $(#[doc = $about:literal])+ $kind:ident $function:ident = $name:literal ($($tag:ident: $type:ty),*); )+) => {
        $( declare!(@function [$(#[doc = $about])+] $kind $function $name ($($tag: $type),*)); )+

        /// Every metric there is.
        pub const METRICS: &[Metric] = &[ $( Metric {
            name: $name,
            kind: declare!(@kind $kind),
            tags: &[$(stringify!($tag)),*],
            about: concat!($($about),+),
        } ),+ ];
    };
    (@function [$($about:tt)+] counter $function:ident $name:literal ($($tag:ident: $type:ty),*)) => {
        $($about)+
        pub fn $function($($tag: $type,)* n: u64) {
            if n > 0 {
                counter!($name, tags(&[$((stringify!($tag), &$tag)),*])).increment(n);
            }
        }
    };
    (@function [$($about:tt)+] event $function:ident $name:literal ($($tag:ident: $type:ty),*)) => {
        $($about)+
        pub fn $function($($tag: $type),*) {
            counter!($name, tags(&[$((stringify!($tag), &$tag)),*])).increment(1);
        }
    };
    (@function [$($about:tt)+] gauge $function:ident $name:literal ($($tag:ident: $type:ty),*)) => {
        $($about)+
        pub fn $function($($tag: $type,)* now: u64) {
            gauge!($name, tags(&[$((stringify!($tag), &$tag)),*])).set(now as f64);
        }
    };
    (@function [$($about:tt)+] distribution $function:ident $name:literal ($($tag:ident: $type:ty),*)) => {
        $($about)+
        pub fn $function($($tag: $type,)* value: f64) {
            histogram!($name, tags(&[$((stringify!($tag), &$tag)),*])).record(value);
        }
    };
    (@kind counter) => { Kind::Counter };
    (@kind event) => { Kind::Counter };
    (@kind gauge) => { Kind::Gauge };
    (@kind distribution) => { Kind::Distribution };
}

declare! {
    /// Records taken from Kafka, before any check.
    counter records_received = "source.records.received" ();
    /// Changes of the assignment: `assign`, `revoke`, or `lost` (another worker may have the partitions already).
    event rebalanced = "source.rebalances" (kind: &str);
    /// Offsets that a partition left out without saying why; compaction or a transaction's marker explain some.
    counter offsets_jumped = "source.offset_jumps" ();
    /// Accepted records whose key is not the userId. They are kept.
    counter key_mismatched = "source.key_mismatch" ();
    /// Errors of the Kafka client that it gets over by itself.
    event source_error = "source.errors.seen" ();

    /// Records refused by validation, on their way to the DLQ.
    counter rejected = "decode.records.rejected" (reason: &str);

    /// Look-ups of a schema id: `found`, `missing`, or `failed` (the registry is away).
    event registry_looked_up = "registry.lookups" (outcome: &str);

    /// Transactions that moved a persist frontier.
    event batches_committed = "persist.batches.committed" ();
    /// Rows that they wrote.
    counter rows_committed = "persist.rows.committed" ();
    /// Time of a transaction, from its first byte to the answer to COMMIT.
    distribution transaction_took = "persist.transaction.ms" ();
    /// Partitions whose write was refused because somebody else owns them, or the frontier had moved.
    counter persist_conflicts = "persist.conflicts" ();

    /// Parquet files that are in the bucket and in the ledger, by what closed them.
    event files_uploaded = "export.files.uploaded" (roll: &str);
    /// Their rows.
    counter rows_uploaded = "export.rows.uploaded" ();
    /// Their bytes.
    counter bytes_uploaded = "export.bytes.uploaded" ();
    /// Time of an upload, with its retries.
    distribution upload_took = "export.upload.ms" ();
    /// Rows read back from the table to catch up.
    counter rows_reread = "export.rows.reread" ();
    /// Partitions whose export reads from the table because it is behind.
    gauge behind_partitions = "export.behind.partitions" ();
    /// Bytes of the memory budget in use.
    gauge memory_bytes = "export.memory.bytes" ();
    /// Open files given up because memory was full and the store away. Their rows are read back later.
    event export_shed = "export.files.shed" ();
    /// Objects that do not hold the table's rows of their range. That partition's export stops: page.
    event export_conflict = "export.conflicts" ();

    /// Rejected records whose copy the broker has acknowledged.
    counter dead_letters_sent = "dead_letter.records.sent" ();
    /// Attempts that failed. The partition waits and tries again.
    event dead_letter_send_failed = "dead_letter.send.failed" ();

    /// Partitions that were stopped for an operator to decide.
    event partition_stopped = "ledger.partitions.stopped" (reason: &str);
    /// Partitions of this worker that are stopped.
    gauge partitions_stopped = "ledger.stopped.partitions" ();
    /// Assignments where Kafka's committed offset was not the ledger's frontier. The ledger's is taken.
    event commit_differed = "ledger.commit_difference" ();

    /// Days finished with manifest and _SUCCESS.
    event day_closed = "day.closed" ();

    /// Records between a partition's persist frontier and its end.
    gauge lag_persist_records = "lag.persist.records" (partition: i32);
    /// Records between a partition's export frontier and its end.
    gauge lag_export_records = "lag.export.records" (partition: i32);
    /// From Kafka's timestamp of a batch's oldest record to its COMMIT.
    distribution end_to_end = "end_to_end.ms" ();

    /// Attempts at something outside that will be made again.
    event retried = "retries" (dependency: &str);

    /// Metric lines that did not reach the socket.
    counter statsd_dropped = "statsd.lines.dropped" ();
}

/// A batch was committed; `oldest_ms` is how long ago its oldest record had reached Kafka.
pub fn batch_committed(rows: u64, oldest_ms: f64) {
    batches_committed();
    rows_committed(rows);
    end_to_end(oldest_ms);
}

/// A file is in the bucket and in the ledger.
pub fn file_uploaded(roll: &str, rows: u64, bytes: u64, took: Duration) {
    files_uploaded(roll);
    rows_uploaded(rows);
    bytes_uploaded(bytes);
    upload_took(took.as_secs_f64() * 1e3);
}

/// What the export side holds at present.
pub fn export_state(behind: u64, memory: u64) {
    behind_partitions(behind);
    memory_bytes(memory);
}

/// The exporter writes tags as they come, and a comma or a line break would end one.
fn tags(tags: &[(&'static str, &dyn Display)]) -> Vec<Label> {
    let unsafe_in_tag = |c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'));
    tags.iter()
        .map(|(name, value)| Label::new(*name, value.to_string().replace(unsafe_in_tag, "_")))
        .collect()
}

/// Sends metrics from now on, until the guard is dropped. May be called once in a process.
pub fn install(config: &Statsd) -> anyhow::Result<FlushGuard> {
    if !config.enabled {
        return Ok(FlushGuard::default());
    }
    let sink = LineSink::default();
    let recorder = recorder(config, sink.clone(), &unified_tags())?;
    metrics::set_global_recorder(recorder).context("install the metrics recorder")?;
    describe();
    FlushGuard::start(&config.addr, sink).context("start the statsd thread")
}

fn recorder(config: &Statsd, sink: LineSink, tags: &[(&str, String)]) -> anyhow::Result<StatsdRecorder> {
    // Timers would be cut to whole milliseconds, plain histograms aggregated host by host.
    let mut builder = StatsdBuilder::from("", 0).with_sink(sink).histogram_is_distribution();
    for (name, value) in tags {
        builder = builder.with_default_tag(name, value);
    }
    builder.build(Some(&config.prefix)).context("build the statsd recorder")
}

/// Datadog's own names for who sends, where they are set.
fn unified_tags() -> Vec<(&'static str, String)> {
    const TAGS: &[(&str, &str)] = &[
        ("DD_ENTITY_ID", "dd.internal.entity_id"),
        ("DD_ENV", "env"),
        ("DD_SERVICE", "service"),
        ("DD_VERSION", "version"),
    ];
    let set = |variable: &str| std::env::var(variable).ok().filter(|value| !value.is_empty());
    TAGS.iter().filter_map(|(variable, tag)| Some((*tag, set(variable)?))).collect()
}

fn describe() {
    for Metric { name, kind, about, .. } in METRICS {
        let unit = match name.rsplit_once('.') {
            Some((_, "ms")) => Unit::Milliseconds,
            Some((_, "bytes")) => Unit::Bytes,
            _ => Unit::Count,
        };
        match kind {
            Kind::Counter => describe_counter!(*name, unit, *about),
            Kind::Gauge => describe_gauge!(*name, unit, *about),
            Kind::Distribution => describe_histogram!(*name, unit, *about),
        }
    }
}
