//! How much metadata may be, and that it comes back from jsonb as it was.

use feed_worker::event::{RejectReason, Verdict, canonical_metadata, recanonicalize};

use crate::support::{Body, RECORDED_AT_MS, Random, accepted, decoder, json, reason};

#[test]
fn metadata_has_at_most_64_entries_wherever_they_come_from() {
    let mut decoder = decoder();
    let entries = |prefix: &str, range: std::ops::Range<usize>| {
        let entries: Vec<String> = range.map(|n| format!(r#""{prefix}{n}":"""#)).collect();
        entries.join(",")
    };
    for (unknown, inside, good) in [
        (entries("k", 0..64), entries("m", 0..0), true),
        (entries("k", 0..65), entries("m", 0..0), false),
        (entries("k", 0..0), entries("m", 0..64), true),
        (entries("k", 0..0), entries("m", 0..65), false),
        (entries("k", 0..32), entries("m", 0..32), true),
        (entries("k", 0..33), entries("m", 0..32), false),
        // The same keys: those inside count.
        (entries("k", 0..64), entries("k", 0..64), true),
        (entries("k", 0..0), format!(r#"{},"recommendationScore":1"#, entries("m", 0..64)), true),
        (entries("k", 0..500), entries("m", 0..500), false),
    ] {
        let comma = if unknown.is_empty() { "" } else { "," };
        let value = json(&format!(r#","metadata":{{{inside}}}{comma}{unknown}"#));
        match decoder.decode(Some(&value), RECORDED_AT_MS) {
            Verdict::Accept(_) if good => {}
            Verdict::Reject(reject) if !good => {
                assert_eq!(reject.reason, RejectReason::MetadataTooLarge);
            }
            other => panic!("{good}: {other:?}"),
        }
    }
    for (count, good) in [(64, true), (65, false)] {
        let mut value = Body::v2_before_metadata().long(1).long(count);
        for n in 0..count {
            value = value.string(&n.to_string()).string("");
        }
        let value = value.long(0).0;
        match decoder.decode(Some(&value), RECORDED_AT_MS) {
            Verdict::Accept(_) if good => {}
            Verdict::Reject(reject) if !good => {
                assert_eq!(reject.reason, RejectReason::MetadataTooLarge);
            }
            other => panic!("{count}: {other:?}"),
        }
    }
}

#[test]
fn metadata_has_at_most_16_kib_as_canonical_text() {
    let mut decoder = decoder();
    // {"k":"…"} is eight bytes and the value.
    for (length, good) in [(16_384 - 8, true), (16_384 - 7, false), (1 << 19, false)] {
        let text = "x".repeat(length);
        let avro = Body::v2_before_metadata().long(1).long(1).string("k").string(&text).long(0).0;
        let json = json(&format!(r#","k":"{text}""#));
        for value in [avro, json] {
            match decoder.decode(Some(&value), RECORDED_AT_MS) {
                Verdict::Accept(interaction) if good => {
                    assert_eq!(interaction.metadata.unwrap().len(), 16_384);
                }
                Verdict::Reject(reject) if !good => {
                    assert_eq!(reject.reason, RejectReason::MetadataTooLarge);
                }
                other => panic!("{length}: {other:?}"),
            }
        }
    }
    // An event that had much to unescape does not trouble the next.
    let huge = json(&format!(r#","k":"{}""#, "\\u0041".repeat(100_000)));
    assert_eq!(reason(&mut decoder, &huge), RejectReason::MetadataTooLarge);
    let next = json(r#","k":"\u0041""#);
    assert_eq!(accepted(&mut decoder, &next).metadata, Some(r#"{"k":"A"}"#));
}

/// What Postgres prints of a jsonb: keys by length and then bytes, a space after each separator.
fn as_jsonb_text(pairs: &[(String, String)]) -> String {
    let mut sorted: Vec<_> = pairs.to_vec();
    sorted.sort_by(|a, b| (a.0.len(), a.0.as_bytes()).cmp(&(b.0.len(), b.0.as_bytes())));
    let quoted = |text: &str| serde_json::to_string(text).unwrap();
    let entries: Vec<String> =
        sorted.iter().map(|(key, value)| format!("{}: {}", quoted(key), quoted(value))).collect();
    format!("{{{}}}", entries.join(", "))
}

#[test]
fn jsonb_comes_back_as_exactly_the_canonical_text() {
    let mut random = Random(3);
    let alphabet: Vec<char> =
        "ab\"\\/\u{1}\u{8}\n\u{1f}\u{7f}é\u{fb33}\u{e000}😀\u{10ffff}".chars().collect();
    let text =
        |random: &mut Random| -> String { (0..random.below(6)).map(|_| *random.pick(&alphabet)).collect() };
    for _ in 0..20_000 {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for _ in 0..random.below(8) {
            let (key, value) = (text(&mut random), text(&mut random));
            if pairs.iter().all(|(known, _)| *known != key) {
                pairs.push((key, value));
            }
        }
        let mut canonical = String::new();
        canonical_metadata(pairs.iter().map(|(k, v)| (&**k, &**v)), &mut canonical);
        let mut back = String::new();
        recanonicalize(&as_jsonb_text(&pairs), &mut back).unwrap();
        assert_eq!(back, canonical);
        // Canonical means: by UTF-16 code units, and nothing else than the pairs.
        let read: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&canonical).unwrap();
        let keys: Vec<Vec<u16>> = read.keys().map(|key| key.encode_utf16().collect()).collect();
        assert!(keys.is_sorted(), "{canonical}");
        assert_eq!(read.len(), pairs.len());
        assert!(pairs.iter().all(|(key, value)| read[key] == **value));
    }
    for text in ["", "{", "[]", "null", r#"{"a":1}"#, r#"{"a":"b"} x"#, r#"{"a":{"b":"c"}}"#] {
        let mut out = "before".to_owned();
        recanonicalize(text, &mut out).unwrap_err();
        assert_eq!(out, "before");
    }
}
