//! The columns of a file while rows are gathered for it.

use std::mem;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, Float32Array, Int32Array, Int64Array, PrimitiveArray, RecordBatch,
    StringArray, TimestampMillisecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Float64Type, Int32Type, Schema, SchemaRef, TimeUnit};

use super::FileError;
use crate::row::{COLUMNS, RawRow, RowError};

/// How many columns, from the first one, are never null.
const REQUIRED_COLUMNS: usize = 9;

/// The values of each column, in table order. Rows arrive a few at a time; the Parquet writer wants thousands.
///
/// What is handed over leaves room for as much again: a row costs no allocation, and a text is checked to be UTF-8
/// together with all others of its column.
pub(super) struct Columns {
    schema: SchemaRef,
    rows: usize,
    bytes: usize,
    kafka_partition: Vec<i32>,
    kafka_offset: Vec<i64>,
    recorded_at: Vec<i64>,
    occurred_at: Vec<i64>,
    ingested_at: Vec<i64>,
    user_id: Texts,
    video_id: Texts,
    interaction_type: Texts,
    interaction_weight: Vec<f32>,
    watch_time_seconds: Optional<Float64Type>,
    recommendation_score: Optional<Float64Type>,
    position: Optional<Int32Type>,
    algorithm: Texts,
    experiment_variant_id: Texts,
    feed_session_id: Texts,
    event_id: Texts,
    metadata: Texts,
}

impl Columns {
    pub(super) fn new() -> Self {
        Columns {
            schema: arrow_schema(),
            rows: 0,
            bytes: 0,
            kafka_partition: Vec::new(),
            kafka_offset: Vec::new(),
            recorded_at: Vec::new(),
            occurred_at: Vec::new(),
            ingested_at: Vec::new(),
            user_id: Texts::default(),
            video_id: Texts::default(),
            interaction_type: Texts::default(),
            interaction_weight: Vec::new(),
            watch_time_seconds: Optional::new(),
            recommendation_score: Optional::new(),
            position: Optional::new(),
            algorithm: Texts::default(),
            experiment_variant_id: Texts::default(),
            feed_session_id: Texts::default(),
            event_id: Texts::default(),
            metadata: Texts::default(),
        }
    }

    pub(super) fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Rows gathered since the last batch.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Their bytes as tuples.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// About the heap that the columns take: ids are text here (36 bytes) and not 16, and vectors
    /// that grow by doubling are up to half empty.
    pub(super) fn memory_bytes(&self) -> usize {
        2 * (self.bytes + 60 * self.rows)
    }

    #[inline]
    pub(super) fn push(&mut self, row: &RawRow<'_>) {
        self.rows += 1;
        self.bytes += row.bytes.len();
        self.kafka_partition.push(row.partition);
        self.kafka_offset.push(row.offset);
        self.recorded_at.push(row.recorded_at_ms);
        self.occurred_at.push(row.occurred_at_ms);
        self.ingested_at.push(row.ingested_at_ms);
        self.user_id.push_uuid(Some(&row.user_id));
        self.video_id.push_uuid(Some(&row.video_id));
        self.interaction_type.push(Some(row.interaction_type));
        self.interaction_weight.push(row.interaction_weight);
        self.watch_time_seconds.push(row.watch_time_seconds);
        self.recommendation_score.push(row.recommendation_score);
        self.position.push(row.position);
        self.algorithm.push(row.algorithm);
        self.experiment_variant_id.push(row.experiment_variant_id);
        self.feed_session_id.push(row.feed_session_id);
        self.event_id.push_uuid(row.event_id.as_ref());
        self.metadata.push(row.metadata);
    }

    /// What was gathered; the columns are empty afterwards. Errors: a text that is none.
    pub(super) fn take_batch(&mut self) -> Result<RecordBatch, FileError> {
        self.rows = 0;
        self.bytes = 0;
        let timestamps = |values: &mut Vec<i64>| -> ArrayRef {
            Arc::new(TimestampMillisecondArray::new(taken(values).into(), None).with_timezone("UTC"))
        };
        let columns: [ArrayRef; COLUMNS.len()] = [
            Arc::new(Int32Array::new(taken(&mut self.kafka_partition).into(), None)),
            Arc::new(Int64Array::new(taken(&mut self.kafka_offset).into(), None)),
            timestamps(&mut self.recorded_at),
            timestamps(&mut self.occurred_at),
            timestamps(&mut self.ingested_at),
            self.user_id.take("user_id")?,
            self.video_id.take("video_id")?,
            self.interaction_type.take("interaction_type")?,
            Arc::new(Float32Array::new(taken(&mut self.interaction_weight).into(), None)),
            self.watch_time_seconds.take(),
            self.recommendation_score.take(),
            self.position.take(),
            self.algorithm.take("algorithm")?,
            self.experiment_variant_id.take("experiment_variant_id")?,
            self.feed_session_id.take("feed_session_id")?,
            self.event_id.take("event_id")?,
            self.metadata.take("metadata")?,
        ];
        RecordBatch::try_new(self.schema(), columns.into()).map_err(|error| FileError::Parquet(error.into()))
    }
}

/// The vector, which leaves one with as much room.
fn taken<T>(values: &mut Vec<T>) -> Vec<T> {
    let room = Vec::with_capacity(values.len());
    mem::replace(values, room)
}

/// Which values of a column are there.
#[derive(Default)]
struct Presence(Vec<bool>);

impl Presence {
    fn take(&mut self) -> Option<NullBuffer> {
        let nulls = NullBuffer::from(self.0.as_slice());
        self.0.clear();
        (nulls.null_count() > 0).then_some(nulls)
    }
}

/// Numbers that may be null.
struct Optional<T: ArrowPrimitiveType> {
    values: Vec<T::Native>,
    presence: Presence,
}

impl<T: ArrowPrimitiveType> Optional<T> {
    fn new() -> Self {
        Optional { values: Vec::new(), presence: Presence::default() }
    }

    #[inline]
    fn push(&mut self, value: Option<T::Native>) {
        self.values.push(value.unwrap_or_default());
        self.presence.0.push(value.is_some());
    }

    fn take(&mut self) -> ArrayRef {
        Arc::new(PrimitiveArray::<T>::new(taken(&mut self.values).into(), self.presence.take()))
    }
}

/// Texts one behind the other, and where each of them ends.
#[derive(Default)]
struct Texts {
    bytes: Vec<u8>,
    ends: Vec<i32>,
    presence: Presence,
}

impl Texts {
    #[inline]
    fn push(&mut self, text: Option<&[u8]>) {
        self.bytes.extend_from_slice(text.unwrap_or_default());
        self.end(text.is_some());
    }

    #[inline]
    fn push_uuid(&mut self, id: Option<&[u8; 16]>) {
        if let Some(id) = id {
            self.bytes.extend_from_slice(&hyphenated(id));
        }
        self.end(id.is_some());
    }

    #[inline]
    fn end(&mut self, is_there: bool) {
        // A batch is far below 2 GiB: BATCH_BYTES_MAX, and one row.
        self.ends.push(self.bytes.len() as i32);
        self.presence.0.push(is_there);
    }

    fn take(&mut self, column: &'static str) -> Result<ArrayRef, FileError> {
        let offsets = OffsetBuffer::new([0].into_iter().chain(self.ends.drain(..)).collect());
        let bytes = Buffer::from_vec(taken(&mut self.bytes));
        match StringArray::try_new(offsets, bytes, self.presence.take()) {
            Ok(texts) => Ok(Arc::new(texts)),
            Err(_) => Err(FileError::Row(RowError::NotUtf8 { column })),
        }
    }
}

/// A uuid in lower case with hyphens.
#[inline]
fn hyphenated(id: &[u8; 16]) -> [u8; 36] {
    /// The two digits of each byte.
    const DIGITS: [[u8; 2]; 256] = {
        let hex = b"0123456789abcdef";
        let mut digits = [[0; 2]; 256];
        let mut byte = 0;
        while byte < digits.len() {
            digits[byte] = [hex[byte >> 4], hex[byte & 15]];
            byte += 1;
        }
        digits
    };
    const DIGITS_AT: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    let mut text = [b'-'; 36];
    for (byte, at) in id.iter().zip(DIGITS_AT) {
        text[at..at + 2].copy_from_slice(&DIGITS[usize::from(*byte)]);
    }
    text
}

/// The names and types that every file has, whatever is in it.
pub fn arrow_schema() -> SchemaRef {
    let timestamp = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let types: [DataType; COLUMNS.len()] = [
        DataType::Int32,
        DataType::Int64,
        timestamp.clone(),
        timestamp.clone(),
        timestamp,
        DataType::Utf8,
        DataType::Utf8,
        DataType::Utf8,
        DataType::Float32,
        DataType::Float64,
        DataType::Float64,
        DataType::Int32,
        DataType::Utf8,
        DataType::Utf8,
        DataType::Utf8,
        DataType::Utf8,
        DataType::Utf8,
    ];
    let fields = COLUMNS.iter().zip(types).enumerate();
    let fields = fields.map(|(i, (name, kind))| Field::new(*name, kind, i >= REQUIRED_COLUMNS));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}
