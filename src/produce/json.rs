//! Events as JSON, in the dialects that are met: camel and snake case scores, metadata at the top
//! level, ISO-8601 or epoch milliseconds, ids and types in upper case.

use std::io::Write;

use rand::Rng;
use rand::rngs::SmallRng;

use super::event::{Event, chance};

/// Appends one event. The dialect is drawn from `rng`.
pub fn encode(event: &Event, rng: &mut SmallRng, out: &mut Vec<u8>) {
    let shouts = chance(0.03, rng);
    let timestamp_form = rng.random_range(0..10);
    let score_place = rng.random_range(0..10);
    let spreads_metadata = chance(0.5, rng);
    let sends_nulls = chance(0.2, rng);
    let has_extras = chance(0.2, rng);

    let mut object = Object::open(out);
    let case = |text: &str| {
        if shouts { text.to_uppercase() } else { text.to_owned() }
    };
    object.text("userId", &case(&event.user_id.to_string()));
    object.text("videoId", &case(&event.video_id.to_string()));
    object.text("interactionType", &case(event.interaction_type));
    object.number("watchTime", event.watch_time_seconds, sends_nulls);
    write_timestamp(&mut object, event.occurred_at_ms, timestamp_form);
    if let Some(id) = event.event_id {
        object.text("eventId", &case(&id.to_string()));
    }
    let texts = [
        ("feedSessionId", event.feed_session_id.as_deref()),
        ("algorithm", event.algorithm),
        ("experimentVariantId", event.experiment_variant_id),
    ];
    for (key, value) in texts {
        match value {
            Some(value) => object.text(key, value),
            None if sends_nulls => object.raw(key, "null"),
            None => {}
        }
    }
    object.number("position", event.position, sends_nulls);
    let score_in_metadata = score_place == 9 && event.recommendation_score.is_some();
    match score_place {
        0..6 => object.number("recommendationScore", event.recommendation_score, sends_nulls),
        6..9 => object.number("recommendation_score", event.recommendation_score, false),
        _ => {}
    }
    if has_extras {
        object.raw("isMuted", "true");
        object.raw("batteryLevel", "0.50");
        object.raw("client", r#"{"os": "14.2", "locale":"pt-BR"}"#);
    }
    let entries = event.metadata.as_deref().unwrap_or_default();
    if spreads_metadata && !score_in_metadata {
        for (key, value) in entries {
            object.text(key, value);
        }
    } else if event.metadata.is_some() || score_in_metadata {
        let mut inner = Vec::new();
        let mut metadata = Object::open(&mut inner);
        for (key, value) in entries {
            metadata.text(key, value);
        }
        if let (true, Some(score)) = (score_in_metadata, event.recommendation_score) {
            // Metadata is a map of strings to many a client.
            metadata.text("recommendationScore", &score.to_string());
        }
        metadata.close();
        object.raw_bytes("metadata", &inner);
    }
    object.close();
}

fn write_timestamp(object: &mut Object<'_>, occurred_at_ms: i64, form: u32) {
    let utc = chrono::DateTime::from_timestamp_millis(occurred_at_ms).unwrap_or_default();
    match form {
        0..6 => object.text("timestamp", &utc.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()),
        6..9 => object.raw("timestamp", &occurred_at_ms.to_string()),
        _ => {
            let there = utc + chrono::TimeDelta::hours(2);
            object.text("timestamp", &there.format("%Y-%m-%dT%H:%M:%S%.3f+02:00").to_string());
        }
    }
}

/// A JSON object that is being written.
pub struct Object<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

impl<'o> Object<'o> {
    pub fn open(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, is_empty: true }
    }

    pub fn close(self) {
        self.out.push(b'}');
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        write_text(value, self.out);
    }

    /// `value` is JSON already.
    pub fn raw(&mut self, key: &str, value: &str) {
        self.raw_bytes(key, value.as_bytes());
    }

    pub fn raw_bytes(&mut self, key: &str, value: &[u8]) {
        self.key(key);
        self.out.extend_from_slice(value);
    }

    fn number(&mut self, key: &str, value: Option<impl std::fmt::Display>, sends_nulls: bool) {
        match value {
            Some(value) => self.raw(key, &value.to_string()),
            None if sends_nulls => self.raw(key, "null"),
            None => {}
        }
    }

    fn key(&mut self, key: &str) {
        if !self.is_empty {
            self.out.push(b',');
        }
        self.is_empty = false;
        write_text(key, self.out);
        self.out.push(b':');
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in text.as_bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..0x20 => {
                // Writing to a Vec cannot fail.
                let _ = write!(out, "\\u{byte:04x}");
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}
