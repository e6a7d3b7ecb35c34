//! Events as Avro. A writer schema is compiled once, against the reader schema, into a plan: for every
//! field of the writer either where its value goes, or how to step over it. Per event nothing is
//! looked up by name.
//!
//! Resolution follows the Avro specification:
//!
//! - fields are matched by name, else by the reader schema's aliases; their order does not matter. The
//!   name of the record itself does not either: the topic says what the record is.
//! - `int`, `long` and `float` are promoted, `bytes` and `string` stand for each other;
//! - a field that only the writer has is stepped over, whatever its type; one that only the reader has
//!   is absent, and if it is required the schema is refused;
//! - of a union the branch that was sent counts. Null is absent. A branch that the reader cannot take
//!   makes that event a `wrong_type`, the others are good; if no branch but null can be taken the
//!   schema is refused.
//!
//! A `uuid` may come as `fixed(16)` with that logical type. Logical types are otherwise ignored by the
//! specification; here a number that says of itself to be something else than what the reader wants
//! (microseconds, a date, a decimal) makes the schema refused: it would be read as nonsense.
//!
//! A body is accepted only if it is exactly what its schema says: no varint longer than it must be, no
//! negative length, nothing past the end, UTF-8 in every string (in those stepped over too), indices in
//! range, block sizes that are true, not one byte left over. The one leniency is that of the format:
//! a map may repeat a key, and the later entry counts.

mod cursor;
mod plan;
mod read;
mod skip;
mod types;

use std::fmt;

pub(super) use plan::{Plan, compile};
pub(super) use read::decode;

/// A writer schema that cannot be honoured, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaRefused(Box<str>);

impl SchemaRefused {
    /// A parser's error may repeat half the schema, and this text goes into a header of every dead
    /// letter: it is cut.
    fn new(why: impl Into<String>) -> Self {
        const BYTES_MAX: usize = 500;
        let mut why: String = why.into();
        if why.len() > BYTES_MAX {
            why.truncate(why.floor_char_boundary(BYTES_MAX));
            why.push('…');
        }
        Self(why.into())
    }
}

impl fmt::Display for SchemaRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SchemaRefused {}

/// What is known of a schema id.
#[derive(Debug)]
pub(super) enum Registered {
    Plan(Plan),
    Refused(SchemaRefused),
    Missing,
}

/// Sorted by id: a topic has a handful of writer schemas, and a search among them is cheaper than a hash.
#[derive(Debug, Default)]
pub(super) struct Schemas(Vec<(u32, Registered)>);

impl Schemas {
    pub fn get(&self, id: u32) -> Option<&Registered> {
        let at = self.0.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.0.get(at).map(|(_, registered)| registered)
    }

    pub fn insert(&mut self, id: u32, registered: Registered) {
        match self.0.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(at) => {
                if let Some(slot) = self.0.get_mut(at) {
                    *slot = (id, registered);
                }
            }
            Err(at) => self.0.insert(at, (id, registered)),
        }
    }

    pub fn remove(&mut self, id: u32) {
        self.0.retain(|(known, _)| *known != id);
    }
}
