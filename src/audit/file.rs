//! A Parquet object as rows, read by the parquet crate's own reader: a batch at a time, whatever its row groups are.

use std::collections::{HashMap, VecDeque};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int32Type, Int64Type, TimeUnit, TimestampMillisecondType,
};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;

use super::row::{COLUMNS, Row, parse_uuid};

/// Rows that are decoded at once.
const BATCH_ROWS: usize = 2048;

/// The columns that are never null are the first nine.
const REQUIRED: usize = 9;

pub struct File {
    batches: ParquetRecordBatchReader,
    ready: VecDeque<Row>,
    /// What the file says of itself, without `feed_worker.` in front.
    pub said: HashMap<String, String>,
    /// How its columns are not the agreed ones.
    pub form: Vec<String>,
}

impl File {
    pub fn open(body: Bytes) -> Result<Self, String> {
        let broken = |error: &dyn std::fmt::Display| format!("no Parquet file: {error}");
        let builder = ParquetRecordBatchReaderBuilder::try_new(body).map_err(|error| broken(&error))?;
        let mut form = Vec::new();
        let fields = builder.schema().fields();
        let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
        if names != COLUMNS {
            return Err(format!("its columns are {}", names.join(", ")));
        }
        for (index, field) in fields.iter().enumerate() {
            let wanted = type_of(field.name());
            if *field.data_type() != wanted {
                return Err(format!("{} is {}, not {wanted}", field.name(), field.data_type()));
            }
            if field.is_nullable() == (index < REQUIRED) {
                form.push(format!("{}: nullable is {}", field.name(), field.is_nullable()));
            }
        }
        let groups = builder.metadata().row_groups();
        if groups
            .iter()
            .flat_map(parquet::file::metadata::RowGroupMetaData::columns)
            .any(|c| !matches!(c.compression(), Compression::ZSTD(_)))
        {
            form.push("a column is not compressed by zstd".to_owned());
        }
        let pairs = builder.metadata().file_metadata().key_value_metadata();
        let pair = |pair: &parquet::file::metadata::KeyValue| {
            Some((pair.key.strip_prefix("feed_worker.")?.to_owned(), pair.value.clone()?))
        };
        let said = pairs.into_iter().flatten().filter_map(pair).collect();
        let batches = builder.with_batch_size(BATCH_ROWS).build().map_err(|error| broken(&error))?;
        Ok(File { batches, ready: VecDeque::new(), said, form })
    }

    pub fn next(&mut self) -> Result<Option<Row>, String> {
        while self.ready.is_empty() {
            let Some(batch) = self.batches.next() else { return Ok(None) };
            let batch = batch.map_err(|error| format!("no Parquet file: {error}"))?;
            for index in 0..batch.num_rows() {
                self.ready.push_back(row(&batch, index)?);
            }
        }
        Ok(self.ready.pop_front())
    }
}

fn type_of(column: &str) -> DataType {
    match column {
        "kafka_partition" | "position" => DataType::Int32,
        "kafka_offset" => DataType::Int64,
        "recorded_at" | "occurred_at" | "ingested_at" => {
            DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
        }
        "interaction_weight" => DataType::Float32,
        "watch_time_seconds" | "recommendation_score" => DataType::Float64,
        _ => DataType::Utf8,
    }
}

fn row(batch: &RecordBatch, index: usize) -> Result<Row, String> {
    let column = |name: &str| {
        let column = batch.column_by_name(name).ok_or_else(|| format!("no column {name}"))?;
        Ok::<_, String>((!column.is_null(index)).then_some(column))
    };
    let text = |name: &str| column(name).map(|c| c.map(|c| c.as_string::<i32>().value(index).to_owned()));
    let int = |name: &str| column(name).map(|c| c.map(|c| c.as_primitive::<Int32Type>().value(index)));
    let double = |name: &str| column(name).map(|c| c.map(|c| c.as_primitive::<Float64Type>().value(index)));
    let time = |name: &str| {
        let ms = column(name)?.map(|c| c.as_primitive::<TimestampMillisecondType>().value(index));
        ms.unwrap_or(0).checked_mul(1000).ok_or_else(|| format!("{name} is out of range"))
    };
    let offset = column("kafka_offset")?.map_or(-1, |c| c.as_primitive::<Int64Type>().value(index));
    // The offset says which row it is; a user's id stands in no report.
    let id = |name: &str| match text(name)? {
        None => Ok(None),
        Some(text) if text.bytes().any(|b| b.is_ascii_uppercase()) => {
            Err(format!("{name} at offset {offset} is not in lower case"))
        }
        Some(text) => parse_uuid(text.as_bytes())
            .map(Some)
            .ok_or_else(|| format!("{name} at offset {offset} is no hyphenated uuid")),
    };
    Ok(Row {
        partition: int("kafka_partition")?.unwrap_or(-1),
        offset,
        recorded_us: time("recorded_at")?,
        occurred_us: time("occurred_at")?,
        ingested_us: time("ingested_at")?,
        user: id("user_id")?.unwrap_or_default(),
        video: id("video_id")?.unwrap_or_default(),
        kind: text("interaction_type")?.unwrap_or_default(),
        weight: column("interaction_weight")?.map_or(0.0, |c| c.as_primitive::<Float32Type>().value(index)),
        watch_time: double("watch_time_seconds")?,
        score: double("recommendation_score")?,
        position: int("position")?,
        algorithm: text("algorithm")?,
        variant: text("experiment_variant_id")?,
        session: text("feed_session_id")?,
        event: id("event_id")?,
        metadata: text("metadata")?,
    })
}
