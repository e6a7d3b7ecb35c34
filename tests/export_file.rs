//! Parquet files, read back: every column and type, the same bytes for the same rows, and what is
//! said in the metadata.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int32Type, Int64Type, TimeUnit, TimestampMillisecondType,
};
use bytes::Bytes;
use feed_worker::event::{Interaction, InteractionTypes};
use feed_worker::export::file::{FileError, FileIdentity, OpenFile, SealedFile};
use feed_worker::row::{self, COLUMNS, Coordinates, RowError, RowRef, Rows};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding, LogicalType, Repetition, TimeUnit as ParquetTimeUnit, Type};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::statistics::Statistics;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

const DAY: i32 = 20_500; // 2026-02-16
const PARTITION: i32 = 3;
const FIRST_OFFSET: i64 = 1000;
const ROW_GROUP_ROWS: usize = 10_000;

fn identity() -> FileIdentity {
    FileIdentity {
        topic: "feed.interactions.v1".to_owned(),
        partition: PARTITION,
        first_offset: FIRST_OFFSET,
        day: DAY,
        epoch: 1_771_200_000_123,
    }
}

/// Rows with nulls, long and short metadata, and offsets that skip what was rejected.
fn tuples(rows: usize, metadata_bytes_max: usize) -> Vec<u8> {
    let types = InteractionTypes::parse(InteractionTypes::default_text()).unwrap();
    let names: Vec<String> = types.iter().map(|(name, _)| name.to_owned()).collect();
    let mut random = StdRng::seed_from_u64(7);
    let users: Vec<u128> = (0..2000).map(|_| random.random()).collect();
    let mut out = Vec::new();
    let mut offset = FIRST_OFFSET + 2;
    let (start_ms, mut since_ms) = (row::day_start_ms(DAY), 0);
    for number in 0..rows {
        since_ms = (since_ms + random.random_range(0..3)).min(86_399_999);
        let session = format!("session-{}", number / 9);
        let metadata = format!(
            r#"{{"device":"d{}","note":"{}"}}"#,
            number % 5,
            "ü".repeat(random.random_range(0..=metadata_bytes_max / 2)),
        );
        let mut maybe = |share| random.random_bool(share);
        let interaction = Interaction {
            watch_time_seconds: maybe(0.7).then_some(number as f64 / 8.0),
            recommendation_score: maybe(0.6).then(|| (number as f64).sin()),
            position: maybe(0.6).then_some(i32::MAX - number as i32),
            algorithm: maybe(0.6).then_some(["two-tower", "trending"][number % 2]),
            experiment_variant_id: maybe(0.1).then_some("variant-b"),
            feed_session_id: maybe(0.8).then_some(session.as_str()),
            event_id: maybe(0.5).then(|| Uuid::from_u128(number as u128 * 0x1234_5678_9abc_def1)),
            metadata: maybe(0.5).then_some(metadata.as_str()),
            user_id: Uuid::from_u128(users[random.random_range(0..users.len())]),
            video_id: Uuid::from_u128(users[number % 300] ^ 1),
            interaction_type: types.lookup(&names[number % names.len()]).unwrap(),
            occurred_at_ms: start_ms + since_ms - random.random_range(0..100_000_000),
        };
        let at = Coordinates {
            partition: PARTITION,
            offset,
            recorded_at_ms: start_ms + since_ms,
            ingested_at_ms: start_ms + since_ms / 20 * 20 + 25,
        };
        row::encode(&mut out, &at, &interaction, &types);
        offset += random.random_range(1..3);
    }
    out
}

fn sealed_from(pieces: impl Iterator<Item = Vec<u8>>) -> SealedFile {
    let mut file = OpenFile::new(identity(), ROW_GROUP_ROWS).unwrap();
    for piece in pieces {
        file.append(&piece).unwrap();
    }
    file.seal().unwrap()
}

fn sealed(tuples: &[u8]) -> SealedFile {
    sealed_from(std::iter::once(tuples.to_vec()))
}

/// Cuts rows into pieces of 1, 2, 3 … `most` rows.
fn pieces(tuples: &[u8], most: usize) -> Vec<Vec<u8>> {
    let rows: Vec<RowRef> = Rows::new(tuples).collect::<Result<_, _>>().unwrap();
    let (mut rest, mut pieces) = (rows.as_slice(), Vec::new());
    while !rest.is_empty() {
        let (piece, more) = rest.split_at((pieces.len() % most + 1).min(rest.len()));
        pieces.push(piece.iter().flat_map(|row| row.bytes().to_vec()).collect());
        rest = more;
    }
    pieces
}

fn metadata_of(body: &Bytes) -> ParquetMetaData {
    SerializedFileReader::new(body.clone()).unwrap().metadata().clone()
}

fn batches_of(body: &Bytes) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(body.clone()).unwrap();
    reader.build().unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn a_file_holds_every_column_of_every_row() {
    let tuples = tuples(25_000, 40);
    let file = sealed(&tuples);
    let mut rows = Rows::new(&tuples).map(Result::unwrap);
    let mut seen = 0;
    for batch in batches_of(&file.body) {
        for (at, row) in (0..batch.num_rows()).zip(&mut rows) {
            assert_row(&batch, at, &row);
            seen += 1;
        }
    }
    assert_eq!((seen, rows.count()), (25_000, 0));
    assert_eq!(file.rows, 25_000);
    assert_eq!(file.row_hash, row::row_hash(&tuples));
}

fn assert_row(batch: &RecordBatch, at: usize, row: &RowRef<'_>) {
    let column = |name: &str| batch.column_by_name(name).unwrap();
    let ms = |name| column(name).as_primitive::<TimestampMillisecondType>().value(at);
    let double = |name| {
        let values = column(name).as_primitive::<Float64Type>();
        values.is_valid(at).then(|| values.value(at))
    };
    let text = |name| {
        let values = column(name).as_string::<i32>();
        values.is_valid(at).then(|| values.value(at))
    };
    let id = |name| text(name).map(str::to_owned);
    let positions = column("position").as_primitive::<Int32Type>();

    assert_eq!(column("kafka_partition").as_primitive::<Int32Type>().value(at), row.partition());
    assert_eq!(column("kafka_offset").as_primitive::<Int64Type>().value(at), row.offset());
    assert_eq!(ms("recorded_at"), row.recorded_at_ms());
    assert_eq!(ms("occurred_at"), row.occurred_at_ms());
    assert_eq!(ms("ingested_at"), row.ingested_at_ms());
    assert_eq!(id("user_id"), Some(row.user_id().hyphenated().to_string()));
    assert_eq!(id("video_id"), Some(row.video_id().hyphenated().to_string()));
    assert_eq!(text("interaction_type"), Some(row.interaction_type()));
    let weights = column("interaction_weight").as_primitive::<Float32Type>();
    assert_eq!(weights.value(at), row.interaction_weight());
    assert_eq!(double("watch_time_seconds"), row.watch_time_seconds());
    assert_eq!(double("recommendation_score"), row.recommendation_score());
    assert_eq!(positions.is_valid(at).then(|| positions.value(at)), row.position());
    assert_eq!(text("algorithm"), row.algorithm());
    assert_eq!(text("experiment_variant_id"), row.experiment_variant_id());
    assert_eq!(text("feed_session_id"), row.feed_session_id());
    assert_eq!(id("event_id"), row.event_id().map(|id| id.hyphenated().to_string()));
    assert_eq!(text("metadata"), row.metadata());
}

#[test]
fn columns_have_the_same_types_in_every_file() {
    let utc_ms = || LogicalType::timestamp(true, ParquetTimeUnit::MILLIS);
    let expected = [
        ("kafka_partition", Type::INT32, None, Repetition::REQUIRED),
        ("kafka_offset", Type::INT64, None, Repetition::REQUIRED),
        ("recorded_at", Type::INT64, Some(utc_ms()), Repetition::REQUIRED),
        ("occurred_at", Type::INT64, Some(utc_ms()), Repetition::REQUIRED),
        ("ingested_at", Type::INT64, Some(utc_ms()), Repetition::REQUIRED),
        ("user_id", Type::BYTE_ARRAY, Some(LogicalType::String), Repetition::REQUIRED),
        ("video_id", Type::BYTE_ARRAY, Some(LogicalType::String), Repetition::REQUIRED),
        ("interaction_type", Type::BYTE_ARRAY, Some(LogicalType::String), Repetition::REQUIRED),
        ("interaction_weight", Type::FLOAT, None, Repetition::REQUIRED),
        ("watch_time_seconds", Type::DOUBLE, None, Repetition::OPTIONAL),
        ("recommendation_score", Type::DOUBLE, None, Repetition::OPTIONAL),
        ("position", Type::INT32, None, Repetition::OPTIONAL),
        ("algorithm", Type::BYTE_ARRAY, Some(LogicalType::String), Repetition::OPTIONAL),
        ("experiment_variant_id", Type::BYTE_ARRAY, Some(LogicalType::String), Repetition::OPTIONAL),
        ("feed_session_id", Type::BYTE_ARRAY, Some(LogicalType::String), Repetition::OPTIONAL),
        ("event_id", Type::BYTE_ARRAY, Some(LogicalType::String), Repetition::OPTIONAL),
        ("metadata", Type::BYTE_ARRAY, Some(LogicalType::String), Repetition::OPTIONAL),
    ];
    assert_eq!(expected.each_ref().map(|column| column.0), COLUMNS);
    // One row leaves most columns without any value: their types stay.
    for rows in [1, 20_000] {
        let body = sealed(&tuples(rows, 40)).body;
        let metadata = metadata_of(&body);
        let schema = metadata.file_metadata().schema_descr();
        assert_eq!(schema.num_columns(), expected.len());
        for (column, (name, physical, logical, repetition)) in schema.columns().iter().zip(&expected) {
            let info = column.self_type().get_basic_info();
            assert_eq!(column.name(), *name);
            assert_eq!(column.physical_type(), *physical, "{name}");
            assert_eq!(column.logical_type_ref(), logical.as_ref(), "{name}");
            assert_eq!(info.repetition(), *repetition, "{name}");
        }
        let arrow = batches_of(&body)[0].schema();
        let utc = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        assert_eq!(*arrow.field_with_name("recorded_at").unwrap().data_type(), utc);
        assert_eq!(*arrow.field_with_name("user_id").unwrap().data_type(), DataType::Utf8);
    }
}

#[test]
fn the_same_rows_make_the_same_bytes_however_they_arrive() {
    // Much metadata, so that batches end by bytes as well as by rows.
    for (rows, metadata_bytes_max) in [(25_000, 40), (1500, 16_000)] {
        let tuples = tuples(rows, metadata_bytes_max);
        let at_once = sealed(&tuples);
        for most in [1, 64, 700] {
            let in_pieces = sealed_from(pieces(&tuples, most).into_iter());
            assert!(in_pieces == at_once, "pieces of up to {most} rows of {rows}");
        }
    }
}

#[test]
fn a_file_says_what_it_holds() {
    let tuples = tuples(25_000, 40);
    let file = sealed(&tuples);
    let rows: Vec<RowRef> = Rows::new(&tuples).map(Result::unwrap).collect();
    let last_offset = rows[rows.len() - 1].offset();
    assert_eq!(file.next_offset, last_offset + 1);
    assert_eq!(file.key("exports"), "exports/2026-02-16/feed.interactions.v1+3+00000000000000001000.parquet");
    let expected = [
        ("topic", "feed.interactions.v1".to_owned()),
        ("partition", "3".to_owned()),
        ("first-offset", "1000".to_owned()),
        ("next-offset", file.next_offset.to_string()),
        ("last-offset", last_offset.to_string()),
        ("rows", "25000".to_owned()),
        ("row-hash", row::row_hash(&tuples)),
        ("epoch", "1771200000123".to_owned()),
        ("schema-version", "2".to_owned()),
    ];
    let expected: Vec<_> = expected.map(|(name, value)| (name.to_owned(), value)).into();
    assert_eq!(file.object_metadata(), expected);

    let metadata = metadata_of(&file.body);
    let pairs = metadata.file_metadata().key_value_metadata().unwrap();
    let found: Vec<_> = pairs.iter().map(|p| (p.key.clone(), p.value.clone().unwrap())).collect();
    let in_parquet =
        |(name, value): (String, String)| (format!("feed_worker.{}", name.replace('-', "_")), value);
    let mut expected: Vec<_> = expected.into_iter().map(in_parquet).collect();
    let first_ms = rows[0].recorded_at_ms();
    let last_ms = rows[rows.len() - 1].recorded_at_ms();
    expected.push(("feed_worker.recorded_at_min_ms".to_owned(), first_ms.to_string()));
    expected.push(("feed_worker.recorded_at_max_ms".to_owned(), last_ms.to_string()));
    // Nothing else: no Arrow schema, nothing from a clock.
    assert_eq!(found, expected);
}

#[test]
fn columns_are_encoded_as_measured() {
    let metadata = metadata_of(&sealed(&tuples(25_000, 40)).body);
    let created_by = metadata.file_metadata().created_by().unwrap();
    assert_eq!(created_by, concat!("feed-worker version ", env!("CARGO_PKG_VERSION")));
    let group_rows: Vec<i64> = metadata.row_groups().iter().map(RowGroupMetaData::num_rows).collect();
    assert_eq!(group_rows, [10_000, 10_000, 5000]);
    for column in metadata.row_groups().iter().flat_map(RowGroupMetaData::columns) {
        let name = column.column_path().string();
        let encodings: Vec<Encoding> = column.encodings().collect();
        let expected = match name.as_str() {
            "kafka_partition" | "kafka_offset" | "position" | "recorded_at" | "occurred_at"
            | "ingested_at" => Encoding::DELTA_BINARY_PACKED,
            "watch_time_seconds" | "recommendation_score" => Encoding::BYTE_STREAM_SPLIT,
            "event_id" | "metadata" => Encoding::PLAIN,
            _ => Encoding::RLE_DICTIONARY,
        };
        assert!(encodings.contains(&expected), "{name}: {encodings:?}");
        assert!(matches!(column.compression(), Compression::ZSTD(_)), "{name}");
        let ids = ["user_id", "video_id", "event_id", "feed_session_id", "metadata"];
        let nulls = column.statistics().and_then(Statistics::null_count_opt);
        assert_eq!(nulls.is_some(), !ids.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn a_file_takes_only_its_own_rows_in_their_order() {
    let tuples = tuples(3, 10);
    let rows: Vec<RowRef> = Rows::new(&tuples).map(Result::unwrap).collect();
    let open = |change: fn(&mut FileIdentity)| {
        let mut identity = identity();
        change(&mut identity);
        OpenFile::new(identity, ROW_GROUP_ROWS).unwrap()
    };
    let error = open(|file| file.partition = 4).append(&tuples).unwrap_err();
    assert!(matches!(error, FileError::OtherPartition { file: 4, row: PARTITION }));
    let error = open(|file| file.day += 1).append(&tuples).unwrap_err();
    assert!(matches!(error, FileError::OtherDay { row: DAY, .. }));
    assert!(error.to_string().contains("2026-02-17"), "{error}");
    let error = open(|file| file.first_offset = 2000).append(&tuples).unwrap_err();
    assert!(matches!(error, FileError::OutOfOrder { next: 2000, .. }));
    let mut file = open(|_| ());
    file.append(rows[1].bytes()).unwrap();
    let error = file.append(rows[1].bytes()).unwrap_err();
    assert!(matches!(error, FileError::OutOfOrder { .. }), "the same row twice");
    let error = open(|_| ()).append(&tuples[1..]).unwrap_err();
    assert!(matches!(error, FileError::Row(_)));
    assert!(matches!(open(|_| ()).seal(), Err(FileError::Empty)));
}

#[test]
fn rows_of_another_day_are_left_for_another_file() {
    let (mut rows, first) = (tuples(10, 10), tuples(10, 10).len());
    rows.extend(tuples(10, 10));
    let next_day = row::parse_day("2026-02-17").map(row::day_start_ms).unwrap();
    // The first row behind those of the day: its time stands behind partition and offset.
    let (offset_at, recorded_at_at) = (first + 14, first + 26);
    let micros = (next_day - 946_684_800_000) * 1000;
    rows[offset_at..offset_at + 8].copy_from_slice(&2000i64.to_be_bytes());
    rows[recorded_at_at..recorded_at_at + 8].copy_from_slice(&micros.to_be_bytes());
    let mut file = OpenFile::new(identity(), ROW_GROUP_ROWS).unwrap();
    let appended = file.append_day(&rows).unwrap();
    assert_eq!((appended.rows, appended.bytes), (10, first));
    let error = file.append_day(&rows[first..]).unwrap_err();
    assert!(matches!(error, FileError::OtherDay { row, offset: 2000, .. } if row == DAY + 1), "{error}");
    let error = OpenFile::new(identity(), ROW_GROUP_ROWS).unwrap().append(&rows).unwrap_err();
    assert!(matches!(error, FileError::OtherDay { row, offset: 2000, .. } if row == DAY + 1), "{error}");
}

/// Texts of a column are checked together: what is none alone must not become one beside its neighbour.
#[test]
fn half_a_character_is_refused_whatever_follows_it() {
    let mut rows = tuples(20, 10);
    let is_session = |at: &usize| rows[*at..].starts_with(b"session-0");
    let sessions: Vec<usize> = (0..rows.len()).filter(is_session).collect();
    rows[sessions[0] + 8] = 0xc3;
    rows[sessions[1]] = 0xa9;
    let mut file = OpenFile::new(identity(), ROW_GROUP_ROWS).unwrap();
    let error = match file.append(&rows) {
        Ok(_) => file.seal().unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, FileError::Row(RowError::NotUtf8 { column: "feed_session_id" })), "{error}");
}

#[test]
fn size_age_and_memory_follow_the_rows() {
    let tuples = tuples(25_000, 40);
    let mut file = OpenFile::new(identity(), ROW_GROUP_ROWS).unwrap();
    assert_eq!((file.rows(), file.next_offset()), (0, FIRST_OFFSET));
    assert_eq!(file.first_ingested_at_ms(), None);
    let idle_bytes = file.memory_bytes();
    assert!(idle_bytes < 64 << 10, "an idle file takes {idle_bytes} bytes");

    let (mut size, mut rows) = (0, 0);
    for piece in pieces(&tuples, 40) {
        let appended = file.append(&piece).unwrap();
        rows += appended.rows;
        assert_eq!((file.rows(), file.next_offset()), (rows, appended.next_offset));
        assert!(file.memory_bytes() > idle_bytes);
        size = file.bytes_written();
    }
    let first = Rows::new(&tuples).next().unwrap().unwrap();
    assert_eq!(file.first_ingested_at_ms(), Some(first.ingested_at_ms()));
    assert_eq!(file.day(), DAY);
    let sealed_bytes = file.seal().unwrap().body.len();
    // What is still being gathered counts uncompressed: at most one batch.
    assert!(size * 10 > sealed_bytes * 8, "{size} of {sealed_bytes}");
    assert!(size < sealed_bytes + 4096 * 300, "{size} of {sealed_bytes}");
}
