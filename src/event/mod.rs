//! Bytes in, an [`Interaction`] or a reason out. No I/O, no clock, no logging.
//!
//! What this module promises:
//!
//! 1. No input panics, recurses without a bound, or makes it allocate more than about its own size
//!    (whatever lengths it claims). Values above [`VALUE_BYTES_MAX`] are refused unread.
//! 2. An accepted interaction satisfies every limit of the table below, so that no later step can
//!    refuse the row. Nothing is decided by the worker's clock: the same record gets the same verdict
//!    at any time, on any worker.
//! 3. A rejected event names one reason of the bounded set [`RejectReason`], and the field if one is
//!    at fault. Structure is judged before values, and values in the order of the reader schema, so
//!    the reason does not depend on the order in which the fields were sent. Nothing of what the event
//!    says is repeated in the detail.
//! 4. After warm-up an accepted event costs no allocation, in Avro or in JSON.
//!
//! # Framing
//!
//! `00` and a 4-byte big-endian schema id: Avro. `{` as the very first byte: JSON. Anything else,
//! white space before the brace included, is `bad_framing`. No value at all is a `tombstone`; a value
//! of no bytes is `empty_value`.
//!
//! # Fields and limits
//!
//! | field | rule |
//! |---|---|
//! | `userId`, `videoId`, `eventId` | 36 characters, hyphenated, either case; in Avro also `fixed(16)` with logical type `uuid` |
//! | `interactionType` | one of [`InteractionTypes`], ASCII case ignored |
//! | `watchTime` | finite, ≥ 0 |
//! | `timestamp` | 2000-01-01T00:00:00Z to one day after Kafka's timestamp, both included; whatever is wrong with it is `bad_timestamp` |
//! | `feedSessionId`, `algorithm`, `experimentVariantId` | 1–256 bytes of UTF-8 without NUL |
//! | `recommendationScore` | finite |
//! | `position` | 0 … 2³¹−1; in JSON a number without a fraction (`3.0` is 3) |
//! | `metadata` | ≤ 64 entries, ≤ 16 KiB as canonical JSON, no NUL in any key or value; keys and values may be empty |
//!
//! A field that is null is absent. `metadata` is `None` exactly when the event has none (absent or
//! null) and nothing else lands there; an empty map that was sent stays an empty object.
//!
//! # JSON
//!
//! See [`json`] for how unknown keys, the three places of the score, and values that are no strings
//! are treated.
//!
//! # Avro
//!
//! See [`avro`] for how a writer schema is resolved, and which are refused.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing
    )
)]

pub mod avro;
mod interaction;
pub mod json;
mod metadata;
mod raw;
mod reject;
mod timestamp;
mod types;
mod uuid_text;
mod words;

use avro::{Registered, Schemas};

pub use avro::SchemaRefused;
pub use interaction::Interaction;
pub use metadata::{NotStringMap, canonical_metadata, recanonicalize};
pub use reject::{Reject, RejectReason};
pub use types::{InteractionTypes, TypeId};

/// Every writer schema is resolved to this one.
pub const READER_SCHEMA_JSON: &str = include_str!("../../schemas/feed.interactions.v1/interaction.avsc");

/// Version of [`READER_SCHEMA_JSON`]; it stands in the metadata of every exported file.
pub const SCHEMA_VERSION: &str = "2";

/// Larger and one record could hold up a batch; smaller and it could be less than the metadata limit
/// with every character escaped in the worst way, beside long but valid fields.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// What became of one record's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict<'a> {
    Accept(Interaction<'a>),
    Reject(Reject),
    /// Nothing is known of this schema id yet: look it up, tell the decoder, decode again.
    NeedSchema(u32),
}

/// Decodes values one at a time. Owns the known schemas and the scratch space of one event.
#[derive(Debug)]
pub struct Decoder {
    types: InteractionTypes,
    schemas: Schemas,
    scratch: Scratch,
}

/// Buffers that outlive the event, so that the next one finds them allocated.
#[derive(Debug, Default)]
struct Scratch {
    /// Entries of `metadata`, of an Avro event or ready to be written of a JSON one.
    entries: Vec<metadata::Entry<'static>>,
    json: json::Scratch,
    /// The canonical text that [`Interaction::metadata`] borrows.
    canonical: String,
}

impl Decoder {
    pub fn new(types: InteractionTypes) -> Self {
        Self { types, schemas: Schemas::default(), scratch: Scratch::default() }
    }

    pub fn types(&self) -> &InteractionTypes {
        &self.types
    }

    /// Resolves a writer schema once. A refused schema is remembered: its events are rejected as
    /// `schema_incompatible` until the id is forgotten or added again.
    pub fn add_schema(&mut self, id: u32, writer_schema_json: &str) -> Result<(), SchemaRefused> {
        match avro::compile(writer_schema_json) {
            Ok(plan) => {
                self.schemas.insert(id, Registered::Plan(plan));
                Ok(())
            }
            Err(refused) => {
                self.schemas.insert(id, Registered::Refused(refused.clone()));
                Err(refused)
            }
        }
    }

    /// The registry says for good that there is no such schema: its events are rejected as
    /// `schema_not_found`.
    pub fn add_missing(&mut self, id: u32) {
        self.schemas.insert(id, Registered::Missing);
    }

    /// The next event with this id asks for it again.
    pub fn forget(&mut self, id: u32) {
        self.schemas.remove(id);
    }

    /// `None` is a tombstone. `recorded_at_ms` is Kafka's timestamp.
    pub fn decode<'a>(&'a mut self, value: Option<&'a [u8]>, recorded_at_ms: i64) -> Verdict<'a> {
        match self.decode_value(value, recorded_at_ms) {
            Ok(interaction) => Verdict::Accept(interaction),
            Err(Refusal::Reject(reject)) => Verdict::Reject(reject),
            Err(Refusal::NeedSchema(id)) => Verdict::NeedSchema(id),
        }
    }

    #[inline(always)]
    fn decode_value<'a>(
        &'a mut self,
        value: Option<&'a [u8]>,
        recorded_at_ms: i64,
    ) -> Result<Interaction<'a>, Refusal> {
        let Some(value) = value else {
            return Err(Reject::new(RejectReason::Tombstone).into());
        };
        if value.len() > VALUE_BYTES_MAX {
            let detail = format!("{} bytes, at most {VALUE_BYTES_MAX}", value.len());
            return Err(Reject::new(RejectReason::ValueTooLarge).detail(detail).into());
        }
        let checks = interaction::Checks { types: &self.types, recorded_at_ms };
        match value {
            [] => Err(Reject::new(RejectReason::EmptyValue).into()),
            [b'{', ..] => Ok(json::decode(value, &checks, &mut self.scratch)?),
            [0, a, b, c, d, body @ ..] => {
                let id = u32::from_be_bytes([*a, *b, *c, *d]);
                match self.schemas.get(id) {
                    Some(Registered::Plan(plan)) => Ok(avro::decode(plan, body, &checks, &mut self.scratch)?),
                    Some(Registered::Refused(refused)) => {
                        let detail = format!("schema {id}: {refused}");
                        Err(Reject::new(RejectReason::SchemaIncompatible).detail(detail).into())
                    }
                    Some(Registered::Missing) => {
                        let detail = format!("schema {id} is not in the registry");
                        Err(Reject::new(RejectReason::SchemaNotFound).detail(detail).into())
                    }
                    None => Err(Refusal::NeedSchema(id)),
                }
            }
            [0, ..] => {
                let detail = format!("{} bytes are no schema id", value.len());
                Err(Reject::new(RejectReason::BadFraming).detail(detail).into())
            }
            [_, ..] => Err(Reject::new(RejectReason::BadFraming)
                .detail("first byte is neither 0x00 nor an opening brace")
                .into()),
        }
    }
}

/// Why there is no interaction (yet).
enum Refusal {
    Reject(Reject),
    NeedSchema(u32),
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        Self::Reject(reject)
    }
}
