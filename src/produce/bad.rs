//! Planted bad records: each breaks one rule, and says which in a header.

use super::avro;
use super::event::Event;
use super::generator::AvroSchemas;
use super::json::Object;

/// Header of a planted record: the reason for which it must be refused.
pub const PLANTED_REASON_HEADER: &str = "x-planted-reason";

/// The schema id of "a producer that never registered its schema".
const UNKNOWN_SCHEMA_ID: u32 = 2_000_000_007;

/// Above the worker's limit of 1 MiB. All the same letter, so that it costs the topic a few KB.
const LARGE_VALUE_BYTES: usize = (1 << 20) + 4096;

/// In how many rounds of planted records the large one comes once.
const LARGE_ONCE_IN_ROUNDS: u64 = 8;

macro_rules! kinds {
    ($($variant:ident = $text:literal,)+) => {
        /// What is wrong with a planted record; the names are the worker's reject reasons.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum BadKind { $($variant,)+ }

        impl BadKind {
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

kinds! {
    EmptyValue = "empty_value",
    Tombstone = "tombstone",
    BadFraming = "bad_framing",
    SchemaNotFound = "schema_not_found",
    SchemaIncompatible = "schema_incompatible",
    AvroMalformed = "avro_malformed",
    JsonMalformed = "json_malformed",
    JsonDuplicateKey = "json_duplicate_key",
    MissingField = "missing_field",
    WrongType = "wrong_type",
    BadUuid = "bad_uuid",
    UnknownInteractionType = "unknown_interaction_type",
    BadTimestamp = "bad_timestamp",
    OutOfRange = "out_of_range",
    BadString = "bad_string",
    MetadataTooLarge = "metadata_too_large",
    ValueTooLarge = "value_too_large",
}

impl BadKind {
    /// The kind of the `number`th bad record: each in turn, the large one seldom. Those that need a
    /// registry are left out where there is none.
    pub fn in_turn(number: u64, has_avro: bool) -> Self {
        let needs_avro = [Self::SchemaNotFound, Self::SchemaIncompatible, Self::AvroMalformed];
        let turns = || Self::ALL.iter().copied().filter(|kind| has_avro || !needs_avro.contains(kind));
        let length = turns().count() as u64;
        let (round, turn) = (number / length, number % length);
        match turns().nth(turn as usize) {
            Some(Self::ValueTooLarge) if round % LARGE_ONCE_IN_ROUNDS != 0 => Self::WrongType,
            Some(kind) => kind,
            None => Self::EmptyValue,
        }
    }
}

/// Replaces `value` by one that is bad in this way; false: there is no value at all. `number` picks
/// among the ways to be bad. Kinds that need a schema are given one.
pub fn write(
    kind: BadKind,
    number: u64,
    event: &Event,
    schemas: Option<&AvroSchemas>,
    value: &mut Vec<u8>,
) -> bool {
    value.clear();
    let number = number / BadKind::ALL.len() as u64;
    let in_avro = number % 2 == 1;
    match kind {
        BadKind::Tombstone => return false,
        BadKind::EmptyValue => {}
        BadKind::BadFraming => {
            let framings: [&[u8]; 4] = [b"\x01\x00\x00\x00\x01hello", b"\x00\x00\x01", b" {}", b"[]"];
            value.extend_from_slice(framings[number as usize % framings.len()]);
        }
        BadKind::SchemaNotFound => {
            avro::write_framing(UNKNOWN_SCHEMA_ID, value);
            value.extend_from_slice(b"\x02\x04\x06");
        }
        BadKind::SchemaIncompatible => {
            let id = schemas.map_or(UNKNOWN_SCHEMA_ID, |schemas| schemas.incompatible_id);
            avro::write_framing(id, value);
            value.extend_from_slice(b"\x54");
        }
        BadKind::AvroMalformed => write_malformed_avro(number, event, schemas, value),
        BadKind::BadUuid
        | BadKind::UnknownInteractionType
        | BadKind::WrongType
        | BadKind::MissingField
        | BadKind::JsonMalformed
        | BadKind::JsonDuplicateKey
        | BadKind::ValueTooLarge => write_json(kind, number, event, value),
        BadKind::BadTimestamp | BadKind::OutOfRange | BadKind::BadString | BadKind::MetadataTooLarge => {
            match schemas {
                Some(schemas) if in_avro => write_avro(kind, number, event, schemas, value),
                _ => write_json(kind, number, event, value),
            }
        }
    }
    true
}

/// The body ends too early, or goes on after its end.
fn write_malformed_avro(number: u64, event: &Event, schemas: Option<&AvroSchemas>, value: &mut Vec<u8>) {
    let Some(schemas) = schemas else { return };
    avro::write_framing(schemas.current_id, value);
    schemas.current.encode(event, value);
    if number.is_multiple_of(2) {
        value.truncate(5 + (value.len() - 5) / 2);
    } else {
        value.extend_from_slice(b"\x00trailing");
    }
}

/// Well-formed Avro that says something impossible.
fn write_avro(kind: BadKind, number: u64, event: &Event, schemas: &AvroSchemas, value: &mut Vec<u8>) {
    let mut event = event.clone();
    let third = number / 2 % 3;
    match kind {
        BadKind::BadTimestamp if third == 0 => event.occurred_at_ms = 0,
        BadKind::BadTimestamp => event.occurred_at_ms += 3 * 86_400_000 + 7 * 3_600_000,
        BadKind::OutOfRange => match third {
            0 => event.watch_time_seconds = Some(-0.5),
            1 => event.watch_time_seconds = Some(f64::INFINITY),
            _ => event.recommendation_score = Some(f64::NAN),
        },
        BadKind::BadString => match third {
            0 => event.algorithm = Some(""),
            1 => event.feed_session_id = Some("s".repeat(257)),
            _ => event.algorithm = Some("nul\0here"),
        },
        _ => event.metadata = Some(vec![("blob", "m".repeat(20_000))]),
    }
    avro::write_framing(schemas.current_id, value);
    schemas.current.encode(&event, value);
}

/// A JSON event with one thing wrong.
fn write_json(kind: BadKind, number: u64, event: &Event, value: &mut Vec<u8>) {
    let third = number % 3;
    let is = |this: BadKind, way: u64| kind == this && third == way;
    let user = event.user_id.to_string();
    let video = event.video_id.to_string();
    let mut object = Object::open(value);
    match third {
        0 if kind == BadKind::BadUuid => object.text("userId", "not-a-uuid"),
        1 if kind == BadKind::BadUuid => object.text("userId", &user.replace('-', "")),
        0 if kind == BadKind::WrongType => object.raw("userId", "42"),
        _ => object.text("userId", &user),
    }
    match third {
        2 if kind == BadKind::BadUuid => object.text("videoId", &format!("{video}0")),
        0 if kind == BadKind::MissingField => {}
        _ => object.text("videoId", &video),
    }
    if kind == BadKind::UnknownInteractionType {
        object.text("interactionType", ["purchase", "likes", "view "][third as usize]);
    } else if !is(BadKind::MissingField, 1) {
        object.text("interactionType", event.interaction_type);
    }
    match kind {
        BadKind::WrongType if third == 1 => object.text("watchTime", "12.5"),
        BadKind::OutOfRange if third == 1 => object.raw("watchTime", "-1"),
        _ => object.raw("watchTime", "7.5"),
    }
    match kind {
        BadKind::BadTimestamp if third == 0 => object.text("timestamp", "yesterday"),
        BadKind::BadTimestamp if third == 1 => object.raw("timestamp", "1"),
        BadKind::BadTimestamp => object.text("timestamp", "2026-02-30T12:00:00Z"),
        BadKind::MissingField if third == 2 => {}
        _ => object.raw("timestamp", &event.occurred_at_ms.to_string()),
    }
    match kind {
        BadKind::WrongType if third == 2 => object.raw("position", "true"),
        BadKind::OutOfRange => object.raw("position", ["-1", "3", "2147483648"][third as usize]),
        BadKind::BadString => object.text("algorithm", ["", &"a".repeat(257), "nul\0here"][third as usize]),
        BadKind::JsonDuplicateKey => object.raw("watchTime", "8.5"),
        BadKind::ValueTooLarge => object.text("comment", &"x".repeat(LARGE_VALUE_BYTES)),
        BadKind::MetadataTooLarge if third == 0 => {
            for entry in 0..65 {
                object.raw(&format!("key{entry}"), "1");
            }
        }
        BadKind::MetadataTooLarge => object.text("comment", &"x".repeat(20_000)),
        _ => {}
    }
    object.close();
    if kind == BadKind::JsonMalformed {
        match third {
            0 => value.truncate(value.len() - 9),
            1 => value.extend_from_slice(b"{}"),
            _ => value.splice(1..1, *b"userId:1,").for_each(drop),
        }
    }
}
