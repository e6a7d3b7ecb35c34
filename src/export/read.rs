//! Reading a file back: Parquet object → the rows' COPY-binary tuples.
//!
//! 1. Only what this program writes is read: the columns with their names, order and types, and nothing
//!    that a row of the table could not hold.
//! 2. The tuples are the bytes that were hashed when the file was written, whatever the encoding.
//! 3. Whatever the bytes are, the outcome is rows or an error: where the Parquet reader panics on a file that
//!    is damaged, as it does in places, that is an error here.
//! 4. A file is read a batch of rows at a time; its rows never lie in memory as a whole.

use std::panic::{AssertUnwindSafe, catch_unwind};

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
    #[error("it is no Parquet file that can be read: its reader gave up")]
    Panicked,
    #[error("column {index} is {found}, not {wanted}")]
    Column { index: usize, found: String, wanted: String },
    #[error("it has {0} columns, not 17")]
    Columns(usize),
    /// Without its value: a user's id stands in no message.
    #[error("row {row}: {column} is no lower-case uuid")]
    Uuid { row: u64, column: &'static str },
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
        let builder = guarded(|| ParquetRecordBatchReaderBuilder::try_new_with_options(body, options))??;
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
        let batches = guarded(|| builder.with_batch_size(BATCH_ROWS).build())??;
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
        let Some(batch) = guarded(|| self.batches.next())? else { return Ok(false) };
        let batch = batch?;
        for index in 0..batch.num_rows() {
            let start = tuples.len();
            encode(&batch, index, self.rows, tuples)?;
            RowRef::parse(&tuples[start..]).map_err(|error| ReadError::Row { row: self.rows, error })?;
            self.rows += 1;
        }
        Ok(true)
    }
}

/// Runs code that may panic on a damaged file. After an error its reader is of no more use.
fn guarded<T>(read: impl FnOnce() -> T) -> Result<T, ReadError> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|_| ReadError::Panicked)
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
fn encode(batch: &RecordBatch, index: usize, row: u64, out: &mut Vec<u8>) -> Result<(), ReadError> {
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
fn encode_text(out: &mut Vec<u8>, value: &str, column: &'static str, row: u64) -> Result<(), ReadError> {
    match column {
        "user_id" | "video_id" | "event_id" => {
            let id = Uuid::try_parse(value)
                .ok()
                .filter(|id| id.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == value);
            let id = id.ok_or_else(|| ReadError::Uuid { row, column })?;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};
    use arrow::datatypes::{Field, Schema};
    use parquet::arrow::ArrowWriter;

    use super::*;
    use crate::event::{Interaction, InteractionTypes};
    use crate::export::file::{FileIdentity, OpenFile, SealedFile};
    use crate::row::{self, Coordinates};

    const DAY: i32 = 20_500;

    /// Every column with and without a value.
    fn tuples(rows: i64) -> Vec<u8> {
        let types = InteractionTypes::parse(InteractionTypes::default_text()).unwrap();
        let mut out = Vec::new();
        for n in 0..rows {
            let some = n % 2 == 0;
            let interaction = Interaction {
                user_id: Uuid::from_u128(0xabc_def0 + n as u128),
                video_id: Uuid::from_u128(n as u128),
                interaction_type: types.lookup(["view", "skip"][n as usize % 2]).unwrap(),
                occurred_at_ms: 946_684_800_000 + n,
                watch_time_seconds: some.then_some(n as f64 / 3.0),
                recommendation_score: (!some).then_some(-0.0),
                position: some.then_some(i32::MAX),
                algorithm: some.then_some("two-tower"),
                experiment_variant_id: (!some).then_some("ü"),
                feed_session_id: some.then_some("s"),
                event_id: (!some).then(|| Uuid::from_u128(u128::MAX)),
                metadata: some.then_some(r#"{"a":"1","b":"€"}"#),
            };
            let recorded_at_ms = row::day_start_ms(DAY) + n;
            let at = Coordinates {
                partition: 3,
                offset: 10 + 2 * n,
                recorded_at_ms,
                ingested_at_ms: recorded_at_ms + 40,
            };
            row::encode(&mut out, &at, &interaction, &types);
        }
        out
    }

    fn sealed(tuples: &[u8]) -> SealedFile {
        let topic = "t".to_owned();
        let identity = FileIdentity { topic, partition: 3, first_offset: 7, day: DAY, epoch: 99 };
        let mut file = OpenFile::new(identity, 5000).unwrap();
        file.append(tuples).unwrap();
        file.seal().unwrap()
    }

    #[test]
    fn a_file_gives_back_the_very_bytes_that_were_hashed() {
        let wanted = tuples(20_001);
        let file = sealed(&wanted);
        let mut reader = RowReader::open(file.body.clone()).unwrap();
        let (mut all, mut batch) = (Vec::new(), Vec::new());
        while reader.next_rows(&mut batch).unwrap() {
            all.extend_from_slice(&batch);
        }
        assert_eq!(reader.rows(), 20_001);
        assert_eq!(row::row_hash(&all), file.row_hash);
        assert!(all == wanted);
        assert_eq!(reader.said("row_hash"), Some(file.row_hash.as_str()));
        assert_eq!(reader.said("first_offset"), Some("7"));
        assert_eq!(reader.said("nothing"), None);
    }

    /// Our file's rows with one column replaced.
    fn forged(column: usize, field: Field, values: ArrayRef) -> Bytes {
        let body = sealed(&tuples(2)).body;
        let mut batches = ParquetRecordBatchReaderBuilder::try_new(body).unwrap().build().unwrap();
        let batch = batches.next().unwrap().unwrap();
        let mut fields: Vec<Arc<Field>> = batch.schema().fields().iter().cloned().collect();
        let mut columns = batch.columns().to_vec();
        fields[column] = Arc::new(field);
        columns[column] = values;
        let schema = Arc::new(Schema::new(fields));
        let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), None).unwrap();
        writer.write(&RecordBatch::try_new(schema, columns).unwrap()).unwrap();
        writer.into_inner().unwrap().into()
    }

    #[test]
    fn another_name_type_or_nullability_is_refused() {
        let text = |values: [&str; 2]| Arc::new(StringArray::from_iter_values(values)) as ArrayRef;
        for field in [Field::new("user", DataType::Utf8, false), Field::new("user_id", DataType::Utf8, true)]
        {
            let opened = RowReader::open(forged(5, field, text(["a", "b"])));
            assert!(matches!(opened, Err(ReadError::Column { index: 5, .. })), "{opened:?}");
        }
        let opened =
            RowReader::open(forged(11, Field::new("position", DataType::Utf8, true), text(["1", "2"])));
        assert!(matches!(opened, Err(ReadError::Column { index: 11, .. })), "{opened:?}");
        assert!(RowReader::open(Bytes::from_static(b"PAR1 no, not at all PAR1")).is_err());
    }

    #[test]
    fn an_id_that_is_not_written_as_we_write_it_is_refused() {
        let upper = "0ABCDEF0-0000-0000-0000-000000000000";
        for id in [upper, "x", ""] {
            let values = Arc::new(StringArray::from_iter_values([id, id])) as ArrayRef;
            let body = forged(5, Field::new("user_id", DataType::Utf8, false), values);
            let read = RowReader::open(body).unwrap().next_rows(&mut Vec::new());
            assert!(matches!(read, Err(ReadError::Uuid { row: 0, .. })), "{read:?}");
        }
    }
}
