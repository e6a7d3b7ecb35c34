//! The one row format. In memory a row *is* its Postgres COPY-binary tuple: an int16 field count,
//! then per column of the table an int32 length (-1 for null) and that many bytes.
//!
//! The bytes that `encode` makes go to Postgres as they are, and after the commit on to the Parquet
//! file and the row hash; a row that is read back from the table is the same bytes again.

mod copy_out;
mod day;
mod read;

use std::fmt;

use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use crate::event::{Interaction, InteractionTypes};

pub use copy_out::{CopyOutParser, canonical_from_postgres};
pub use day::{day_of_ms, day_start_ms, day_text, parse_day, timestamp_text};
pub use read::{RawRow, RowRef, Rows};

/// The columns of `user_interactions`, in table order.
pub const COLUMNS: [&str; 17] = [
    "kafka_partition",
    "kafka_offset",
    "recorded_at",
    "occurred_at",
    "ingested_at",
    "user_id",
    "video_id",
    "interaction_type",
    "interaction_weight",
    "watch_time_seconds",
    "recommendation_score",
    "position",
    "algorithm",
    "experiment_variant_id",
    "feed_session_id",
    "event_id",
    "metadata",
];

/// What a COPY-binary stream begins with: signature, no flags, no header extension.
pub const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What a COPY-binary stream ends with: a field count of -1.
pub const COPY_TRAILER: [u8; 2] = [0xff, 0xff];

/// Where Postgres begins to count time (2000-01-01 UTC), in milliseconds since 1970.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;
/// The version byte in front of a jsonb value on the wire.
const JSONB_VERSION: u8 = 1;
const NULL: [u8; 4] = (-1i32).to_be_bytes();

/// Field count and the first seven columns: none is null, so every value has a fixed place.
const FIXED_LEN: usize = 98;
const FIXED_COLUMNS: usize = 7;
const FIXED_TEMPLATE: [u8; FIXED_LEN] = fixed_template();
const PARTITION_AT: usize = 6;
const OFFSET_AT: usize = 14;
const RECORDED_AT_AT: usize = 26;
const OCCURRED_AT_AT: usize = 38;
const INGESTED_AT_AT: usize = 50;
const USER_ID_AT: usize = 62;
const VIDEO_ID_AT: usize = 82;

/// The fixed columns with their lengths filled in and their values zero.
const fn fixed_template() -> [u8; FIXED_LEN] {
    const LENGTHS: [u8; FIXED_COLUMNS] = [4, 8, 8, 8, 8, 16, 16];
    let mut template = [0; FIXED_LEN];
    template[1] = COLUMNS.len() as u8;
    let mut at = 2;
    let mut column = 0;
    while column < LENGTHS.len() {
        template[at + 3] = LENGTHS[column]; // big-endian: the low byte is the last one
        at += 4 + LENGTHS[column] as usize;
        column += 1;
    }
    assert!(at == FIXED_LEN);
    template
}

/// What a row has beside its event: where Kafka keeps it, and when it was recorded and ingested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coordinates {
    pub partition: i32,
    pub offset: i64,
    pub recorded_at_ms: i64,
    pub ingested_at_ms: i64,
}

/// Why bytes are not a row. Never the fault of an event: either the table holds what this worker
/// did not write, or there is a bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error("the bytes end inside a row")]
    Truncated,
    #[error("{0} bytes follow the row")]
    TrailingBytes(usize),
    #[error("a row has {0} fields, not 17")]
    FieldCount(i16),
    #[error("column {column} has length {length}")]
    Length { column: &'static str, length: i32 },
    #[error("column {column} is null")]
    Null { column: &'static str },
    #[error("column {column} is not UTF-8")]
    NotUtf8 { column: &'static str },
    #[error("column {column} is not a whole millisecond")]
    NotWholeMillisecond { column: &'static str },
    #[error("jsonb version {0} is not known")]
    JsonbVersion(u8),
    #[error("metadata is not in the form the worker writes: {0}")]
    Metadata(String),
    #[error("the stream does not begin as COPY binary does")]
    CopyHeader,
    #[error("bytes follow the end of the COPY stream")]
    AfterCopyTrailer,
}

/// Appends one row to `out`.
///
/// Timestamps outside what Postgres can hold saturate: keeping them out is the caller's rule.
pub fn encode(out: &mut Vec<u8>, at: &Coordinates, interaction: &Interaction<'_>, types: &InteractionTypes) {
    let mut fixed = FIXED_TEMPLATE;
    put(&mut fixed, PARTITION_AT, at.partition.to_be_bytes());
    put(&mut fixed, OFFSET_AT, at.offset.to_be_bytes());
    put(&mut fixed, RECORDED_AT_AT, postgres_timestamp(at.recorded_at_ms));
    put(&mut fixed, OCCURRED_AT_AT, postgres_timestamp(interaction.occurred_at_ms));
    put(&mut fixed, INGESTED_AT_AT, postgres_timestamp(at.ingested_at_ms));
    put(&mut fixed, USER_ID_AT, *interaction.user_id.as_bytes());
    put(&mut fixed, VIDEO_ID_AT, *interaction.video_id.as_bytes());
    out.extend_from_slice(&fixed);

    let id = interaction.interaction_type;
    push_field(out, types.name(id).as_bytes());
    push_field(out, &types.weight(id).to_be_bytes());
    push_optional(out, interaction.watch_time_seconds.map(f64::to_be_bytes));
    push_optional(out, interaction.recommendation_score.map(f64::to_be_bytes));
    push_optional(out, interaction.position.map(i32::to_be_bytes));
    push_optional(out, interaction.algorithm);
    push_optional(out, interaction.experiment_variant_id);
    push_optional(out, interaction.feed_session_id);
    push_optional(out, interaction.event_id.map(Uuid::into_bytes));
    match interaction.metadata {
        Some(json) => push_jsonb(out, json),
        None => out.extend_from_slice(&NULL),
    }
}

fn put<const N: usize>(fixed: &mut [u8; FIXED_LEN], at: usize, value: [u8; N]) {
    fixed[at..at + N].copy_from_slice(&value);
}

fn push_field(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(&(value.len() as i32).to_be_bytes());
    out.extend_from_slice(value);
}

fn push_optional(out: &mut Vec<u8>, value: Option<impl AsRef<[u8]>>) {
    match value {
        Some(value) => push_field(out, value.as_ref()),
        None => out.extend_from_slice(&NULL),
    }
}

fn push_jsonb(out: &mut Vec<u8>, json: &str) {
    out.extend_from_slice(&(json.len() as i32 + 1).to_be_bytes());
    out.push(JSONB_VERSION);
    out.extend_from_slice(json.as_bytes());
}

fn postgres_timestamp(ms: i64) -> [u8; 8] {
    ms.saturating_sub(POSTGRES_EPOCH_MS).saturating_mul(1000).to_be_bytes()
}

/// The hash of rows in offset order: XXH3-128 over their tuples, whatever pieces they come in.
#[derive(Clone, Default)]
pub struct RowHasher(Xxh3);

impl RowHasher {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn update(&mut self, tuples: &[u8]) {
        self.0.update(tuples);
    }

    /// 32 lower-case hex digits.
    pub fn hex(&self) -> String {
        format!("{:032x}", self.0.digest128())
    }
}

impl fmt::Debug for RowHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowHasher({})", self.hex())
    }
}

/// The hash of these rows alone.
pub fn row_hash(tuples: &[u8]) -> String {
    let mut hasher = RowHasher::new();
    hasher.update(tuples);
    hasher.hex()
}

#[cfg(test)]
mod tests;
