//! topics.yaml, Avro schema, JSON Schema, table, export, AsyncAPI document and the producers' page say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use arrow::datatypes::{DataType, TimeUnit};
use feed_worker::event::{READER_SCHEMA_JSON, RejectReason, Verdict};
use feed_worker::export::file::arrow_schema;
use feed_worker::subjects::compare::unreadable;
use feed_worker::topics::{Compatibility, Contract, Setting, Topic};
use serde_json::{Value, json};

use crate::support::{RECORDED_AT_MS, decoder, read_schema, schemas};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn topics() -> Vec<Topic> {
    Contract::parse(&read("topics.yaml")).unwrap().topics(None).unwrap()
}

fn avro_fields() -> Vec<Value> {
    let schema: Value = serde_json::from_str(READER_SCHEMA_JSON).unwrap();
    schema["fields"].as_array().unwrap().clone()
}

/// What a field is, whatever the language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Uuid,
    Text,
    Double,
    Timestamp,
    Integer,
    Map,
}

fn kind_of_avro(schema: &Value) -> (Kind, bool) {
    if let Value::Array(branches) = schema {
        assert_eq!(branches[0], "null");
        return (kind_of_avro(&branches[1]).0, true);
    }
    let logical = schema.get("logicalType").and_then(Value::as_str).unwrap_or_default();
    let name = schema.as_str().or_else(|| schema["type"].as_str()).unwrap();
    let kind = match (name, logical) {
        ("string", "uuid") => Kind::Uuid,
        ("string", "") => Kind::Text,
        ("double", "") => Kind::Double,
        ("long", "timestamp-millis") => Kind::Timestamp,
        ("int", "") => Kind::Integer,
        ("map", "") => Kind::Map,
        other => panic!("{other:?}"),
    };
    (kind, false)
}

/// The column of a field: snake case, and the unit where a bare name would lack it.
fn column(field: &str) -> String {
    match field {
        "watchTime" => return "watch_time_seconds".to_owned(),
        "timestamp" => return "occurred_at".to_owned(),
        _ => {}
    }
    field.chars().fold(String::new(), |mut name, letter| {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
        name
    })
}

/// Columns that say where a record lay and what the worker made of it.
const NOT_OF_THE_EVENT: [&str; 5] =
    ["kafka_partition", "kafka_offset", "recorded_at", "ingested_at", "interaction_weight"];

/// Type and nullability of each column that the migrations leave behind.
fn columns_of_table() -> BTreeMap<String, (String, bool)> {
    let sql = read("src/postgres/migrations/0001_interactions.sql");
    let body = sql.split_once("CREATE TABLE user_interactions (").unwrap().1;
    let body = body.split_once("PRIMARY KEY").unwrap().0;
    body.lines()
        .map(|line| line.split("--").next().unwrap_or_default().trim().trim_end_matches(','))
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let is_nullable = !kind.contains("NOT NULL");
            (name.to_owned(), (kind.replace("NOT NULL", "").trim().to_owned(), is_nullable))
        })
        .collect()
}

#[test]
fn table_and_export_have_the_events_fields() {
    let (table, export) = (columns_of_table(), arrow_schema());
    let mut left: BTreeSet<String> = table.keys().cloned().collect();
    for field in avro_fields() {
        let name = field["name"].as_str().unwrap();
        let (kind, is_nullable) = kind_of_avro(&field["type"]);
        let (sql, arrow) = match kind {
            Kind::Uuid => ("uuid", DataType::Utf8),
            Kind::Text => ("text", DataType::Utf8),
            Kind::Double => ("double precision", DataType::Float64),
            Kind::Timestamp => {
                ("timestamptz", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())))
            }
            Kind::Integer => ("integer", DataType::Int32),
            Kind::Map => ("jsonb", DataType::Utf8),
        };
        let column = column(name);
        assert_eq!(table.get(&column), Some(&(sql.to_owned(), is_nullable)), "{name} in the table");
        let exported = export.field_with_name(&column).unwrap_or_else(|_| panic!("{name} is not exported"));
        assert_eq!(
            (exported.data_type(), exported.is_nullable()),
            (&arrow, is_nullable),
            "{name} in the export"
        );
        left.remove(&column);
    }
    assert_eq!(left, NOT_OF_THE_EVENT.iter().map(|&name| name.to_owned()).collect());
    let exported: BTreeSet<String> = export.fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(exported, table.keys().cloned().collect());
}

/// An event with one field changed, as JSON.
fn with(field: &str, value: Value) -> Vec<u8> {
    let mut event = json!({
        "userId": "6f1c2a80-5d0e-4a55-9c3b-0a1d6f3e7b21",
        "videoId": "c0ffee00-1234-4abc-8def-0123456789ab",
        "interactionType": "view",
        "timestamp": RECORDED_AT_MS,
    });
    event[field] = value;
    serde_json::to_vec(&event).unwrap()
}

fn is_accepted(value: &[u8]) -> bool {
    matches!(decoder().decode(Some(value), RECORDED_AT_MS), Verdict::Accept(_))
}

#[test]
fn the_limits_of_the_json_schema_are_the_decoders() {
    let schema: Value = serde_json::from_str(&read_schema("interaction.schema.json")).unwrap();
    let number = |value: &Value| value.as_i64().unwrap();
    let text = &schema["$defs"]["optionalString"];
    let (shortest, longest) = (number(&text["minLength"]) as usize, number(&text["maxLength"]) as usize);
    for field in ["feedSessionId", "algorithm", "experimentVariantId"] {
        assert_eq!(schema["properties"][field]["$ref"], "#/$defs/optionalString");
        assert!(
            is_accepted(&with(field, json!("x".repeat(shortest))))
                && is_accepted(&with(field, json!("x".repeat(longest))))
        );
        assert!(!is_accepted(&with(field, json!("x".repeat(shortest - 1)))), "{field}");
        assert!(!is_accepted(&with(field, json!("x".repeat(longest + 1)))), "{field}");
    }
    let position = &schema["properties"]["position"];
    let (least, most) = (number(&position["minimum"]), number(&position["maximum"]));
    assert!(is_accepted(&with("position", json!(least))) && is_accepted(&with("position", json!(most))));
    assert!(
        !is_accepted(&with("position", json!(least - 1))) && !is_accepted(&with("position", json!(most + 1)))
    );
    let least = number(&schema["properties"]["watchTime"]["minimum"]) as f64;
    assert!(
        is_accepted(&with("watchTime", json!(least)))
            && !is_accepted(&with("watchTime", json!(least - 0.001)))
    );
    let earliest = number(&schema["properties"]["timestamp"]["oneOf"][1]["minimum"]);
    assert!(
        is_accepted(&with("timestamp", json!(earliest)))
            && !is_accepted(&with("timestamp", json!(earliest - 1)))
    );
    // One entry more than is kept: the score may be among them, and leaves.
    let most = number(&schema["properties"]["metadata"]["maxProperties"]);
    let entries = |count: i64| -> serde_json::Map<String, Value> {
        (0..count).map(|n| (format!("k{n}"), json!("v"))).collect()
    };
    let mut with_score = entries(most - 1);
    with_score.insert("recommendationScore".to_owned(), json!(0.5));
    assert_eq!(with_score.len() as i64, most);
    assert!(is_accepted(&with("metadata", with_score.into())));
    assert!(!is_accepted(&with("metadata", entries(most).into())));
}

#[test]
fn the_contract_names_what_is_here() {
    let topics = topics();
    let source = &topics[0];
    let schema = source.value.schema.as_deref().unwrap();
    assert_eq!(read(schema), READER_SCHEMA_JSON);
    assert!(root().join(source.value.examples.as_deref().unwrap()).join("valid").is_dir());
    assert_eq!(source.value.subject.as_deref(), Some(&*format!("{}-value", source.name)));
    let key = avro_fields().into_iter().find(|field| field["name"] == source.key.field.as_str()).unwrap();
    assert_eq!(kind_of_avro(&key["type"]), (Kind::Uuid, false), "the key is required");
    // Every committed version goes with every other, both ways.
    assert_eq!(source.value.compatibility, Some(Compatibility::FullTransitive));
    let versions = ["interaction.v1.avsc", "interaction.avsc"]
        .map(|name| apache_avro::Schema::parse_str(&read_schema(name)).unwrap());
    for writer in &versions {
        for reader in &versions {
            assert_eq!(unreadable(writer, reader), Vec::<String>::new());
        }
    }
}

#[test]
fn the_asyncapi_document_says_what_topics_yaml_says() {
    let document: Value = serde_yaml::from_str(&read("schemas/feed.interactions.v1/asyncapi.yaml")).unwrap();
    let topics = topics();
    for (channel, topic) in ["interactions", "deadLetters"].into_iter().zip(&topics) {
        let channel = &document["channels"][channel];
        let kafka = &channel["bindings"]["kafka"];
        assert_eq!((&channel["address"], &kafka["topic"]), (&json!(topic.name), &json!(topic.name)));
        assert_eq!(kafka["partitions"], topic.partitions);
        assert_eq!(kafka["replicas"], topic.replication);
        for (key, value) in kafka["topicConfiguration"].as_object().unwrap() {
            let text = match value {
                Value::Array(parts) => parts[0].as_str().unwrap().to_owned(),
                other => other.to_string(),
            };
            assert_eq!(topic.config.0.get(key), Some(&Setting(text)), "{key}");
        }
    }
    assert_eq!(document["info"]["contact"]["name"], topics[0].owner.as_str());
    let reads = &document["operations"]["receiveInteraction"]["bindings"]["kafka"]["groupId"]["const"];
    assert_eq!(topics[0].consumers, [reads.as_str().unwrap()]);

    let messages = &document["components"]["messages"];
    for (message, file) in [
        (&messages["interactionJson"]["payload"], "./interaction.schema.json"),
        (&messages["interactionAvro"]["payload"]["schema"], "./interaction.avsc"),
    ] {
        assert_eq!(message["$ref"], file);
        assert!(schemas().join(file).is_file());
    }
    for example in messages["interactionJson"]["examples"].as_array().unwrap() {
        assert!(is_accepted(&serde_json::to_vec(&example["payload"]).unwrap()), "{example}");
    }
    let reasons = &messages["deadLetter"]["headers"]["properties"]["feed_worker.reject.reason"]["enum"];
    let known: Vec<Value> = RejectReason::ALL.iter().map(|reason| json!(reason.as_str())).collect();
    assert_eq!(*reasons, Value::Array(known));
    every_reference_leads_somewhere(&document, &document);
}

fn every_reference_leads_somewhere(part: &Value, document: &Value) {
    match part {
        Value::Object(map) => {
            if let Some(pointer) =
                map.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix('#'))
            {
                assert!(document.pointer(pointer).is_some(), "{pointer}");
            }
            map.values().for_each(|value| every_reference_leads_somewhere(value, document));
        }
        Value::Array(list) => list.iter().for_each(|value| every_reference_leads_somewhere(value, document)),
        _ => {}
    }
}

/// The blocks of a page with one of these marks.
fn blocks(page: &str, mark: &str) -> Vec<String> {
    let opening = format!("```{mark}\n");
    page.split(&opening).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_producers_page_is_true() {
    let page = read("docs/producing.md");
    // Its table has the event's fields, in their order, and says which must be there.
    let described: Vec<(String, bool)> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.len() == 7)
        .map(|cells| (cells[1].trim_matches('`').to_owned(), cells[4] == "yes"))
        .collect();
    let fields: Vec<(String, bool)> = avro_fields()
        .iter()
        .map(|field| (field["name"].as_str().unwrap().to_owned(), !kind_of_avro(&field["type"]).1))
        .collect();
    assert_eq!(described, fields);

    // Its two examples are one event.
    let json = blocks(&page, "json").remove(0).trim().to_owned();
    let hex: String = blocks(&page, "hex").remove(0).split_whitespace().collect();
    let avro: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    let read = |value: &[u8]| {
        let mut decoder = decoder();
        decoder.add_schema(2, READER_SCHEMA_JSON).unwrap();
        match decoder.decode(Some(value), RECORDED_AT_MS) {
            Verdict::Accept(event) => format!("{event:?}"),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(read(json.as_bytes()), read(&avro));

    // librdkafka knows the settings, and takes their values.
    let mut config = rdkafka::ClientConfig::new();
    for block in blocks(&page, "properties") {
        for line in block.lines() {
            let (key, value) = line.split_once('=').unwrap();
            config.set(key, value);
        }
        config.create::<rdkafka::producer::BaseProducer>().unwrap();
    }
    assert_eq!(config.get("enable.idempotence"), Some("true"));
    assert_eq!(config.get("sasl.mechanism"), Some("OAUTHBEARER"));
}
