//! Why an event is refused: a bounded set, so that it can be a metric's tag.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)+) => {
        /// The record's fault, never the world's or ours.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum RejectReason { $($(#[$doc])* $variant,)+ }

        impl RejectReason {
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

reasons! {
    /// A value of no bytes.
    EmptyValue = "empty_value",
    /// No value at all: the topic is not compacted, so there is nothing to delete.
    Tombstone = "tombstone",
    /// Neither the Confluent wire format nor a JSON object.
    BadFraming = "bad_framing",
    /// The registry says for good that there is no such schema.
    SchemaNotFound = "schema_not_found",
    /// The writer schema cannot be resolved to the reader schema.
    SchemaIncompatible = "schema_incompatible",
    /// The body is not what its writer schema says, to the last byte.
    AvroMalformed = "avro_malformed",
    /// Not one JSON object in UTF-8, or nested too deep.
    JsonMalformed = "json_malformed",
    /// A key twice in one object, at any level.
    JsonDuplicateKey = "json_duplicate_key",
    /// A required field is absent or null.
    MissingField = "missing_field",
    /// A field holds another type than it may.
    WrongType = "wrong_type",
    BadUuid = "bad_uuid",
    UnknownInteractionType = "unknown_interaction_type",
    /// Not a timestamp, or one before 2000 or more than a day ahead of Kafka's.
    BadTimestamp = "bad_timestamp",
    /// A number outside its limits.
    OutOfRange = "out_of_range",
    /// A string that is empty, too long, or holds NUL.
    BadString = "bad_string",
    /// Too many entries, or too long as canonical JSON.
    MetadataTooLarge = "metadata_too_large",
    ValueTooLarge = "value_too_large",
    /// Postgres refused the row all the same. Never said by the decoder.
    RefusedByPostgres = "refused_by_postgres",
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One refused event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    pub reason: RejectReason,
    /// As the event names it (`userId`), not the column.
    pub field: Option<&'static str>,
    /// For people. Positions, lengths and type names only: never what the event says, because this
    /// text goes to logs and headers that more people can read than the events.
    pub detail: Option<Box<str>>,
}

impl Reject {
    pub const fn new(reason: RejectReason) -> Self {
        Self { reason, field: None, detail: None }
    }

    #[must_use]
    pub fn field(mut self, field: &'static str) -> Self {
        self.field = Some(field);
        self
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<Box<str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.as_str())?;
        if let Some(field) = self.field {
            write!(f, " in {field}")?;
        }
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Reject {}
