//! The plan against apache-avro's resolution, over generated writer schemas: fields added, removed,
//! reordered, promoted, defaulted, aliased, in unions of any order, beside types of every kind that the
//! reader knows nothing of.
//!
//! Where apache-avro 0.22 does less or more than the specification, the second opinion is asked
//! accordingly: it does not apply aliases (so the writer's field is renamed for it, which is what the
//! specification says that aliases mean), and it does not promote bytes to a string that has the logical
//! type uuid (so its reader schema leaves the logical type out, which changes nothing else).

use std::collections::BTreeMap;

use apache_avro::Schema;
use apache_avro::writer::datum::GenericDatumWriter;
use feed_worker::event::{READER_SCHEMA_JSON, RejectReason, Verdict};
use serde_json::{Value as Json, json};

use crate::oracle::{self, Columns};
use crate::support::{RECORDED_AT_MS, Random, decoder};
use crate::writer::{Field, Kind, generate, record, schema_json};

const WRITER_SCHEMAS: u64 = 3_000;
const EVENTS_OF_EACH: usize = 4;

/// The reader schema for the second opinion: without `uuid` where the writer sends bytes.
fn reader_for(fields: &[Field]) -> Schema {
    let mut reader: Json = serde_json::from_str(READER_SCHEMA_JSON).unwrap();
    for field in fields {
        let sends_bytes = field.branches.iter().any(|branch| matches!(branch.value, Kind::IdBytes));
        let Some(name) = field.reader_name.filter(|_| sends_bytes) else {
            continue;
        };
        let known = reader["fields"].as_array_mut().unwrap();
        let known = known.iter_mut().find(|known| known["name"] == name).unwrap();
        known["type"] = match &known["type"] {
            Json::Array(_) => json!(["null", "string"]),
            _ => json!("string"),
        };
    }
    Schema::parse_str(&reader.to_string()).unwrap()
}

#[test]
fn resolves_generated_writer_schemas_as_apache_avro_does() {
    let mut verdicts = BTreeMap::new();
    let types = decoder();
    for seed in 0..WRITER_SCHEMAS {
        let random = &mut Random(seed);
        let fields = generate(random);
        let writer_json = schema_json(&fields, false);
        let writer = Schema::parse_str(&writer_json).unwrap();
        let writer_renamed = Schema::parse_str(&schema_json(&fields, true)).unwrap();
        let reader = reader_for(&fields);
        let mut decoder = decoder();
        decoder
            .add_schema(77, &writer_json)
            .unwrap_or_else(|refused| panic!("seed {seed}: {refused}\n{writer_json}"));
        for _ in 0..EVENTS_OF_EACH {
            let (value, all_fit) = record(&fields, random);
            let encoder = GenericDatumWriter::builder(&writer).build().unwrap();
            let body = encoder.write_value_to_vec(value).unwrap();
            let framed = [&[0, 0, 0, 0, 77], &body[..]].concat();
            let expected = oracle::decode(&writer_renamed, &reader, &body);
            let verdict = decoder.decode(Some(&framed), RECORDED_AT_MS);
            let context = || format!("seed {seed}\n{writer_json}\n{}", body.escape_ascii());
            let kind = match (&verdict, &expected) {
                (Verdict::Accept(interaction), Ok(record)) => {
                    let found = Columns::of(interaction, &types);
                    assert_eq!(found, Columns::of_record(record), "{}", context());
                    assert!(all_fit, "{}", context());
                    "accepted"
                }
                (Verdict::Reject(reject), Err(_)) => match reject.reason {
                    RejectReason::MissingField => "null for a required field",
                    RejectReason::WrongType => "a branch that does not fit",
                    // Comes before the field that does not fit.
                    RejectReason::BadTimestamp => "a timestamp as int",
                    _ => panic!("{reject}, {expected:?}: {}", context()),
                },
                (Verdict::Reject(reject), Ok(_)) => {
                    assert_eq!(reject.reason, RejectReason::BadTimestamp, "{}", context());
                    "a timestamp as int"
                }
                _ => panic!("{verdict:?}, {expected:?}: {}", context()),
            };
            *verdicts.entry(kind).or_insert(0) += 1;
        }
    }
    // Every kind of outcome was met, and mostly the first.
    assert_eq!(verdicts.len(), 4, "{verdicts:?}");
    assert!(verdicts["accepted"] > 3_000, "{verdicts:?}");
}
