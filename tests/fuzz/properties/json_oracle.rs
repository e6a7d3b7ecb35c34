//! serde_json as a second opinion on JSON events, with the rules of `feed_worker::event::json` written a
//! second time, over its values.

use chrono::{DateTime, NaiveDateTime};
use feed_worker::event::{Decoder, Interaction};
use serde_json::{Map, Value};

const FIELDS: [&str; 12] = [
    "userId",
    "videoId",
    "interactionType",
    "watchTime",
    "timestamp",
    "eventId",
    "feedSessionId",
    "algorithm",
    "experimentVariantId",
    "recommendationScore",
    "position",
    "metadata",
];

/// Refused as malformed: serde_json finds so too, unless it is only the depth.
pub fn assert_malformed(input: &[u8]) {
    // serde_json allows 127 levels, we 32: whether it is deep is counted here.
    if serde_json::from_slice::<Value>(input).is_ok_and(|value| depth(&value) <= 32) {
        panic!("refused as malformed, but serde_json reads it");
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// What was accepted has the members that serde_json sees.
pub fn agree(input: &[u8], event: &Interaction<'_>, decoder: &Decoder) {
    let mut sent: Map<String, Value> = match serde_json::from_slice(input) {
        Ok(sent) => sent,
        // It gives every number a value; in metadata a number is only a text to us.
        Err(error) if error.to_string().contains("number out of range") => return,
        Err(error) => panic!("accepted, but serde_json says: {error}"),
    };
    let mut take = |name: &str| sent.shift_remove(name).filter(|value| !value.is_null());
    let [user, video, kind, watch, time, event_id, session, algorithm, variant, score, position, metadata] =
        FIELDS.map(&mut take);
    let snake_case = take("recommendation_score");

    let id = |value: Option<Value>| value.map(|value| value.as_str().unwrap().to_ascii_lowercase());
    assert_eq!(id(user), Some(event.user_id.to_string()));
    assert_eq!(id(video), Some(event.video_id.to_string()));
    assert_eq!(id(event_id), event.event_id.map(|id| id.to_string()));
    assert_eq!(id(kind).as_deref(), Some(decoder.types().name(event.interaction_type)));
    same_text(session.as_ref(), event.feed_session_id);
    same_text(algorithm.as_ref(), event.algorithm);
    same_text(variant.as_ref(), event.experiment_variant_id);
    same_time(&time.unwrap(), event.occurred_at_ms);
    same_number(watch.as_ref(), event.watch_time_seconds);
    same_number(position.as_ref(), event.position.map(f64::from));

    let had_metadata = metadata.is_some();
    let mut inside = match metadata {
        None => Map::new(),
        Some(Value::Object(members)) => members,
        Some(other) => panic!("{other} was accepted as metadata"),
    };
    let score = match (score, snake_case) {
        (Some(score), snake_case) => {
            // The second score is an entry like any other.
            if let Some(value) = snake_case {
                sent.insert("recommendation_score".to_owned(), value);
            }
            Some(score)
        }
        (None, Some(score)) => Some(score),
        (None, None) => ["recommendationScore", "recommendation_score"].iter().find_map(|name| {
            let found = inside.get(*name).is_some_and(|value| !value.is_null());
            found.then(|| inside.shift_remove(*name)).flatten().map(|value| match value {
                Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::Null),
                other => other,
            })
        }),
    };
    // A number as text may be one that serde_json gives no value.
    if score != Some(Value::Null) {
        same_number(score.as_ref(), event.recommendation_score);
    }

    let mut entries = sent;
    entries.extend(inside);
    match event.metadata {
        None => assert!(entries.is_empty() && !had_metadata, "entries are lost"),
        Some(text) => same_entries(&entries, &serde_json::from_str(text).unwrap()),
    }
}

fn same_text(sent: Option<&Value>, read: Option<&str>) {
    assert_eq!(sent.map(|value| value.as_str().unwrap()), read);
}

/// serde_json's doubles may be off by one in the last place.
fn same_number(sent: Option<&Value>, read: Option<f64>) {
    let sent = sent.map(|value| value.as_f64().unwrap());
    let same = match (sent, read) {
        (None, None) => true,
        (Some(a), Some(b)) => (a - b).abs() <= a.abs() * 1e-15 + 1e-320,
        _ => false,
    };
    assert!(same, "{sent:?} was sent, {read:?} was read");
}

fn same_time(sent: &Value, read_ms: i64) {
    let expected = match sent {
        Value::Number(number) => number.as_i64().or(number.as_f64().map(|ms| ms as i64)),
        Value::String(text) => time_of(text),
        other => panic!("{other} was accepted as a time"),
    };
    // Not every form that is taken is known to chrono.
    if let Some(expected) = expected {
        assert_eq!(expected, read_ms, "{sent}");
    }
}

fn time_of(text: &str) -> Option<i64> {
    let text = text.to_ascii_uppercase().replace(',', ".").replacen(' ', "T", 1);
    let with_zone =
        DateTime::parse_from_str(&text, "%Y-%m-%dT%H:%M:%S%.f%#z").map(|time| time.timestamp_millis());
    let bare = text.trim_end_matches('Z');
    let without = || {
        NaiveDateTime::parse_from_str(bare, "%Y-%m-%dT%H:%M:%S%.f").map(|t| t.and_utc().timestamp_millis())
    };
    with_zone.or_else(|_| without()).ok()
}

fn same_entries(sent: &Map<String, Value>, read: &Map<String, Value>) {
    assert_eq!(sent.len(), read.len(), "entries were lost or added");
    for (key, value) in sent {
        let text = read.get(key).and_then(Value::as_str).unwrap_or_else(|| panic!("{key} is lost"));
        match value {
            Value::String(value) => assert_eq!(value, text),
            value => assert_eq!(*value, serde_json::from_str::<Value>(text).unwrap()),
        }
    }
}
