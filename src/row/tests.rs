use proptest::prelude::*;

use super::*;
use crate::event::TypeId;

fn types() -> InteractionTypes {
    InteractionTypes::parse(InteractionTypes::default_text()).unwrap()
}

fn type_id(name: &str) -> TypeId {
    types().lookup(name).unwrap()
}

fn plain(interaction_type: &str) -> Interaction<'static> {
    Interaction {
        user_id: Uuid::from_u128(0x00112233_4455_6677_8899_aabbccddeeff),
        video_id: Uuid::from_u128(0xffeeddcc_bbaa_9988_7766_554433221100),
        interaction_type: type_id(interaction_type),
        occurred_at_ms: 946_684_799_999,
        watch_time_seconds: None,
        recommendation_score: None,
        position: None,
        event_id: None,
        algorithm: None,
        experiment_variant_id: None,
        feed_session_id: None,
        metadata: None,
    }
}

fn full() -> Interaction<'static> {
    Interaction {
        occurred_at_ms: 1_767_225_599_000,
        watch_time_seconds: Some(12.5),
        recommendation_score: Some(-0.25),
        position: Some(7),
        event_id: Some(Uuid::from_u128(0x01234567_89ab_cdef_0123_456789abcdef)),
        algorithm: Some("two-tower"),
        experiment_variant_id: Some("b"),
        feed_session_id: Some("s-1"),
        metadata: Some(r#"{"a":"1","é":"x\n"}"#),
        ..plain("complete")
    }
}

fn coordinates(offset: i64) -> Coordinates {
    Coordinates { partition: 3, offset, recorded_at_ms: 1_767_225_600_123, ingested_at_ms: 1_767_225_600_456 }
}

fn two_rows() -> Vec<u8> {
    let mut tuples = Vec::new();
    encode(&mut tuples, &coordinates(42), &full(), &types());
    encode(&mut tuples, &coordinates(43), &plain("skip"), &types());
    tuples
}

/// What Postgres would send for these rows: jsonb with its own spaces.
fn copy_stream() -> Vec<u8> {
    let mut stream = COPY_HEADER.to_vec();
    let spaced = Interaction { metadata: Some(r#"{"é": "x\n", "a": "1"}"#), ..full() };
    encode(&mut stream, &coordinates(42), &spaced, &types());
    encode(&mut stream, &coordinates(43), &plain("skip"), &types());
    stream.extend_from_slice(&COPY_TRAILER);
    stream
}

/// Made by another implementation (Python's `struct` and `xxhash`).
const FIRST_ROW_HEX: &str = concat!(
    "0011000000040000000300000008000000000000002a000000080002ea470aea4078000000080002ea470ad91dc0",
    "000000080002ea470aef55400000001000112233445566778899aabbccddeeff00000010ffeeddccbbaa99887766",
    "55443322110000000008636f6d706c6574650000000440a000000000000840290000000000000000",
    "0008bfd000000000000000000004000000070000000974776f2d746f776572000000016200000003732d31000000",
    "100123456789abcdef0123456789abcdef00000015017b2261223a2231222c22c3a9223a22785c6e227d",
);

#[test]
fn a_row_has_the_fixed_bytes_and_the_fixed_hash() {
    let tuples = two_rows();
    let hex: String = tuples[..220].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, FIRST_ROW_HEX);
    assert_eq!(tuples.len(), 220 + 146);
    assert_eq!(row_hash(&tuples), "9206b11b8060bfa0e2a17f80e57ae5b1");
    assert_eq!(row_hash(b""), "99aa06d3014798d86001c324468d497f");
}

#[test]
fn the_hash_does_not_depend_on_the_pieces() {
    let tuples = two_rows();
    let mut hasher = RowHasher::new();
    tuples.chunks(7).for_each(|piece| hasher.update(piece));
    assert_eq!(hasher.hex(), row_hash(&tuples));
}

#[test]
fn a_null_where_there_must_be_a_value_is_an_error() {
    let mut tuples = Vec::new();
    encode(&mut tuples, &coordinates(42), &plain("skip"), &types());
    // The length of interaction_type, and its four bytes taken out.
    tuples.splice(FIXED_LEN..FIXED_LEN + 8, NULL);
    let error = RowRef::parse(&tuples).unwrap_err();
    assert_eq!(error, RowError::Null { column: "interaction_type" });
}

#[test]
fn a_time_between_two_milliseconds_is_an_error() {
    let mut tuples = two_rows();
    for (at, column) in
        [(RECORDED_AT_AT, "recorded_at"), (OCCURRED_AT_AT, "occurred_at"), (INGESTED_AT_AT, "ingested_at")]
    {
        for micros in [1, -1, 999, i64::MAX, i64::MIN] {
            let mut changed = tuples.clone();
            changed[at..at + 8].copy_from_slice(&i64::to_be_bytes(micros));
            let error = Rows::new(&changed).next().unwrap().unwrap_err();
            assert_eq!(error, RowError::NotWholeMillisecond { column });
        }
    }
    tuples.push(0);
    assert_eq!(RowRef::parse(&tuples[..221]).unwrap_err(), RowError::TrailingBytes(1));
}

#[test]
fn after_an_error_there_is_no_next_row() {
    let tuples = two_rows();
    let mut rows = Rows::new(&tuples[..tuples.len() - 1]);
    assert_eq!(rows.next().unwrap().unwrap().offset(), 42);
    assert_eq!(rows.next(), Some(Err(RowError::Truncated)));
    assert_eq!(rows.next(), None);
}

#[test]
fn no_number_of_milliseconds_overflows() {
    for ms in [i64::MIN, i64::MAX, 0, -1] {
        let mut tuples = Vec::new();
        let at = Coordinates { recorded_at_ms: ms, ingested_at_ms: ms, ..coordinates(1) };
        encode(&mut tuples, &at, &Interaction { occurred_at_ms: ms, ..full() }, &types());
        assert!(RowRef::parse(&tuples).is_ok_and(|row| row.recorded_at_ms() == ms) == (ms.abs_diff(0) < 2));
        day_of_ms(ms);
        timestamp_text(ms);
    }
}

#[test]
fn days_are_utc_dates() {
    for (ms, text) in [
        (0, "1970-01-01"),
        (-1, "1969-12-31"),
        (86_399_999, "1970-01-01"),
        (951_782_400_000, "2000-02-29"),
        (1_767_225_599_999, "2025-12-31"),
        (1_767_225_600_000, "2026-01-01"),
    ] {
        let day = day_of_ms(ms);
        assert_eq!(day_text(day), text);
        assert_eq!(parse_day(text), Some(day));
        assert!((day_start_ms(day)..day_start_ms(day + 1)).contains(&ms));
    }
    for text in ["", "2026-1-01", "2026-02-30", "+2026-01-01", "2026-01-01 ", "20260101", "2026/01/01"] {
        assert_eq!(parse_day(text), None, "{text}");
    }
    for day in [i32::MIN, i32::MAX] {
        assert!(!day_text(day).is_empty());
    }
    assert_eq!(timestamp_text(1_767_225_599_999), "2025-12-31T23:59:59.999Z");
    assert_eq!(timestamp_text(1_767_225_600_000), "2026-01-01T00:00:00.000Z");
}

#[test]
fn rows_come_back_canonical_wherever_the_stream_is_cut() {
    let (stream, rows) = (copy_stream(), two_rows());
    for size in (1..=stream.len()).rev() {
        let (mut parser, mut out) = (CopyOutParser::new(), Vec::new());
        let counts: u64 = stream.chunks(size).map(|chunk| parser.push(chunk, &mut out).unwrap()).sum();
        assert_eq!(out, rows, "chunks of {size} bytes");
        assert_eq!((counts, parser.rows()), (2, 2));
        assert_eq!(parser.finish(), Ok(2));
    }
}

#[test]
fn a_stream_without_its_end_is_not_complete() {
    let stream = copy_stream();
    for length in 0..stream.len() {
        let (mut parser, mut out) = (CopyOutParser::new(), Vec::new());
        parser.push(&stream[..length], &mut out).unwrap();
        assert_eq!(parser.finish(), Err(RowError::Truncated), "{length} bytes");
    }
}

#[test]
fn a_stream_that_is_none_is_refused() {
    let push = |stream: &[u8]| CopyOutParser::new().push(stream, &mut Vec::new());
    let good = copy_stream();
    let changed = |at: usize, value: u8| {
        let mut stream = good.clone();
        stream[at] = value;
        push(&stream)
    };
    assert_eq!(changed(0, b'p'), Err(RowError::CopyHeader));
    assert_eq!(changed(12, 1), Err(RowError::CopyHeader), "with OIDs");
    assert_eq!(changed(15, 0x7f), Err(RowError::CopyHeader), "a header extension of 2 GB");
    assert_eq!(changed(20, 16), Err(RowError::FieldCount(16)));
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(push(&longer), Err(RowError::AfterCopyTrailer));
    // A length that would make the parser wait for a gigabyte.
    let type_length_at = COPY_HEADER.len() + FIXED_LEN;
    let error = RowError::Length { column: "interaction_type", length: 0x4000_0008 };
    assert_eq!(changed(type_length_at, 0x40), Err(error));
}

#[test]
fn metadata_that_this_worker_did_not_write_is_an_error() {
    let mut raw = Vec::new();
    let nested = Interaction { metadata: Some(r#"{"a": {"b": 1}}"#), ..full() };
    encode(&mut raw, &coordinates(1), &nested, &types());
    let mut out = Vec::new();
    assert!(matches!(canonical_from_postgres(&raw, &mut out), Err(RowError::Metadata(_))));
    assert!(out.is_empty());
}

/// The columns of a row that may be null, as the strategies give them.
type Optionals = (
    (Option<f64>, Option<f64>, Option<i32>, Option<u128>),
    (Option<String>, Option<String>, Option<String>, Option<String>),
);

fn optionals() -> impl Strategy<Value = Optionals> {
    let text = || proptest::option::of(any::<String>());
    let numbers = (any::<Option<f64>>(), any::<Option<f64>>(), any::<Option<i32>>(), any::<Option<u128>>());
    (numbers, (text(), text(), text(), text()))
}

proptest! {
    #[test]
    fn a_row_reads_as_what_was_written(
        (partition, offset) in any::<(i32, i64)>(),
        // Postgres's timestamps reach from 4713 BC to AD 294276.
        (recorded_at_ms, occurred_at_ms, ingested_at_ms) in
            (-200_000_000_000_000i64..9_000_000_000_000_000, 0i64..9_000_000_000_000, any::<u32>()),
        (user_id, video_id) in any::<(u128, u128)>(),
        name in proptest::sample::select(vec!["view", "like", "share", "comment", "follow", "complete", "skip"]),
        ((watch, score, position, event_id), (algorithm, variant, session, metadata)) in optionals(),
    ) {
        let ingested_at_ms = i64::from(ingested_at_ms);
        let at = Coordinates { partition, offset, recorded_at_ms, ingested_at_ms };
        let interaction = Interaction {
            user_id: Uuid::from_u128(user_id),
            video_id: Uuid::from_u128(video_id),
            interaction_type: type_id(name),
            occurred_at_ms,
            watch_time_seconds: watch,
            recommendation_score: score,
            position,
            event_id: event_id.map(Uuid::from_u128),
            algorithm: algorithm.as_deref(),
            experiment_variant_id: variant.as_deref(),
            feed_session_id: session.as_deref(),
            metadata: metadata.as_deref(),
        };
        let mut tuples = vec![0xaa];
        encode(&mut tuples, &at, &interaction, &types());
        let row = RowRef::parse(&tuples[1..]).unwrap();
        prop_assert_eq!(row.bytes(), &tuples[1..]);
        prop_assert_eq!((row.partition(), row.offset()), (partition, offset));
        prop_assert_eq!(row.recorded_at_ms(), recorded_at_ms);
        prop_assert_eq!(row.occurred_at_ms(), occurred_at_ms);
        prop_assert_eq!(row.ingested_at_ms(), ingested_at_ms);
        prop_assert_eq!((row.user_id(), row.video_id()), (interaction.user_id, interaction.video_id));
        prop_assert_eq!(row.interaction_type(), name);
        prop_assert_eq!(row.interaction_weight(), types().weight(type_id(name)));
        prop_assert_eq!(row.watch_time_seconds().map(f64::to_bits), watch.map(f64::to_bits));
        prop_assert_eq!(row.recommendation_score().map(f64::to_bits), score.map(f64::to_bits));
        prop_assert_eq!(row.position(), position);
        prop_assert_eq!(row.algorithm(), algorithm.as_deref());
        prop_assert_eq!(row.experiment_variant_id(), variant.as_deref());
        prop_assert_eq!(row.feed_session_id(), session.as_deref());
        prop_assert_eq!(row.event_id(), interaction.event_id);
        prop_assert_eq!(row.metadata(), metadata.as_deref());
    }

    #[test]
    fn changed_bytes_never_panic(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<proptest::sample::Index>(),
        chunk in 1usize..64,
    ) {
        let mut stream = copy_stream();
        for (at, value) in changes {
            let at = at.index(stream.len());
            stream[at] = value;
        }
        stream.truncate(cut.index(stream.len()) + 1);
        let (mut parser, mut out) = (CopyOutParser::new(), Vec::new());
        let _ = stream.chunks(chunk).try_for_each(|c| parser.push(c, &mut out).map(drop));
        // Whatever came out is rows.
        prop_assert_eq!(Rows::new(&out).filter(Result::is_ok).count() as u64, parser.rows());
        prop_assert!(Rows::new(&out).all(|row| row.is_ok()));
        let rows = Rows::new(&stream[COPY_HEADER.len().min(stream.len())..]);
        for row in rows.flatten() {
            let _ = canonical_from_postgres(row.bytes(), &mut out);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        Rows::new(&bytes).for_each(drop);
        let _ = CopyOutParser::new().push(&bytes, &mut Vec::new());
        let with_header = [COPY_HEADER, &bytes].concat();
        let _ = CopyOutParser::new().push(&with_header, &mut Vec::new());
    }
}
