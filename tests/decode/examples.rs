//! Every file in `schemas/…/examples` does what its name says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use feed_worker::event::{Decoder, Interaction, RejectReason, Verdict};
use serde_json::{Value, json};

use crate::support::{RECORDED_AT_MS, decoder, read_schema, schemas};

/// One example: its name without extensions, and the value.
struct Example {
    file: String,
    name: String,
    value: Option<Vec<u8>>,
}

/// Reads the values of a folder and tells the decoder of the schemas that they name.
fn examples(folder: &str, decoder: &mut Decoder) -> Vec<Example> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(schemas().join("examples").join(folder)).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        if file.ends_with(".columns.json") || file == "fields.json" {
            continue;
        }
        let (name, value) = match file.strip_suffix(".value.json") {
            Some(name) => (name.to_owned(), described_value(&path, decoder)),
            None => {
                let name = file.strip_suffix(".json").unwrap().to_owned();
                (name, Some(std::fs::read(&path).unwrap()))
            }
        };
        found.push(Example { file, name, value });
    }
    found.sort_by(|a, b| a.file.cmp(&b.file));
    assert!(!found.is_empty());
    found
}

fn described_value(path: &Path, decoder: &mut Decoder) -> Option<Vec<u8>> {
    let described = read_json(path);
    if let Some(id) = described.get("schema_id") {
        let id = u32::try_from(id.as_u64().unwrap()).unwrap();
        match &described["schema"] {
            Value::Null => decoder.add_missing(id),
            Value::String(file) => decoder.add_schema(id, &read_schema(file)).unwrap(),
            // Some examples are there to be refused.
            inline => drop(decoder.add_schema(id, &inline.to_string())),
        }
    }
    let Some(value) = described.get("value_hex") else {
        assert!(described["value"].is_null());
        return None;
    };
    let mut value = unhex(value.as_str().unwrap());
    if let Some(pad) = described.get("pad_hex") {
        let count = described["pad_count"].as_u64().unwrap() as usize;
        value.extend(unhex(pad.as_str().unwrap()).repeat(count));
    }
    Some(value)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The columns that the decoder decides, as the examples have them.
fn columns(decoder: &Decoder, interaction: &Interaction<'_>) -> Value {
    let types = decoder.types();
    let occurred_at = iso8601(interaction.occurred_at_ms);
    json!({
        "user_id": interaction.user_id.to_string(),
        "video_id": interaction.video_id.to_string(),
        "interaction_type": types.name(interaction.interaction_type),
        "interaction_weight": types.weight(interaction.interaction_type),
        "occurred_at": occurred_at,
        "watch_time_seconds": interaction.watch_time_seconds,
        "recommendation_score": interaction.recommendation_score,
        "position": interaction.position,
        "algorithm": interaction.algorithm,
        "experiment_variant_id": interaction.experiment_variant_id,
        "feed_session_id": interaction.feed_session_id,
        "event_id": interaction.event_id.map(|id| id.to_string()),
        "metadata": interaction.metadata,
    })
}

/// All examples happened in the hour before Kafka's timestamp: a calendar is not needed.
fn iso8601(ms: i64) -> String {
    let since_eleven = ms - (RECORDED_AT_MS - 3_600_000);
    assert!((0..3_600_000).contains(&since_eleven));
    let (seconds, millis) = (since_eleven / 1000, since_eleven % 1000);
    format!("2026-01-15T11:{:02}:{:02}.{millis:03}Z", seconds / 60, seconds % 60)
}

#[test]
fn every_valid_example_becomes_the_columns_beside_it() {
    let mut decoder = decoder();
    let mut seen = BTreeSet::new();
    for example in examples("valid", &mut decoder) {
        let path = schemas().join(format!("examples/valid/{}.columns.json", example.name));
        let expected = read_json(&path);
        let same = decoder_like(&decoder);
        let verdict = decoder.decode(example.value.as_deref(), RECORDED_AT_MS);
        let Verdict::Accept(interaction) = verdict else {
            panic!("{}: {verdict:?}", example.file);
        };
        let found = columns(&same, &interaction);
        let (expected, found): (BTreeMap<_, _>, BTreeMap<_, _>) = (rows(expected), rows(found));
        assert_eq!(found, expected, "{}", example.file);
        seen.insert(example.name);
    }
    let columns = std::fs::read_dir(schemas().join("examples/valid"))
        .unwrap()
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_str().unwrap().ends_with(".columns.json")
        })
        .count();
    assert_eq!(columns, seen.len(), "columns without a value");
}

/// The interaction borrows the decoder that it came from; names and weights are asked of its like.
fn decoder_like(decoder: &Decoder) -> Decoder {
    Decoder::new(decoder.types().clone())
}

/// Numbers as doubles: `5` and `5.0` are the same column.
fn rows(value: Value) -> BTreeMap<String, Value> {
    let Value::Object(map) = value else { panic!("{value} is no object") };
    map.into_iter()
        .map(|(key, value)| match value.as_f64() {
            Some(number) => (key, json!(number)),
            None => (key, value),
        })
        .collect()
}

#[test]
fn every_invalid_example_is_rejected_for_the_reason_in_its_name() {
    let mut decoder = decoder();
    let fields = read_json(&schemas().join("examples/invalid/fields.json"));
    let mut reasons = BTreeSet::new();
    let mut files = BTreeSet::new();
    for example in examples("invalid", &mut decoder) {
        let verdict = decoder.decode(example.value.as_deref(), RECORDED_AT_MS);
        let Verdict::Reject(reject) = verdict else {
            panic!("{}: {verdict:?}", example.file);
        };
        let expected = example.name.split('.').next().unwrap();
        assert_eq!(reject.reason.as_str(), expected, "{}: {reject}", example.file);
        assert_eq!(reject.field, fields[&example.file].as_str(), "{}: {reject}", example.file);
        reasons.insert(reject.reason);
        files.insert(example.file);
    }
    let named: BTreeSet<String> = fields.as_object().unwrap().keys().cloned().collect();
    assert_eq!(named, files);
    // No value is known that the decoder accepts and Postgres refuses.
    let all = RejectReason::ALL.iter().copied();
    let expected: BTreeSet<_> = all.filter(|reason| *reason != RejectReason::RefusedByPostgres).collect();
    assert_eq!(reasons, expected, "a reason without an example");
}
