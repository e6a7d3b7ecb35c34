//! The columns of a file while rows are gathered for it.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float32Builder, Float64Builder, Int32Builder, Int64Builder, RecordBatch, StringBuilder,
    TimestampMillisecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::errors::ParquetError;
use uuid::Uuid;

use crate::row::{COLUMNS, RowRef};

/// How many columns, from the first one, are never null.
const REQUIRED_COLUMNS: usize = 9;

/// One builder per column, in table order. Rows arrive a few at a time; the Parquet writer wants
/// thousands.
pub(super) struct ColumnBuilders {
    schema: SchemaRef,
    rows: usize,
    bytes: usize,
    kafka_partition: Int32Builder,
    kafka_offset: Int64Builder,
    recorded_at: TimestampMillisecondBuilder,
    occurred_at: TimestampMillisecondBuilder,
    ingested_at: TimestampMillisecondBuilder,
    user_id: StringBuilder,
    video_id: StringBuilder,
    interaction_type: StringBuilder,
    interaction_weight: Float32Builder,
    watch_time_seconds: Float64Builder,
    recommendation_score: Float64Builder,
    position: Int32Builder,
    algorithm: StringBuilder,
    experiment_variant_id: StringBuilder,
    feed_session_id: StringBuilder,
    event_id: StringBuilder,
    metadata: StringBuilder,
}

impl ColumnBuilders {
    pub(super) fn new() -> Self {
        let timestamp = || TimestampMillisecondBuilder::new().with_timezone("UTC");
        ColumnBuilders {
            schema: arrow_schema(),
            rows: 0,
            bytes: 0,
            kafka_partition: Int32Builder::new(),
            kafka_offset: Int64Builder::new(),
            recorded_at: timestamp(),
            occurred_at: timestamp(),
            ingested_at: timestamp(),
            user_id: StringBuilder::new(),
            video_id: StringBuilder::new(),
            interaction_type: StringBuilder::new(),
            interaction_weight: Float32Builder::new(),
            watch_time_seconds: Float64Builder::new(),
            recommendation_score: Float64Builder::new(),
            position: Int32Builder::new(),
            algorithm: StringBuilder::new(),
            experiment_variant_id: StringBuilder::new(),
            feed_session_id: StringBuilder::new(),
            event_id: StringBuilder::new(),
            metadata: StringBuilder::new(),
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

    /// About the heap that the builders take: ids are text here (36 bytes) and not 16, and vectors
    /// that grow by doubling are up to half empty.
    pub(super) fn memory_bytes(&self) -> usize {
        2 * (self.bytes + 60 * self.rows)
    }

    pub(super) fn append(&mut self, row: &RowRef<'_>) {
        self.rows += 1;
        self.bytes += row.bytes().len();
        self.kafka_partition.append_value(row.partition());
        self.kafka_offset.append_value(row.offset());
        self.recorded_at.append_value(row.recorded_at_ms());
        self.occurred_at.append_value(row.occurred_at_ms());
        self.ingested_at.append_value(row.ingested_at_ms());
        append_uuid(&mut self.user_id, Some(row.user_id()));
        append_uuid(&mut self.video_id, Some(row.video_id()));
        self.interaction_type.append_value(row.interaction_type());
        self.interaction_weight.append_value(row.interaction_weight());
        self.watch_time_seconds.append_option(row.watch_time_seconds());
        self.recommendation_score.append_option(row.recommendation_score());
        self.position.append_option(row.position());
        self.algorithm.append_option(row.algorithm());
        self.experiment_variant_id.append_option(row.experiment_variant_id());
        self.feed_session_id.append_option(row.feed_session_id());
        append_uuid(&mut self.event_id, row.event_id());
        self.metadata.append_option(row.metadata());
    }

    /// What was gathered; the builders are empty afterwards.
    pub(super) fn take_batch(&mut self) -> Result<RecordBatch, ParquetError> {
        self.rows = 0;
        self.bytes = 0;
        let columns: [ArrayRef; COLUMNS.len()] = [
            Arc::new(self.kafka_partition.finish()),
            Arc::new(self.kafka_offset.finish()),
            Arc::new(self.recorded_at.finish()),
            Arc::new(self.occurred_at.finish()),
            Arc::new(self.ingested_at.finish()),
            Arc::new(self.user_id.finish()),
            Arc::new(self.video_id.finish()),
            Arc::new(self.interaction_type.finish()),
            Arc::new(self.interaction_weight.finish()),
            Arc::new(self.watch_time_seconds.finish()),
            Arc::new(self.recommendation_score.finish()),
            Arc::new(self.position.finish()),
            Arc::new(self.algorithm.finish()),
            Arc::new(self.experiment_variant_id.finish()),
            Arc::new(self.feed_session_id.finish()),
            Arc::new(self.event_id.finish()),
            Arc::new(self.metadata.finish()),
        ];
        Ok(RecordBatch::try_new(self.schema(), columns.into())?)
    }
}

/// Lower case with hyphens, without a string of its own.
fn append_uuid(column: &mut StringBuilder, id: Option<Uuid>) {
    let mut text = Uuid::encode_buffer();
    column.append_option(id.map(|id| &*id.hyphenated().encode_lower(&mut text)));
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
