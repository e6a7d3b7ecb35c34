//! apache-avro as a second opinion: slow, through its own `Value`, sharing no code with the decoder
//! under test beyond the parsing of schemas.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use feed_worker::event::{Decoder, Interaction, canonical_metadata};

/// The columns of one event.
#[derive(Debug, PartialEq)]
pub struct Columns {
    ids: [Option<String>; 3],
    interaction_type: String,
    occurred_at_ms: i64,
    /// By their bits.
    numbers: [Option<u64>; 2],
    position: Option<i32>,
    strings: [Option<String>; 3],
    metadata: Option<String>,
}

impl Columns {
    pub fn of(interaction: &Interaction<'_>, types: &Decoder) -> Self {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Self {
            ids: [
                Some(interaction.user_id.to_string()),
                Some(interaction.video_id.to_string()),
                interaction.event_id.map(|id| id.to_string()),
            ],
            interaction_type: types.types().name(interaction.interaction_type).to_owned(),
            occurred_at_ms: interaction.occurred_at_ms,
            numbers: [
                interaction.watch_time_seconds.map(f64::to_bits),
                interaction.recommendation_score.map(f64::to_bits),
            ],
            position: interaction.position,
            strings: [
                owned(interaction.feed_session_id),
                owned(interaction.algorithm),
                owned(interaction.experiment_variant_id),
            ],
            metadata: owned(interaction.metadata),
        }
    }

    /// Of a record that was resolved to the reader schema.
    pub fn of_record(record: &Value) -> Self {
        let field = |name: &str| field(record, name);
        Self {
            ids: ["userId", "videoId", "eventId"].map(|name| text(field(name)).map(lower)),
            interaction_type: lower(text(field("interactionType")).unwrap()),
            occurred_at_ms: match field("timestamp") {
                Some(Value::TimestampMillis(ms) | Value::Long(ms)) => ms,
                other => panic!("{other:?}"),
            },
            numbers: ["watchTime", "recommendationScore"].map(|name| match field(name) {
                None => None,
                Some(Value::Double(value)) => Some(value.to_bits()),
                other => panic!("{other:?}"),
            }),
            position: match field("position") {
                None => None,
                Some(Value::Int(value)) => Some(value),
                other => panic!("{other:?}"),
            },
            strings: ["feedSessionId", "algorithm", "experimentVariantId"].map(|name| text(field(name))),
            metadata: field("metadata").map(|map| canonical(&map)),
        }
    }
}

/// Decodes under the writer schema and resolves to the reader's.
pub fn decode(writer: &Schema, reader: &Schema, body: &[u8]) -> Result<Value, String> {
    let mut rest = body;
    let datum_reader = GenericDatumReader::builder(writer)
        .reader_schema(reader)
        .build()
        .map_err(|error| error.to_string())?;
    datum_reader.read_value(&mut rest).map_err(|error| error.to_string())
}

/// A field's value out of its union; `None` for null.
fn field(record: &Value, name: &str) -> Option<Value> {
    let Value::Record(fields) = record else { panic!("{record:?} is no record") };
    let (_, value) = fields.iter().find(|(known, _)| known == name).unwrap();
    match value {
        Value::Null => None,
        Value::Union(_, inner) if **inner == Value::Null => None,
        Value::Union(_, inner) => Some((**inner).clone()),
        other => Some(other.clone()),
    }
}

fn text(value: Option<Value>) -> Option<String> {
    value.map(|value| match value {
        Value::String(text) => text,
        Value::Uuid(uuid) => uuid.to_string(),
        other => panic!("{other:?} is no text"),
    })
}

fn lower(text: String) -> String {
    text.to_ascii_lowercase()
}

fn canonical(map: &Value) -> String {
    let Value::Map(map) = map else { panic!("{map:?} is no map") };
    let pairs = map.iter().map(|(key, value)| match value {
        Value::String(value) => (key.as_str(), value.as_str()),
        other => panic!("{other:?} is no string"),
    });
    let mut out = String::new();
    canonical_metadata(pairs, &mut out);
    out
}
