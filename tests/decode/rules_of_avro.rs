//! What schemas are taken, and what bodies.

use feed_worker::event::{READER_SCHEMA_JSON, RejectReason, Verdict};

use crate::support::{
    Body, OCCURRED_AT_MS, RECORDED_AT_MS, USER, V2, VIDEO, accepted, decoder, reason, rejected,
};

#[test]
fn an_unknown_schema_is_asked_for_and_remembered() {
    let mut decoder = decoder();
    let value = Body::framed(9).raw(&Body::v2_full().0[5..]).0;
    let asked = Verdict::NeedSchema(9);
    assert_eq!(decoder.decode(Some(&value), RECORDED_AT_MS), asked);
    decoder.add_missing(9);
    assert_eq!(reason(&mut decoder, &value), RejectReason::SchemaNotFound);
    decoder.forget(9);
    assert_eq!(decoder.decode(Some(&value), RECORDED_AT_MS), asked);
    let refused = decoder.add_schema(9, r#""string""#).unwrap_err();
    let reject = rejected(&mut decoder, &value);
    assert_eq!(reject.reason, RejectReason::SchemaIncompatible);
    assert!(reject.detail.unwrap().contains(&refused.to_string()));
    decoder.add_schema(9, READER_SCHEMA_JSON).unwrap();
    accepted(&mut decoder, &value);
}

#[test]
fn a_schema_that_cannot_be_honoured_is_refused_as_a_whole() {
    let with = |field: &str| {
        format!(
            r#"{{"type":"record","name":"I","fields":[{{"name":"userId","type":"string"}},
            {{"name":"videoId","type":"string"}},{{"name":"timestamp","type":"long"}},{field}]}}"#
        )
    };
    let kind = r#"{"name":"interactionType","type":"string"}"#;
    let and = |name: &str, schema: &str| with(&format!(r#"{kind},{{"name":"{name}","type":{schema}}}"#));
    let mut deep = r#""int""#.to_owned();
    for n in 0..60 {
        deep = format!(r#"{{"type":"record","name":"D{n}","fields":[{{"name":"f","type":{deep}}}]}}"#);
    }
    for (schema, why) in [
        ("{".to_owned(), "not an Avro schema"),
        ("[]".into(), "a record is wanted, this is union"),
        (with(r#"{"name":"x","type":"int"}"#), "there is no field interactionType"),
        (
            with(r#"{"name":"interactionType","type":{"type":"enum","name":"E","symbols":["VIEW"]}}"#),
            "field interactionType: enum cannot be read as string",
        ),
        (with(r#"{"name":"interactionType","type":["null"]}"#), "no branch of the union"),
        (with(r#"{"name":"interactionType","type":"null"}"#), "null where a value is required"),
        (and("watchTime", r#""string""#), "field watchTime: string cannot be read as double"),
        (and("watchTime", r#"["null","string"]"#), "field watchTime: no branch of the union"),
        (and("position", r#""long""#), "field position: long cannot be read as int"),
        (and("position", r#"{"type":"int","logicalType":"date"}"#), "date cannot be read as int"),
        (and("algorithm", r#"{"type":"fixed","name":"F","size":4}"#), "fixed cannot be read as string"),
        (and("eventId", r#"{"type":"fixed","name":"F","size":16}"#), "fixed cannot be read as a uuid"),
        (and("eventId", r#"{"type":"bytes","logicalType":"uuid"}"#), "bytes of logical type uuid"),
        (and("metadata", r#"{"type":"map","values":"int"}"#), "map cannot be read as map of string"),
        (
            with(kind)
                .replace(r#""type":"long""#, r#""type":{"type":"long","logicalType":"timestamp-micros"}"#),
            "field timestamp: timestamp-micros cannot be read as timestamp-millis",
        ),
        (
            and("recommendationScore", r#"{"type":"bytes","logicalType":"decimal","precision":4,"scale":2}"#),
            "decimal",
        ),
        (and("x", r#"{"type":"record","name":"I","fields":[]}"#), "type I is defined twice"),
        (and("x", r#""Nowhere""#), "not an Avro schema"),
        (and("x", &deep), "not an Avro schema"),
        (and("x", &format!("\"{}\"", "y".repeat(1 << 18))), "bytes of schema"),
    ] {
        let refused = decoder().add_schema(7, &schema).map_err(|why| why.to_string());
        let refused = refused.expect_err(&schema);
        assert!(refused.contains(why), "{refused}\n{schema}");
        assert!(refused.len() < 600, "{refused}");
    }
}

#[test]
fn records_of_nothing_cost_nothing_however_many_are_in_each_other() {
    let mut fields = r#"{"name":"f0","type":{"type":"record","name":"R0","fields":[]}}"#.to_owned();
    for n in 1..400 {
        let inner = format!("R{}", n - 1);
        fields += &format!(
            r#",{{"name":"f{n}","type":{{"type":"record","name":"R{n}","fields":[
            {{"name":"a","type":"{inner}"}},{{"name":"b","type":"{inner}"}}]}}}}"#
        );
    }
    // One value of the last has 2³⁹⁹ of the first in it, and not a byte.
    let schema =
        with_extra(r#""boolean""#).replace(r#"{"name":"extra""#, &format!(r#"{fields},{{"name":"extra""#));
    let mut decoder = decoder();
    decoder.add_schema(5, &schema).unwrap();
    let value = Body::framed(5).string(USER).string(VIDEO).string("view").long(OCCURRED_AT_MS);
    accepted(&mut decoder, &value.raw(&[1]).0);
}

#[test]
fn in_avro_the_score_is_a_field_and_metadata_is_left_alone() {
    let mut decoder = decoder();
    let value = Body::framed(V2).string(USER).string(VIDEO).string("view").long(0).long(OCCURRED_AT_MS);
    let value = value.raw(&[0; 6]).long(1).long(1).string("recommendationScore").string("0.5").long(0).0;
    let interaction = accepted(&mut decoder, &value);
    assert_eq!(interaction.recommendation_score, None);
    assert_eq!(interaction.metadata, Some(r#"{"recommendationScore":"0.5"}"#));
}

#[test]
fn a_map_in_blocks_with_sizes_is_one_map_and_the_later_entry_counts() {
    let mut decoder = decoder();
    let block = Body::default().string("a").string("1").string("b").string("2");
    let size = block.0.len() as i64;
    let blocks = |size: i64| {
        let value = Body::v2_before_metadata().long(1).long(1).string("b").string("0");
        value.long(-2).long(size).raw(&block.0).long(0).0
    };
    let value = blocks(size);
    assert_eq!(accepted(&mut decoder, &value).metadata, Some(r#"{"a":"1","b":"2"}"#));
    for wrong in [size - 1, size + 1, 0, -1, i64::MAX, i64::MIN] {
        assert_eq!(reason(&mut decoder, &blocks(wrong)), RejectReason::AvroMalformed, "{wrong}");
    }
    for count in [i64::MAX, i64::MIN, 1000, -1000] {
        let value = Body::v2_before_metadata().long(1).long(count).long(4).raw(&[0; 8]).0;
        assert_eq!(reason(&mut decoder, &value), RejectReason::AvroMalformed, "{count}");
    }
}

/// A writer schema with one more field before `metadata`'s place.
fn with_extra(schema: &str) -> String {
    format!(
        r#"{{"type":"record","name":"I","fields":[{{"name":"userId","type":"string"}},
        {{"name":"videoId","type":"string"}},{{"name":"interactionType","type":"string"}},
        {{"name":"timestamp","type":"long"}},{{"name":"extra","type":{schema}}}]}}"#
    )
}

#[test]
fn what_is_stepped_over_is_as_strict_as_what_is_read() {
    let list = r#"{"type":"record","name":"L","fields":[{"name":"next","type":["null","L"]}]}"#;
    let empty =
        r#"{"type":"array","items":{"type":"record","name":"R","fields":[{"name":"n","type":"null"}]}}"#;
    let within_itself =
        r#"{"type":"record","name":"S","fields":[{"name":"a","type":"S"},{"name":"b","type":"S"}]}"#;
    let many = Body::default().long(i64::MAX).long(i64::MIN).long(0).long(-3).long(0).long(0);
    let many_of_a_size = Body::default().long(-3).long(1).long(0);
    let cases: &[(&str, Body, bool)] = &[
        (r#""boolean""#, Body::default().raw(&[1]), true),
        (r#""boolean""#, Body::default().raw(&[2]), false),
        (r#""int""#, Body::default().long(i64::from(i32::MIN)), true),
        (r#""int""#, Body::default().long(i64::from(i32::MAX) + 1), false),
        (r#""long""#, Body::default().long(i64::MIN), true),
        (r#""long""#, Body::default().raw(&[0xFF; 9]).raw(&[2]), false),
        (r#""long""#, Body::default().raw(&[0xFF; 10]).raw(&[1]), false),
        (r#""long""#, Body::default().raw(&[0x80, 0]), false),
        (r#""string""#, Body::default().bytes(b"\xC3\xBC"), true),
        (r#""string""#, Body::default().bytes(b"\xC3"), false),
        (r#""bytes""#, Body::default().bytes(b"\xC3"), true),
        (r#""bytes""#, Body::default().long(i64::MAX), false),
        (r#"{"type":"enum","name":"E","symbols":["A","B"]}"#, Body::default().long(1), true),
        (r#"{"type":"enum","name":"E","symbols":["A","B"]}"#, Body::default().long(2), false),
        (r#"{"type":"enum","name":"E","symbols":["A","B"]}"#, Body::default().long(-1), false),
        (r#"{"type":"array","items":"int"}"#, Body::default().long(-2).long(2).long(1).long(2).long(0), true),
        (
            r#"{"type":"array","items":"int"}"#,
            Body::default().long(-2).long(3).long(1).long(2).long(0),
            false,
        ),
        (empty, many, true),
        (empty, many_of_a_size, false),
        (list, Body::default().raw(&[2; 20]).raw(&[0]), true),
        (list, Body::default().raw(&[2; 5000]).raw(&[0]), false),
        (within_itself, Body::default(), false),
    ];
    for (schema, extra, good) in cases {
        let mut decoder = decoder();
        decoder.add_schema(5, &with_extra(schema)).unwrap();
        let value = Body::framed(5).string(USER).string(VIDEO).string("view").long(OCCURRED_AT_MS);
        let value = value.raw(&extra.0).0;
        match decoder.decode(Some(&value), RECORDED_AT_MS) {
            Verdict::Accept(_) if *good => {}
            Verdict::Reject(reject) if !good => {
                assert_eq!(reject.reason, RejectReason::AvroMalformed);
            }
            other => panic!("{schema} {:?}: {other:?}", extra.0),
        }
    }
}
