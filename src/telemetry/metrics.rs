//! Every metric: its name, its tags and the function that counts it. Nowhere else is there any.
//!
//! A function is called once a batch, file or change, never once an event. A gauge holds until it is set
//! again, but whoever reads it forgets one that is silent: set each every ten seconds while it is true. Tag
//! values come from small fixed sets; an id or an offset is never one. A name never changes its kind.

use std::fmt::Display;
use std::time::Duration;

use metrics::{Label, counter, gauge, histogram};

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
/// `counter` takes how many, `event` counts one, `gauge` takes the present number, `level` one that need not be
/// whole, `distribution` takes a value whose unit is the last part of the name.
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
    (@function [$($about:tt)+] level $function:ident $name:literal ($($tag:ident: $type:ty),*)) => {
        $($about)+
        pub fn $function($($tag: $type,)* now: f64) {
            gauge!($name, tags(&[$((stringify!($tag), &$tag)),*])).set(now);
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
    (@kind level) => { Kind::Gauge };
    (@kind distribution) => { Kind::Distribution };
}

declare! {
    /// Records taken from Kafka, before any check.
    counter records_received = "source.records.received" ();
    /// Always 1. A worker that is there sends it; none at all means that none is.
    gauge build_info = "build.info" (version: &str);
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

    /// Time of a part of the work, each once a chunk or batch: `decode`, `wait` (from a batch's first record to its
    /// being handed to Postgres), `append` (to the open file), `reread` (of rows from the table).
    distribution stage_took = "stage.ms" (stage: &str);

    /// Look-ups of a schema id: `found`, `missing`, or `failed` (the registry is away).
    event registry_looked_up = "registry.lookups" (outcome: &str);

    /// Transactions that moved a persist frontier.
    event batches_committed = "persist.batches.committed" ();
    /// Rows that they wrote.
    counter rows_committed = "persist.rows.committed" ();
    /// Rows of a partition in one of them.
    distribution batch_rows = "persist.batch.rows" ();
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
    /// Partitions whose export has stopped, because bucket and table disagree: page.
    gauge halted_partitions = "export.halted.partitions" ();
    /// Bytes of the memory budget in use.
    gauge memory_bytes = "export.memory.bytes" ();
    /// Bytes that batches and files may take: `export.memory_bytes_max` without the client's prefetch.
    gauge memory_budget_bytes = "export.memory_budget.bytes" ();
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
    /// How long the oldest day that is over and has no _SUCCESS has been over, by Postgres's clock; 0: there is none.
    level day_late_seconds = "day.late.seconds" ();

    /// Partitions that this worker has.
    gauge owned_partitions = "group.owned.partitions" ();
    /// Partitions of the topic that no worker of the group has. Every worker says it; not while the group rebalances.
    gauge unowned_partitions = "group.unowned.partitions" ();

    /// Records between a partition's persist frontier and its end.
    gauge lag_persist_records = "lag.persist.records" (partition: i32);
    /// Age of the record at a partition's persist frontier, by the broker's timestamp; 0: none waits.
    level lag_persist_seconds = "lag.persist.seconds" (partition: i32);
    /// Records between a partition's export frontier and its end.
    gauge lag_export_records = "lag.export.records" (partition: i32);
    /// Age of the oldest row that is in no file; what is not even in the table counts too.
    level lag_export_seconds = "lag.export.seconds" (partition: i32);
    /// How the lag is to be read, by Burrow's rules: 1 well, 2 it never falls, 4 stopped (also by the ledger, for an
    /// operator), 5 commits of the same offset, 6 the frontier went back. 4 and more: nothing moves, and records wait.
    gauge lag_status = "lag.status" (partition: i32);
    /// Time until retention may delete the record at the persist frontier (`retention.ms` of the topic).
    level retention_left_seconds = "lag.retention_left.seconds" (partition: i32);
    /// Share of the topic's retention that the record at the persist frontier has waited; at 100 it may be gone.
    level retention_used_percent = "lag.retention_used.percent" (partition: i32);

    /// Events that reached the table or the dead-letter topic.
    counter events_done = "freshness.events" ();
    /// Those of batches whose oldest was older than 60 s at its COMMIT: what the freshness objective counts.
    counter events_late = "freshness.late" ();
    /// From Kafka's timestamp of a batch's oldest record to its COMMIT.
    distribution end_to_end = "end_to_end.ms" ();

    /// Attempts at something outside that will be made again.
    event retried = "retries" (dependency: &str);

    /// How long no new token for the brokers could be had (`kafka.auth`: `msk_iam`, `token_file`); 0: the last attempt
    /// brought one.
    level tokens_failing_seconds = "tokens.failing.seconds" ();
    /// How long the token that the brokers' clients have is still good; 0: it is no longer, or there is none.
    level tokens_left_seconds = "tokens.left.seconds" ();

    /// From the moment a canary record should have been sent to its acknowledgement (`produce --canary`). One that
    /// failed counts as the time-out.
    distribution canary_acknowledged = "canary.produce.ms" ();
    /// Canary records that were never acknowledged.
    event canary_failed = "canary.failed" ();

    /// Metric lines that did not reach the socket.
    counter statsd_dropped = "statsd.lines.dropped" ();
}

/// An event that is committed later after it reached Kafka counts as late: the freshness objective, said in
/// `docs/runbooks`. Another value is another objective, and needs other alerts.
pub const FRESH_MS_MAX: f64 = 60_000.0;

/// Batches were committed in one transaction; `oldest_ms` is how long ago the oldest record had reached Kafka.
pub fn batch_committed(rows: u64, oldest_ms: f64) {
    batches_committed();
    rows_committed(rows);
    end_to_end(oldest_ms);
}

/// One partition's part of it. The age of its oldest event stands for all of them.
pub fn partition_committed(rows: u64, rejects: u64, oldest_ms: f64) {
    batch_rows(rows as f64);
    let events = rows + rejects;
    events_done(events);
    events_late(if oldest_ms > FRESH_MS_MAX { events } else { 0 });
}

/// A file is in the bucket and in the ledger.
pub fn file_uploaded(roll: &str, rows: u64, bytes: u64, took: Duration) {
    files_uploaded(roll);
    rows_uploaded(rows);
    bytes_uploaded(bytes);
    upload_took(took.as_secs_f64() * 1e3);
}

/// What the export side holds at present.
pub fn export_state(behind: u64, halted: u64, memory: u64, memory_budget: u64) {
    behind_partitions(behind);
    halted_partitions(halted);
    memory_bytes(memory);
    memory_budget_bytes(memory_budget);
}

/// A part of the work took so long.
pub fn stage(stage: &str, took: Duration) {
    stage_took(stage, took.as_secs_f64() * 1e3);
}

/// The statsd exporter writes tags as they come, and a comma or a line break would end one.
fn tags(tags: &[(&'static str, &dyn Display)]) -> Vec<Label> {
    let unsafe_in_tag = |c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'));
    tags.iter()
        .map(|(name, value)| Label::new(*name, value.to_string().replace(unsafe_in_tag, "_")))
        .collect()
}
