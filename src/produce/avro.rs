//! A small Avro encoder for [`Event`], compiled from whatever schema it is given. It shares no code
//! with the worker's decoder, so that a mistake in one does not hide one in the other.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::event::Event;
use crate::event::{Interaction, InteractionTypes};

/// Writes events in the order and with the types of one schema.
#[derive(Debug, Clone)]
pub struct Encoder {
    fields: Vec<(Source, Shape)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Source {
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
    /// A field that no event has: always null.
    Nothing,
}

#[derive(Debug, Clone)]
enum Shape {
    Text,
    /// An enum's symbols.
    Symbol(Vec<String>),
    Uuid16,
    Double,
    Float,
    /// `int` and `long` are written alike.
    Integer,
    TextMap,
    Nullable {
        null_branch: i64,
        value_branch: i64,
        /// None: only ever null.
        value: Option<Box<Shape>>,
    },
}

impl Encoder {
    /// Errors: not a record schema, or a field that an event cannot fill.
    pub fn new(schema_json: &str) -> anyhow::Result<Self> {
        let schema: Value = serde_json::from_str(schema_json).context("the schema is not JSON")?;
        let fields = schema.get("fields").and_then(Value::as_array);
        let fields = fields.context("the schema is not a record with fields")?;
        let fields = fields
            .iter()
            .map(|field| {
                let name = field.get("name").and_then(Value::as_str).unwrap_or_default();
                let kind = field.get("type").context("a field without a type")?;
                compile_field(name, kind).with_context(|| format!("field `{name}`"))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { fields })
    }

    /// Appends the event's body, without framing.
    pub fn encode(&self, event: &Event, out: &mut Vec<u8>) {
        for (source, shape) in &self.fields {
            write_field(&content(*source, event), shape, out);
        }
    }

    /// As [`Encoder::encode`], of an event that was read. Errors: metadata that is no object of strings, which no
    /// accepted event has.
    pub fn encode_interaction(
        &self,
        event: &Interaction<'_>,
        types: &InteractionTypes,
        out: &mut Vec<u8>,
    ) -> anyhow::Result<()> {
        let metadata: Option<BTreeMap<String, String>> =
            event.metadata.map(serde_json::from_str).transpose().context("metadata")?;
        let entries: Option<Vec<(&str, String)>> = metadata
            .as_ref()
            .map(|entries| entries.iter().map(|(key, value)| (key.as_str(), value.clone())).collect());
        for (source, shape) in &self.fields {
            let content = match source {
                Source::InteractionType => Content::Text(types.name(event.interaction_type)),
                Source::Metadata => entries.as_deref().map_or(Content::Null, Content::Map),
                source => content_of_interaction(*source, event),
            };
            write_field(&content, shape, out);
        }
        Ok(())
    }
}

/// Starts a value of the Confluent wire format.
pub fn write_framing(schema_id: u32, out: &mut Vec<u8>) {
    out.push(0);
    out.extend_from_slice(&schema_id.to_be_bytes());
}

fn compile_field(name: &str, kind: &Value) -> anyhow::Result<(Source, Shape)> {
    let source = match name {
        "userId" => Source::UserId,
        "videoId" => Source::VideoId,
        "interactionType" => Source::InteractionType,
        "watchTime" => Source::WatchTime,
        "timestamp" => Source::Timestamp,
        "eventId" => Source::EventId,
        "feedSessionId" => Source::FeedSessionId,
        "algorithm" => Source::Algorithm,
        "experimentVariantId" => Source::ExperimentVariantId,
        "recommendationScore" => Source::RecommendationScore,
        "position" => Source::Position,
        "metadata" => Source::Metadata,
        _ => Source::Nothing,
    };
    if let Value::Array(branches) = kind {
        return Ok((source, compile_union(source, branches)?));
    }
    ensure!(source != Source::Nothing, "no event has it, and it cannot be null");
    let required = [Source::UserId, Source::VideoId, Source::InteractionType, Source::Timestamp];
    ensure!(required.contains(&source), "not every event has it, and it cannot be null");
    Ok((source, compile_shape(source, kind)?))
}

fn compile_union(source: Source, branches: &[Value]) -> anyhow::Result<Shape> {
    let null = branches.iter().position(|branch| branch == "null");
    let null = null.context("a union without null")?;
    let value =
        branches.iter().position(|branch| source != Source::Nothing && compile_shape(source, branch).is_ok());
    ensure!(value.is_some() || source == Source::Nothing, "no branch that fits");
    Ok(Shape::Nullable {
        null_branch: i64::try_from(null)?,
        value_branch: i64::try_from(value.unwrap_or(null))?,
        value: match value {
            Some(at) => Some(Box::new(compile_shape(source, &branches[at])?)),
            None => None,
        },
    })
}

fn compile_shape(source: Source, kind: &Value) -> anyhow::Result<Shape> {
    let name = kind.as_str().or_else(|| kind.get("type")?.as_str()).unwrap_or_default();
    let is_uuid = matches!(source, Source::UserId | Source::VideoId | Source::EventId);
    Ok(match (source, name) {
        (Source::WatchTime | Source::RecommendationScore, "double") => Shape::Double,
        (Source::WatchTime | Source::RecommendationScore, "float") => Shape::Float,
        (Source::Timestamp, "long") | (Source::Position, "int" | "long") => Shape::Integer,
        (Source::Metadata, "map") if kind.get("values").is_some_and(|v| v == "string") => Shape::TextMap,
        (_, "fixed") if is_uuid && kind.get("size").is_some_and(|size| size == 16) => Shape::Uuid16,
        (Source::InteractionType, "enum") => {
            let symbols = kind.get("symbols").and_then(Value::as_array);
            let symbols = symbols.context("an enum without symbols")?;
            let symbols = symbols.iter().filter_map(Value::as_str);
            Shape::Symbol(symbols.map(str::to_owned).collect())
        }
        (
            Source::WatchTime
            | Source::RecommendationScore
            | Source::Timestamp
            | Source::Position
            | Source::Metadata,
            _,
        ) => bail!("cannot write it as {kind}"),
        (_, "string") => Shape::Text,
        _ => bail!("cannot write it as {kind}"),
    })
}

/// What an event has in one field.
enum Content<'e> {
    Null,
    Text(&'e str),
    Uuid(uuid::Uuid),
    Double(f64),
    Integer(i64),
    Map(&'e [(&'e str, String)]),
}

fn content_of_interaction<'e>(source: Source, event: &Interaction<'e>) -> Content<'e> {
    let text = |text: Option<&'e str>| text.map_or(Content::Null, Content::Text);
    let double = |number: Option<f64>| number.map_or(Content::Null, Content::Double);
    match source {
        Source::UserId => Content::Uuid(event.user_id),
        Source::VideoId => Content::Uuid(event.video_id),
        Source::Timestamp => Content::Integer(event.occurred_at_ms),
        Source::WatchTime => double(event.watch_time_seconds),
        Source::RecommendationScore => double(event.recommendation_score),
        Source::EventId => event.event_id.map_or(Content::Null, Content::Uuid),
        Source::FeedSessionId => text(event.feed_session_id),
        Source::Algorithm => text(event.algorithm),
        Source::ExperimentVariantId => text(event.experiment_variant_id),
        Source::Position => event.position.map_or(Content::Null, |rank| Content::Integer(i64::from(rank))),
        Source::InteractionType | Source::Metadata | Source::Nothing => Content::Null,
    }
}

fn content(source: Source, event: &Event) -> Content<'_> {
    fn or_null<'e, T>(value: Option<T>, wrap: impl Fn(T) -> Content<'e>) -> Content<'e> {
        value.map_or(Content::Null, wrap)
    }
    match source {
        Source::UserId => Content::Uuid(event.user_id),
        Source::VideoId => Content::Uuid(event.video_id),
        Source::InteractionType => Content::Text(event.interaction_type),
        Source::Timestamp => Content::Integer(event.occurred_at_ms),
        Source::WatchTime => or_null(event.watch_time_seconds, Content::Double),
        Source::RecommendationScore => or_null(event.recommendation_score, Content::Double),
        Source::EventId => or_null(event.event_id, Content::Uuid),
        Source::FeedSessionId => or_null(event.feed_session_id.as_deref(), Content::Text),
        Source::Algorithm => or_null(event.algorithm, Content::Text),
        Source::ExperimentVariantId => or_null(event.experiment_variant_id, Content::Text),
        Source::Position => or_null(event.position, |p| Content::Integer(i64::from(p))),
        Source::Metadata => or_null(event.metadata.as_deref(), Content::Map),
        Source::Nothing => Content::Null,
    }
}

fn write_field(content: &Content<'_>, shape: &Shape, out: &mut Vec<u8>) {
    if let Shape::Nullable { null_branch, value_branch, value } = shape {
        match (content, value) {
            (Content::Null, _) | (_, None) => write_long(*null_branch, out),
            (_, Some(shape)) => {
                write_long(*value_branch, out);
                write_content(content, shape, out);
            }
        }
    } else {
        write_content(content, shape, out);
    }
}

/// Combinations that do not occur (see `compile_shape`) write nothing.
fn write_content(content: &Content<'_>, shape: &Shape, out: &mut Vec<u8>) {
    match (content, shape) {
        (Content::Text(text), Shape::Text) => write_text(text, out),
        (Content::Text(text), Shape::Symbol(symbols)) => {
            let at = symbols.iter().position(|symbol| symbol.eq_ignore_ascii_case(text));
            write_long(at.unwrap_or_default() as i64, out);
        }
        (Content::Uuid(id), Shape::Text) => {
            let mut buffer = uuid::Uuid::encode_buffer();
            write_text(id.hyphenated().encode_lower(&mut buffer), out);
        }
        (Content::Uuid(id), Shape::Uuid16) => out.extend_from_slice(id.as_bytes()),
        (Content::Double(number), Shape::Double) => out.extend_from_slice(&number.to_le_bytes()),
        (Content::Double(number), Shape::Float) => {
            out.extend_from_slice(&(*number as f32).to_le_bytes());
        }
        (Content::Integer(number), Shape::Integer) => write_long(*number, out),
        (Content::Map(entries), Shape::TextMap) => {
            if !entries.is_empty() {
                write_long(entries.len() as i64, out);
                for (key, value) in *entries {
                    write_text(key, out);
                    write_text(value, out);
                }
            }
            write_long(0, out);
        }
        _ => debug_assert!(false, "a shape that the field cannot have"),
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    write_long(text.len() as i64, out);
    out.extend_from_slice(text.as_bytes());
}

/// Zigzag, then 7 bits a byte.
fn write_long(number: i64, out: &mut Vec<u8>) {
    let mut left = ((number << 1) ^ (number >> 63)) as u64;
    while left >= 0x80 {
        out.push((left as u8) | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}
