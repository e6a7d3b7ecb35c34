//! The files in `schemas/` agree with each other.

use std::collections::{BTreeMap, BTreeSet};

use feed_worker::event::{READER_SCHEMA_JSON, SCHEMA_VERSION};
use serde_json::Value;

use crate::support::{read_schema, schemas};

fn avro_fields(schema: &str) -> BTreeMap<String, Value> {
    let schema: Value = serde_json::from_str(schema).unwrap();
    let fields = schema["fields"].as_array().unwrap();
    fields.iter().map(|field| (field["name"].as_str().unwrap().to_owned(), field.clone())).collect()
}

fn json_schema() -> Value {
    serde_json::from_str(&read_schema("interaction.schema.json")).unwrap()
}

/// What a JSON Schema of a field allows, as the JSON types' names.
fn json_types(schema: &Value, root: &Value) -> BTreeSet<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let definition = &root["$defs"][name.strip_prefix("#/$defs/").unwrap()];
        return json_types(definition, root);
    }
    if let Some(branches) = schema["oneOf"].as_array() {
        return branches.iter().flat_map(|b| json_types(b, root)).collect();
    }
    match &schema["type"] {
        Value::String(one) => BTreeSet::from([one.clone()]),
        Value::Array(many) => many.iter().map(|t| t.as_str().unwrap().to_owned()).collect(),
        other => panic!("no type in {schema}: {other}"),
    }
}

/// The JSON types that carry an Avro type.
fn json_types_of_avro(schema: &Value) -> BTreeSet<String> {
    let names: &[&str] = match schema {
        Value::Array(branches) => {
            return branches.iter().flat_map(json_types_of_avro).collect();
        }
        Value::Object(map) if map.get("logicalType") == Some(&"timestamp-millis".into()) => {
            &["integer", "string"]
        }
        Value::Object(map) => return json_types_of_avro(&map["type"]),
        Value::String(name) => match name.as_str() {
            "null" => &["null"],
            "string" => &["string"],
            "double" => &["number"],
            "int" => &["integer"],
            "map" => &["object"],
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    };
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn avro_and_json_have_the_same_fields_and_types() {
    let schema = json_schema();
    let properties = schema["properties"].as_object().unwrap();
    let avro = avro_fields(READER_SCHEMA_JSON);
    let mut names: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
    assert!(names.remove("recommendation_score"), "the score's other name");
    assert_eq!(names, avro.keys().map(String::as_str).collect());
    for (name, field) in &avro {
        assert_eq!(json_types(&properties[name], &schema), json_types_of_avro(&field["type"]), "{name}");
    }
    // The other name of the score is Avro's alias.
    let aliases = avro["recommendationScore"]["aliases"].as_array().unwrap();
    assert_eq!(*aliases, ["recommendation_score"]);
}

#[test]
fn avro_and_json_require_the_same_fields() {
    let schema = json_schema();
    let in_json: BTreeSet<&str> =
        schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let avro = avro_fields(READER_SCHEMA_JSON);
    let in_avro: BTreeSet<&str> = avro
        .iter()
        .filter(|(_, field)| field.get("default").is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(in_json, in_avro);
}

#[test]
fn an_optional_field_is_null_unless_it_is_sent() {
    for (name, field) in avro_fields(READER_SCHEMA_JSON) {
        if let Some(default) = field.get("default") {
            assert!(default.is_null(), "{name}");
            assert_eq!(field["type"][0], "null", "{name}");
        }
    }
}

#[test]
fn version_2_can_read_version_1() {
    let old = avro_fields(&read_schema("interaction.v1.avsc"));
    let new = avro_fields(READER_SCHEMA_JSON);
    for (name, field) in &old {
        assert_eq!(field["type"], new[name]["type"], "{name}");
    }
    for (name, field) in &new {
        assert!(old.contains_key(name) || field.get("default").is_some(), "{name}");
    }
}

#[test]
fn the_version_is_the_one_that_the_reader_schema_names() {
    let schema: Value = serde_json::from_str(READER_SCHEMA_JSON).unwrap();
    let doc = schema["doc"].as_str().unwrap();
    assert!(doc.contains(&format!("Version {SCHEMA_VERSION}.")), "{doc}");
    let id = json_schema()["$id"].as_str().unwrap().to_owned();
    assert!(id.ends_with(&format!(":{SCHEMA_VERSION}")), "{id}");
}

#[test]
fn the_manifest_schema_is_json_and_requires_what_it_names() {
    let path = schemas().parent().unwrap().join("manifest.schema.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for part in [
        &schema,
        &schema["$defs"]["file"],
        &schema["properties"]["partitions"]["items"],
        &schema["properties"]["gaps"]["items"],
    ] {
        let required: BTreeSet<&str> =
            part["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let named: BTreeSet<&str> =
            part["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(required, named);
        assert_eq!(part["additionalProperties"], false);
    }
}
