//! How the columns are encoded. Each choice was measured: encodings gain more than compression
//! levels, and zstd above level 1 costs time for nothing on UUIDs and doubles.

use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;

/// The value's kind and therefore its encoding; without a dictionary unless it says so.
const ENCODINGS: [(&str, Encoding); 9] = [
    ("kafka_partition", Encoding::DELTA_BINARY_PACKED),
    ("kafka_offset", Encoding::DELTA_BINARY_PACKED),
    ("recorded_at", Encoding::DELTA_BINARY_PACKED),
    ("occurred_at", Encoding::DELTA_BINARY_PACKED),
    ("ingested_at", Encoding::DELTA_BINARY_PACKED),
    ("position", Encoding::DELTA_BINARY_PACKED),
    ("watch_time_seconds", Encoding::BYTE_STREAM_SPLIT),
    ("recommendation_score", Encoding::BYTE_STREAM_SPLIT),
    ("event_id", Encoding::PLAIN),
];

/// Columns whose values come again within a row group.
const DICTIONARIES: [&str; 7] = [
    "user_id",
    "video_id",
    "interaction_type",
    "interaction_weight",
    "algorithm",
    "experiment_variant_id",
    "feed_session_id",
];

/// Columns without statistics: the smallest and the largest of random ids, or of metadata, let no reader leave anything
/// out, and comparing every value costs as much as encoding it.
const WITHOUT_STATISTICS: [&str; 5] = ["user_id", "video_id", "event_id", "feed_session_id", "metadata"];

/// A row group is closed early at this size: rows with much metadata must not fill the memory.
const ROW_GROUP_BYTES_MAX: usize = 64 << 20;

/// The writer's settings. The Arrow schema is left out of the file: other readers need only what
/// Parquet itself says, and old ones trip over it.
pub(super) fn writer_options(row_group_rows: usize) -> ArrowWriterOptions {
    let zstd = ZstdLevel::try_new(1).expect("level 1 exists");
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by(concat!("feed-worker version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(zstd))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(row_group_rows.max(1)))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES_MAX));
    for (column, encoding) in ENCODINGS {
        properties = properties.set_column_encoding(ColumnPath::from(column), encoding);
    }
    for column in DICTIONARIES {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(column), true);
    }
    for column in WITHOUT_STATISTICS {
        properties =
            properties.set_column_statistics_enabled(ColumnPath::from(column), EnabledStatistics::None);
    }
    ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(true)
}
