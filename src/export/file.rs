//! One open Parquet file: rows in, bytes out.
//!
//! The bytes are a function of the file's identity and its rows alone. Rows are therefore handed to
//! the Parquet writer in batches whose borders do not depend on how the rows arrived, and nothing
//! in the file comes from a clock.

mod columns;
mod settings;

use std::collections::BTreeMap;

use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;

use crate::event::SCHEMA_VERSION;
use crate::export::manifest::file_key;
use crate::row::{RawRow, RowError, RowHasher, day_of_ms, day_text};

use columns::Columns;
pub use columns::arrow_schema;

/// Rows that are handed to the Parquet writer at once: many enough to be cheap, few enough that
/// doing so (2–3 ms) does not hold up the pipeline.
const BATCH_ROWS_MAX: usize = 4096;
/// The same in bytes, for rows with much metadata.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// The Parquet writer's own estimate of its memory was measured 10–33 % below the heap it takes.
const WRITER_MEMORY_PERCENT: usize = 130;
/// What the writer does not count: each column of a row group that is being written has a decompressor of its own, which
/// is never used (parquet 60; 53 KB each by a heap profile).
const CODEC_BYTES: usize = 53_000;

/// What is known of a file before its first row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileIdentity {
    pub topic: String,
    pub partition: i32,
    /// Always the export frontier at which the file begins; its first row may lie above it.
    pub first_offset: i64,
    pub day: i32,
    pub epoch: i64,
}

/// Every one of them is a bug or a changed table, never a matter of trying again. The file is then
/// in an undefined state and has to be dropped.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("a row to be exported cannot be read: {0}")]
    Row(#[from] RowError),
    #[error("the Parquet writer refused: {0}")]
    Parquet(#[from] ParquetError),
    #[error("a file of partition {file} got a row of partition {row}")]
    OtherPartition { file: i32, row: i32 },
    #[error("a file of {} got a row of {} at offset {offset}", day_text(*file), day_text(*row))]
    OtherDay { file: i32, row: i32, offset: i64 },
    #[error("a file that is at offset {next} got a row at offset {offset}")]
    OutOfOrder { next: i64, offset: i64 },
    #[error("a file without rows cannot be sealed")]
    Empty,
}

/// What one call of `append` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub rows: u64,
    /// The offset behind the last row.
    pub next_offset: i64,
    /// What was taken of the bytes: all, unless rows of another day follow.
    pub bytes: usize,
}

/// A file that takes rows.
pub struct OpenFile {
    identity: FileIdentity,
    writer: ArrowWriter<Vec<u8>>,
    columns: Columns,
    hasher: RowHasher,
    rows: u64,
    next_offset: i64,
    recorded_at_min_ms: i64,
    recorded_at_max_ms: i64,
    first_ingested_at_ms: Option<i64>,
}

impl OpenFile {
    pub fn new(identity: FileIdentity, row_group_rows: usize) -> Result<Self, FileError> {
        let columns = Columns::new();
        let writer = ArrowWriter::try_new_with_options(
            Vec::new(),
            columns.schema(),
            settings::writer_options(row_group_rows),
        )?;
        Ok(OpenFile {
            next_offset: identity.first_offset,
            identity,
            writer,
            columns,
            hasher: RowHasher::new(),
            rows: 0,
            recorded_at_min_ms: i64::MAX,
            recorded_at_max_ms: i64::MIN,
            first_ingested_at_ms: None,
        })
    }

    /// Appends rows of this file's partition and day, in offset order.
    pub fn append(&mut self, rows: &[u8]) -> Result<Appended, FileError> {
        let appended = self.append_day(rows)?;
        if appended.bytes < rows.len() {
            let row = RawRow::first(&rows[appended.bytes..])?;
            return Err(self.other_day(&row));
        }
        Ok(appended)
    }

    /// The same, up to the first row of another day.
    pub fn append_day(&mut self, rows: &[u8]) -> Result<Appended, FileError> {
        let rows_before = self.rows;
        let mut rest = rows;
        while !rest.is_empty() {
            let row = RawRow::first(rest)?;
            if row.partition != self.identity.partition {
                return Err(FileError::OtherPartition { file: self.identity.partition, row: row.partition });
            }
            if day_of_ms(row.recorded_at_ms) != self.identity.day {
                if self.rows > rows_before {
                    break;
                }
                return Err(self.other_day(&row));
            }
            if row.offset < self.next_offset {
                return Err(FileError::OutOfOrder { next: self.next_offset, offset: row.offset });
            }
            self.columns.push(&row);
            self.rows += 1;
            self.next_offset = row.offset + 1;
            self.recorded_at_min_ms = self.recorded_at_min_ms.min(row.recorded_at_ms);
            self.recorded_at_max_ms = self.recorded_at_max_ms.max(row.recorded_at_ms);
            self.first_ingested_at_ms.get_or_insert(row.ingested_at_ms);
            if self.columns.rows() >= BATCH_ROWS_MAX || self.columns.bytes() >= BATCH_BYTES_MAX {
                self.writer.write(&self.columns.take_batch()?)?;
            }
            rest = &rest[row.bytes.len()..];
        }
        let bytes = rows.len() - rest.len();
        self.hasher.update(&rows[..bytes]);
        Ok(Appended { rows: self.rows - rows_before, next_offset: self.next_offset, bytes })
    }

    fn other_day(&self, row: &RawRow<'_>) -> FileError {
        FileError::OtherDay {
            file: self.identity.day,
            row: day_of_ms(row.recorded_at_ms),
            offset: row.offset,
        }
    }

    pub fn identity(&self) -> &FileIdentity {
        &self.identity
    }

    pub fn day(&self) -> i32 {
        self.identity.day
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The offset behind the last row; without a row, where the file begins.
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// When the oldest row was recorded; none: there is no row.
    pub fn recorded_at_min_ms(&self) -> Option<i64> {
        (self.rows > 0).then_some(self.recorded_at_min_ms)
    }

    /// When the first row was ingested: what the file's age is counted from.
    pub fn first_ingested_at_ms(&self) -> Option<i64> {
        self.first_ingested_at_ms
    }

    /// About how large the file would be if it were sealed now. Rows that are still being gathered
    /// count as they are, uncompressed.
    pub fn bytes_written(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size() + self.columns.bytes()
    }

    /// About how much memory the file takes, to be held against the budget.
    pub fn memory_bytes(&self) -> usize {
        let codecs =
            if self.writer.in_progress_rows() > 0 { self.columns.schema().fields().len() } else { 0 };
        self.writer.memory_size() * WRITER_MEMORY_PERCENT / 100
            + codecs * CODEC_BYTES
            // Not the capacity: the kernel gives no memory for what was never written.
            + self.writer.inner().len()
            + self.columns.memory_bytes()
    }

    /// Finishes the file. Compresses what is left (some 10 ms in a release build).
    pub fn seal(mut self) -> Result<SealedFile, FileError> {
        if self.rows == 0 {
            return Err(FileError::Empty);
        }
        if self.columns.rows() > 0 {
            self.writer.write(&self.columns.take_batch()?)?;
        }
        let mut sealed = SealedFile {
            identity: self.identity,
            body: Bytes::new(),
            rows: self.rows,
            next_offset: self.next_offset,
            row_hash: self.hasher.hex(),
            recorded_at_min_ms: self.recorded_at_min_ms,
            recorded_at_max_ms: self.recorded_at_max_ms,
        };
        for (key, value) in sealed.parquet_metadata() {
            self.writer.append_key_value_metadata(KeyValue::new(key, value));
        }
        sealed.body = self.writer.into_inner()?.into();
        Ok(sealed)
    }
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenFile")
            .field("identity", &self.identity)
            .field("rows", &self.rows)
            .field("next_offset", &self.next_offset)
            .finish_non_exhaustive()
    }
}

/// A finished file, ready for its one PUT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedFile {
    pub identity: FileIdentity,
    pub body: Bytes,
    pub rows: u64,
    pub next_offset: i64,
    pub row_hash: String,
    pub recorded_at_min_ms: i64,
    pub recorded_at_max_ms: i64,
}

/// What an object says of the file in it, in its user metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub next_offset: i64,
    pub rows: u64,
    pub row_hash: String,
    /// The epoch that wrote it.
    pub epoch: i64,
}

impl Claim {
    /// Reads [`SealedFile::object_metadata`]; none of what this program did not write.
    pub fn read(metadata: &BTreeMap<String, String>) -> Option<Self> {
        let number = |name: &str| metadata.get(name)?.parse::<i64>().ok();
        Some(Claim {
            next_offset: number("next-offset")?,
            rows: u64::try_from(number("rows")?).ok()?,
            row_hash: metadata.get("row-hash")?.clone(),
            epoch: number("epoch")?,
        })
    }
}

impl SealedFile {
    pub const CONTENT_TYPE: &str = "application/vnd.apache.parquet";

    /// The key of its object.
    pub fn key(&self, prefix: &str) -> String {
        let file = &self.identity;
        file_key(prefix, file.day, &file.topic, file.partition, file.first_offset)
    }

    /// The user metadata of its object (`x-amz-meta-…`); [`Claim`] reads it.
    pub fn object_metadata(&self) -> Vec<(String, String)> {
        let entry = |(name, value): (&str, String)| (name.replace('_', "-"), value);
        self.description().into_iter().map(entry).collect()
    }

    /// The same and the time bounds, for the file's own key-value metadata.
    fn parquet_metadata(&self) -> Vec<(String, String)> {
        let bounds = [
            ("recorded_at_min_ms", self.recorded_at_min_ms.to_string()),
            ("recorded_at_max_ms", self.recorded_at_max_ms.to_string()),
        ];
        let entry = |(name, value): (&str, String)| (format!("feed_worker.{name}"), value);
        self.description().into_iter().chain(bounds).map(entry).collect()
    }

    fn description(&self) -> [(&'static str, String); 9] {
        let file = &self.identity;
        [
            ("topic", file.topic.clone()),
            ("partition", file.partition.to_string()),
            ("first_offset", file.first_offset.to_string()),
            ("next_offset", self.next_offset.to_string()),
            ("last_offset", (self.next_offset - 1).to_string()),
            ("rows", self.rows.to_string()),
            ("row_hash", self.row_hash.clone()),
            ("epoch", file.epoch.to_string()),
            ("schema_version", SCHEMA_VERSION.to_owned()),
        ]
    }
}
