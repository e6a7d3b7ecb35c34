//! Reading a file back: Parquet object → the rows' COPY-binary tuples.
//!
//! 1. Only what this program writes is read: the columns with their names, order and types, and nothing
//!    that a row of the table could not hold.
//! 2. The tuples are the bytes that were hashed when the file was written, whatever the encoding.
//! 3. A file is read a batch of rows at a time; its rows never lie in memory as a whole.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int32Type, Int64Type, TimeUnit, TimestampMillisecondType,
};
use arrow::error::ArrowError;
use bytes::Bytes;
use parquet::arrow::arrow_reader::{
    ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use uuid::Uuid;

use crate::row::{COLUMNS, RowError, RowRef};

/// Rows that are decoded at once.
const BATCH_ROWS: usize = 8192;
/// Where Postgres begins to count time (2000-01-01 UTC), in milliseconds since 1970.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;
/// The version byte in front of a jsonb value on the wire.
const JSONB_VERSION: &[u8] = &[1];

/// Why an object is not one of ours.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("it is no Parquet file that can be read: {0}")]
    Parquet(#[from] ParquetError),
    #[error("it is no Parquet file that can be read: {0}")]
    Arrow(#[from] ArrowError),
    #[error("column {index} is {found}, not {wanted}")]
    Column { index: usize, found: String, wanted: String },
    #[error("it has {0} columns, not 17")]
    Columns(usize),
    #[error("row {row}: {column} holds `{value}`, which is no lower-case uuid")]
    Uuid { row: u64, column: &'static str, value: String },
    #[error("row {row}: {column} is outside of what Postgres can hold")]
    Timestamp { row: u64, column: &'static str },
    #[error("row {row}: {error}")]
    Row { row: u64, error: RowError },
}

/// Gives a file's rows in its order.
pub struct RowReader {
    batches: ParquetRecordBatchReader,
    said: Vec<(String, Option<String>)>,
    rows: u64,
}

impl RowReader {
    /// Errors: not a Parquet file, or not with our columns.
    pub fn open(body: Bytes) -> Result<Self, ReadError> {
        // An Arrow schema that the file might carry must not change how its columns are seen.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(body, options)?;
        let fields = builder.schema().fields().clone();
        if fields.len() != COLUMNS.len() {
            return Err(ReadError::Columns(fields.len()));
        }
        for (index, (field, (name, kind, nullable))) in fields.iter().zip(columns()).enumerate() {
            let wanted = (name, &kind, nullable);
            if (field.name().as_str(), field.data_type(), field.is_nullable()) != wanted {
                let text = |name: &str, kind: &DataType, nullable: bool| {
                    format!("{name} {kind}{}", if nullable { "" } else { " not null" })
                };
                return Err(ReadError::Column {
                    index,
                    found: text(field.name(), field.data_type(), field.is_nullable()),
                    wanted: text(name, &kind, nullable),
                });
            }
        }
        let said = builder.metadata().file_metadata().key_value_metadata();
        let said = said.into_iter().flatten().map(|kv| (kv.key.clone(), kv.value.clone())).collect();
        let batches = builder.with_batch_size(BATCH_ROWS).build()?;
        Ok(RowReader { batches, said, rows: 0 })
    }

    /// What the file says of itself under `feed_worker.<name>`.
    pub fn said(&self, name: &str) -> Option<&str> {
        let entry = self.said.iter().find(|(key, _)| key.strip_prefix("feed_worker.") == Some(name));
        entry.and_then(|(_, value)| value.as_deref())
    }

    /// Rows read so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Replaces `tuples` by the next rows; false = there are no more.
    pub fn next_rows(&mut self, tuples: &mut Vec<u8>) -> Result<bool, ReadError> {
        tuples.clear();
        let Some(batch) = self.batches.next() else { return Ok(false) };
        let batch = batch?;
        for index in 0..batch.num_rows() {
            let start = tuples.len();
            encode(&batch, index, self.rows, tuples)?;
            RowRef::parse(&tuples[start..])
                .map_err(|error| ReadError::Row { row: self.rows, error })?;
            self.rows += 1;
        }
        Ok(true)
    }
}

impl std::fmt::Debug for RowReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowReader").field("rows", &self.rows).finish_non_exhaustive()
    }
}

/// Name, type and nullability of every column, as files have them.
fn columns() -> [(&'static str, DataType, bool); COLUMNS.len()] {
    let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    std::array::from_fn(|index| {
        let kind = match COLUMNS[index] {
            "kafka_partition" | "position" => DataType::Int32,
            "kafka_offset" => DataType::Int64,
            "recorded_at" | "occurred_at" | "ingested_at" => time.clone(),
            "interaction_weight" => DataType::Float32,
            "watch_time_seconds" | "recommendation_score" => DataType::Float64,
            _ => DataType::Utf8,
        };
        // The first nine columns of the table are NOT NULL.
        (COLUMNS[index], kind, index >= 9)
    })
}

/// Appends one row as its tuple.
fn encode(
    batch: &RecordBatch,
    index: usize,
    row: u64,
    out: &mut Vec<u8>,
) -> Result<(), ReadError> {
    out.extend_from_slice(&(COLUMNS.len() as i16).to_be_bytes());
    for (column, name) in batch.columns().iter().zip(COLUMNS) {
        if column.is_null(index) {
            out.extend_from_slice(&(-1i32).to_be_bytes());
            continue;
        }
        match column.data_type() {
            DataType::Int32 => {
                push(out, &[&column.as_primitive::<Int32Type>().value(index).to_be_bytes()]);
            }
            DataType::Int64 => {
                push(out, &[&column.as_primitive::<Int64Type>().value(index).to_be_bytes()]);
            }
            DataType::Float32 => {
                push(out, &[&column.as_primitive::<Float32Type>().value(index).to_be_bytes()]);
            }
            DataType::Float64 => {
                push(out, &[&column.as_primitive::<Float64Type>().value(index).to_be_bytes()]);
            }
            DataType::Timestamp(..) => {
                let ms = column.as_primitive::<TimestampMillisecondType>().value(index);
                let micros = ms.checked_sub(POSTGRES_EPOCH_MS).and_then(|ms| ms.checked_mul(1000));
                let micros = micros.ok_or(ReadError::Timestamp { row, column: name })?;
                push(out, &[&micros.to_be_bytes()]);
            }
            // Nothing else passed `open`.
            _ => encode_text(out, column.as_string::<i32>().value(index), name, row)?,
        }
    }
    Ok(())
}

/// A text column: an id, canonical JSON, or just text.
fn encode_text(
    out: &mut Vec<u8>,
    value: &str,
    column: &'static str,
    row: u64,
) -> Result<(), ReadError> {
    match column {
        "user_id" | "video_id" | "event_id" => {
            let id = Uuid::try_parse(value).ok().filter(|id| {
                id.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == value
            });
            let id = id.ok_or_else(|| ReadError::Uuid { row, column, value: value.to_owned() })?;
            push(out, &[id.as_bytes()]);
        }
        "metadata" => push(out, &[JSONB_VERSION, value.as_bytes()]),
        _ => push(out, &[value.as_bytes()]),
    }
    Ok(())
}

/// Appends one field: its length, then its parts.
fn push(out: &mut Vec<u8>, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    // A Parquet page is smaller than 2 GiB.
    out.extend_from_slice(&(length as i32).to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}
