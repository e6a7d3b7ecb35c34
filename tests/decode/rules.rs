//! The rules, one by one: what is at a limit is good, what is past it is not.

use feed_worker::event::{RejectReason, Verdict};

use crate::support::{
    Body, OCCURRED_AT_MS, RECORDED_AT_MS, USER, V2, VIDEO, accepted, decoder, json, reason, rejected,
};

#[test]
fn strings_are_good_from_1_to_256_bytes() {
    let mut decoder = decoder();
    for field in ["algorithm", "feedSessionId", "experimentVariantId"] {
        for (length, good) in [(0, false), (1, true), (256, true), (257, false)] {
            let value = json(&format!(r#","{field}":"{}""#, "x".repeat(length)));
            let verdict = decoder.decode(Some(&value), RECORDED_AT_MS);
            assert_eq!(matches!(verdict, Verdict::Accept(_)), good, "{field} {length}");
        }
    }
    // Bytes, not characters.
    let value = json(&format!(r#","algorithm":"{}""#, "ü".repeat(129)));
    assert_eq!(reason(&mut decoder, &value), RejectReason::BadString);
    let value = json(&format!(r#","algorithm":"{}""#, "\\u00fc".repeat(128)));
    assert_eq!(accepted(&mut decoder, &value).algorithm.unwrap().len(), 256);
}

#[test]
fn timestamps_are_good_from_2000_to_a_day_ahead() {
    let mut decoder = decoder();
    let day = 86_400_000;
    for (ms, good) in [
        (946_684_800_000, true),
        (946_684_799_999, false),
        (RECORDED_AT_MS + day, true),
        (RECORDED_AT_MS + day + 1, false),
        (i64::MIN, false),
        (i64::MAX, false),
    ] {
        let value = Body::framed(V2).string(USER).string(VIDEO).string("view").long(0).long(ms);
        let value = value.raw(&[0; 7]).0;
        match decoder.decode(Some(&value), RECORDED_AT_MS) {
            Verdict::Accept(interaction) if good => assert_eq!(interaction.occurred_at_ms, ms),
            Verdict::Reject(reject) if !good => {
                assert_eq!(reject.reason, RejectReason::BadTimestamp);
            }
            other => panic!("{ms}: {other:?}"),
        }
        // A Kafka timestamp at the end of time does not overflow.
        let _ = decoder.decode(Some(&value), i64::MAX);
        let _ = decoder.decode(Some(&value), i64::MIN);
    }
}

#[test]
fn positions_and_numbers_in_json() {
    let mut decoder = decoder();
    for (text, expected) in [
        ("0", Ok(Some(0))),
        ("-0", Ok(Some(0))),
        ("2147483647", Ok(Some(i32::MAX))),
        ("3.0", Ok(Some(3))),
        ("1e3", Ok(Some(1000))),
        ("null", Ok(None)),
        ("2147483648", Err(RejectReason::OutOfRange)),
        ("-1", Err(RejectReason::OutOfRange)),
        ("1e400", Err(RejectReason::OutOfRange)),
        ("99999999999999999999999", Err(RejectReason::OutOfRange)),
        ("0.5", Err(RejectReason::WrongType)),
        ("true", Err(RejectReason::WrongType)),
        ("\"3\"", Err(RejectReason::WrongType)),
        ("01", Err(RejectReason::JsonMalformed)),
        ("+1", Err(RejectReason::JsonMalformed)),
        ("1.", Err(RejectReason::JsonMalformed)),
        (".5", Err(RejectReason::JsonMalformed)),
        ("1e", Err(RejectReason::JsonMalformed)),
        ("NaN", Err(RejectReason::JsonMalformed)),
    ] {
        let value = json(&format!(r#","position":{text}"#));
        match expected {
            Ok(position) => assert_eq!(accepted(&mut decoder, &value).position, position, "{text}"),
            Err(expected) => assert_eq!(reason(&mut decoder, &value), expected, "{text}"),
        }
    }
    for (text, expected) in [
        ("1700000000000", Some(1_700_000_000_000)),
        ("1.7e12", Some(1_700_000_000_000)),
        ("1700000000000.5", None),
        ("\"1700000000000\"", None),
        ("1e400", None),
    ] {
        let value = String::from_utf8(json("")).unwrap();
        let value = value.replace(&OCCURRED_AT_MS.to_string(), text).into_bytes();
        match expected {
            Some(ms) => assert_eq!(accepted(&mut decoder, &value).occurred_at_ms, ms),
            None => assert_eq!(reason(&mut decoder, &value), RejectReason::BadTimestamp, "{text}"),
        }
    }
}

#[test]
fn the_score_is_taken_from_the_first_place_that_has_one() {
    let mut decoder = decoder();
    let camel = r#""recommendationScore""#;
    let snake = r#""recommendation_score""#;
    for (more, score, metadata) in [
        (
            format!(r#",{camel}:1,{snake}:2,"metadata":{{{camel}:3,{snake}:4}}"#),
            Some(1.0),
            Some(r#"{"recommendationScore":"3","recommendation_score":"4"}"#),
        ),
        (format!(r#",{snake}:2,{camel}:1"#), Some(1.0), Some(r#"{"recommendation_score":"2"}"#)),
        (
            format!(r#",{camel}:null,{snake}:2,"metadata":{{{camel}:3}}"#),
            Some(2.0),
            Some(r#"{"recommendationScore":"3"}"#),
        ),
        (format!(r#",{camel}:1,{snake}:null"#), Some(1.0), None),
        (format!(r#",{snake}:null"#), None, None),
        (
            format!(r#","metadata":{{{snake}:4,{camel}:3}}"#),
            Some(3.0),
            Some(r#"{"recommendation_score":"4"}"#),
        ),
        (format!(r#","metadata":{{{snake}:"4","a":"b"}}"#), Some(4.0), Some(r#"{"a":"b"}"#)),
        (
            format!(r#","metadata":{{{camel}:null,{snake}:4}}"#),
            Some(4.0),
            Some(r#"{"recommendationScore":"null"}"#),
        ),
        (format!(r#","metadata":{{{camel}:null}}"#), None, Some(r#"{"recommendationScore":"null"}"#)),
    ] {
        let value = json(&more);
        let interaction = accepted(&mut decoder, &value);
        assert_eq!(interaction.recommendation_score, score, "{more}");
        assert_eq!(interaction.metadata, metadata, "{more}");
    }
    for (more, expected) in [
        (format!(r#",{camel}:"1""#), RejectReason::WrongType),
        (format!(r#",{snake}:true"#), RejectReason::WrongType),
        (format!(r#","metadata":{{{camel}:" 1"}}"#), RejectReason::WrongType),
        (format!(r#","metadata":{{{camel}:"NaN"}}"#), RejectReason::WrongType),
        (format!(r#","metadata":{{{camel}:[1]}}"#), RejectReason::WrongType),
        (format!(r#","metadata":{{{camel}:"1e999"}}"#), RejectReason::OutOfRange),
        (format!(r#",{snake}:1,{snake}:1"#), RejectReason::JsonDuplicateKey),
        (format!(r#",{snake}:1,"recommendation\u005fscore":1"#), RejectReason::JsonDuplicateKey),
    ] {
        assert_eq!(reason(&mut decoder, &json(&more)), expected, "{more}");
    }
}

#[test]
fn nesting_in_json_is_good_to_32_levels() {
    let mut decoder = decoder();
    for (levels, good) in [(31, true), (32, false), (100_000, false)] {
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let inner = if open == "[" { "" } else { "1" };
            let value = json(&format!(r#","x":{}{inner}{}"#, open.repeat(levels), close.repeat(levels)));
            match decoder.decode(Some(&value), RECORDED_AT_MS) {
                Verdict::Accept(_) if good => {}
                Verdict::Reject(reject) if !good => {
                    assert_eq!(reject.reason, RejectReason::JsonMalformed);
                }
                other => panic!("{levels}: {other:?}"),
            }
        }
    }
}

#[test]
fn duplicate_keys_are_found_at_every_level_and_only_within_one_object() {
    let mut decoder = decoder();
    for (more, good) in [
        (r#","a":{"x":1,"y":{"x":1}},"b":{"x":1}"#, true),
        (r#","a":[{"x":1},{"x":1}]"#, true),
        (r#","a":{"x":1,"y":2,"x":3}"#, false),
        (r#","a":[[{"é":1,"\u00e9":3}]]"#, false),
        (r#","a":{"\ud83d\ude00":1,"😀":3}"#, false),
        (r#","a":1,"b":2,"a":3"#, false),
        (r#","a":1,"\u0061":3"#, false),
        (r#","metadata":null,"metadata":{}"#, false),
        (r#","metadata":{"a":1},"metadata":{"a":1}"#, false),
        (r#","user\u0049d":"x""#, false),
        (r#","userid":"x""#, true),
    ] {
        let value = json(more);
        match decoder.decode(Some(&value), RECORDED_AT_MS) {
            Verdict::Accept(_) if good => {}
            Verdict::Reject(reject) if !good => {
                assert_eq!(reject.reason, RejectReason::JsonDuplicateKey, "{more}");
            }
            other => panic!("{more}: {other:?}"),
        }
    }
    let keys: Vec<String> = (0..90_000).map(|n| format!(r#""{n}":0"#)).collect();
    let value = json(&format!(r#","a":{{{}}}"#, keys.join(",")));
    assert_eq!(reason(&mut decoder, &value), RejectReason::MetadataTooLarge);
}

#[test]
fn the_reason_does_not_depend_on_the_order_of_the_fields() {
    let mut decoder = decoder();
    // Two faults: the one in the field that comes first in the reader schema is told.
    for value in
        [r#"{"position":-1,"videoId":"x","userId":"x"}"#, r#"{"userId":"x","videoId":"x","position":-1}"#]
    {
        let reject = rejected(&mut decoder, value.as_bytes());
        assert_eq!((reject.reason, reject.field), (RejectReason::BadUuid, Some("userId")));
    }
    // And one in the structure before those in values.
    let value = br#"{"userId":"x","videoId":"x"} x"#;
    assert_eq!(reason(&mut decoder, value), RejectReason::JsonMalformed);
}

#[test]
fn a_reject_repeats_nothing_of_the_event() {
    let mut decoder = decoder();
    for value in [
        json(r#","secret":{"secret":1,"secret":2}"#),
        json(r#","eventId":"secret""#),
        json(r#","position":"secret""#),
        json(r#","metadata":{"recommendationScore":"secret"}"#),
        json(r#","algorithm":"secret\u0000""#),
        br#"{"userId":"secret"}"#.to_vec(),
        br#"{"secret"#.to_vec(),
        b"secret".to_vec(),
    ] {
        let reject = rejected(&mut decoder, &value);
        assert!(!format!("{reject} {reject:?}").contains("secret"), "{reject:?}");
    }
}
