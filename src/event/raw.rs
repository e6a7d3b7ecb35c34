//! The fields of the reader schema, and what an event holds in them before any rule is applied.

use uuid::Uuid;

/// A field of the reader schema, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    UserId,
    VideoId,
    InteractionType,
    WatchTime,
    Timestamp,
    EventId,
    FeedSessionId,
    Algorithm,
    ExperimentVariantId,
    RecommendationScore,
    Position,
    Metadata,
}

/// What the reader wants of a field, as far as resolution is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Uuid,
    String,
    Double,
    Int,
    TimestampMillis,
    StringMap,
}

impl Field {
    pub const ALL: [Self; 12] = [
        Self::UserId,
        Self::VideoId,
        Self::InteractionType,
        Self::WatchTime,
        Self::Timestamp,
        Self::EventId,
        Self::FeedSessionId,
        Self::Algorithm,
        Self::ExperimentVariantId,
        Self::RecommendationScore,
        Self::Position,
        Self::Metadata,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::UserId => "userId",
            Self::VideoId => "videoId",
            Self::InteractionType => "interactionType",
            Self::WatchTime => "watchTime",
            Self::Timestamp => "timestamp",
            Self::EventId => "eventId",
            Self::FeedSessionId => "feedSessionId",
            Self::Algorithm => "algorithm",
            Self::ExperimentVariantId => "experimentVariantId",
            Self::RecommendationScore => "recommendationScore",
            Self::Position => "position",
            Self::Metadata => "metadata",
        }
    }

    /// The reader schema's aliases: other names that a writer schema may have for the field.
    pub const fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::RecommendationScore => &["recommendation_score"],
            _ => &[],
        }
    }

    pub const fn is_required(self) -> bool {
        matches!(self, Self::UserId | Self::VideoId | Self::InteractionType | Self::Timestamp)
    }

    pub const fn wanted(self) -> Wanted {
        match self {
            Self::UserId | Self::VideoId | Self::EventId => Wanted::Uuid,
            Self::InteractionType | Self::FeedSessionId | Self::Algorithm | Self::ExperimentVariantId => {
                Wanted::String
            }
            Self::WatchTime | Self::RecommendationScore => Wanted::Double,
            Self::Position => Wanted::Int,
            Self::Timestamp => Wanted::TimestampMillis,
            Self::Metadata => Wanted::StringMap,
        }
    }

    /// The other way round. (A `match` compares lengths first, and then words.)
    pub fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "userId" => Self::UserId,
            "videoId" => Self::VideoId,
            "interactionType" => Self::InteractionType,
            "watchTime" => Self::WatchTime,
            "timestamp" => Self::Timestamp,
            "eventId" => Self::EventId,
            "feedSessionId" => Self::FeedSessionId,
            "algorithm" => Self::Algorithm,
            "experimentVariantId" => Self::ExperimentVariantId,
            "recommendationScore" => Self::RecommendationScore,
            "position" => Self::Position,
            "metadata" => Self::Metadata,
            _ => return None,
        })
    }
}

/// What a field holds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum Raw<'v> {
    /// Not there, or null.
    #[default]
    Absent,
    Text(&'v str),
    Uuid(Uuid),
    Integer(i64),
    Double(f64),
    /// A JSON number as it was written.
    Number(&'v str),
    /// Something that no field of this kind may hold; the name of its type.
    Other(&'static str),
}

/// What each field holds; the entries of `metadata` are kept apart.
#[derive(Debug, Default)]
pub(super) struct RawEvent<'v> {
    /// In the order of [`Field::ALL`]. That of `metadata` is not used.
    values: [Raw<'v>; Field::ALL.len()],
    pub metadata: RawMetadata,
}

/// What became of `metadata`, beside its entries.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum RawMetadata {
    #[default]
    Absent,
    Entries,
    TooMany,
    Other(&'static str),
}

impl<'v> RawEvent<'v> {
    #[inline]
    pub fn get(&self, field: Field) -> Raw<'v> {
        self.values.get(field as usize).copied().unwrap_or_default()
    }

    /// `metadata` only says here that it is absent or of another type.
    #[inline]
    pub fn set(&mut self, field: Field, raw: Raw<'v>) {
        if field == Field::Metadata {
            self.metadata = match raw {
                Raw::Absent => RawMetadata::Absent,
                Raw::Other(found) => RawMetadata::Other(found),
                Raw::Text(_) => RawMetadata::Other("string"),
                _ => RawMetadata::Other("number"),
            };
        } else if let Some(value) = self.values.get_mut(field as usize) {
            *value = raw;
        }
    }
}

#[cfg(test)]
mod tests {
    use apache_avro::Schema;
    use apache_avro::schema::UuidSchema;

    use super::*;
    use crate::event::READER_SCHEMA_JSON;

    fn wanted(schema: &Schema) -> Wanted {
        match schema {
            Schema::Uuid(UuidSchema::String) => Wanted::Uuid,
            Schema::String => Wanted::String,
            Schema::Double => Wanted::Double,
            Schema::Int => Wanted::Int,
            Schema::TimestampMillis => Wanted::TimestampMillis,
            Schema::Map(map) if *map.types == Schema::String => Wanted::StringMap,
            Schema::Union(union) => match union.variants() {
                [Schema::Null, other] => wanted(other),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_fields_are_those_of_the_reader_schema() {
        let Schema::Record(reader) = Schema::parse_str(READER_SCHEMA_JSON).unwrap() else {
            panic!("no record")
        };
        assert_eq!(reader.fields.len(), Field::ALL.len());
        for (field, (index, known)) in reader.fields.iter().zip(Field::ALL.iter().enumerate()) {
            assert_eq!(*known as usize, index);
            assert_eq!(field.name, known.name());
            assert_eq!(Field::of_name(&field.name), Some(*known));
            assert_eq!(field.aliases, known.aliases(), "{}", field.name);
            assert_eq!(field.default.is_none(), known.is_required(), "{}", field.name);
            assert_eq!(wanted(&field.schema), known.wanted(), "{}", field.name);
        }
    }
}
