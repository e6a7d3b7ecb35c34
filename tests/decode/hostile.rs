//! Values that were cut, bent or made up: always a verdict, never a wrong acceptance.

use std::time::{Duration, Instant};

use apache_avro::Schema;
use feed_worker::event::{READER_SCHEMA_JSON, RejectReason, Verdict};

use crate::oracle::{self, Columns};
use crate::support::{Body, RECORDED_AT_MS, Random, V1, V2, check_limits, decoder, json, read_schema};

const MUTATIONS: u64 = 150_000;

fn full_json() -> Vec<u8> {
    json(
        r#","watchTime":31.5,"eventId":"018f4e7a-9b1c-7c3d-a5e6-112233445566","algorithm":"a\u00fcb","position":3,"recommendation_score":0.25,"deviceType":"ios","tags":[1,{"a":null}],"metadata":{"network":"wifi","n\n":1.5e3}"#,
    )
}

#[test]
fn a_value_that_was_cut_is_a_reject_wherever_it_was_cut() {
    let mut decoder = decoder();
    for value in [Body::v2_full().0, Body::v1_full().0, full_json()] {
        assert!(matches!(decoder.decode(Some(&value), RECORDED_AT_MS), Verdict::Accept(_)));
        for length in 0..value.len() {
            let cut = &value[..length];
            let Verdict::Reject(reject) = decoder.decode(Some(cut), RECORDED_AT_MS) else {
                panic!("cut to {length} bytes: {}", cut.escape_ascii());
            };
            let expected = match (length, value[0]) {
                (0, _) => RejectReason::EmptyValue,
                (1..=4, 0) => RejectReason::BadFraming,
                (_, 0) => RejectReason::AvroMalformed,
                _ => RejectReason::JsonMalformed,
            };
            assert_eq!(reject.reason, expected, "cut to {length} bytes");
        }
    }
}

/// One to three changes: bits, bytes in and out, a piece twice, a huge varint.
fn mutate(value: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        if value.is_empty() {
            return;
        }
        let at = random.below(value.len());
        match random.below(8) {
            0 => value[at] ^= 1 << random.below(8),
            1 => value[at] = random.next() as u8,
            2 => value.truncate(at),
            3 => drop(value.remove(at)),
            4 => value.insert(at, random.next() as u8),
            5 => {
                let end = at + random.below(value.len() - at + 1);
                let piece = value[at..end].to_vec();
                let to = random.below(value.len());
                value.splice(to..to, piece);
            }
            6 => {
                let length = random.below(11);
                value.splice(at..at, std::iter::repeat_n(0xFF, length));
            }
            _ => value[at] = *random.pick(b"\0\x01\x02\x7f\x80\xff\"\\{}[],:0-eu"),
        }
    }
}

#[test]
fn mutated_values_never_panic_and_are_never_misread() {
    let mut decoder = decoder();
    let types = self::decoder();
    let reader = Schema::parse_str(READER_SCHEMA_JSON).unwrap();
    let first = Schema::parse_str(&read_schema("interaction.v1.avsc")).unwrap();
    let seeds = [Body::v2_full().0, Body::v1_full().0, full_json()];
    let (mut accepted, mut slowest) = (0, Duration::ZERO);
    for seed in 0..MUTATIONS {
        let random = &mut Random(seed);
        let mut value = seeds[(seed % 3) as usize].clone();
        mutate(&mut value, random);
        let started = Instant::now();
        let verdict = decoder.decode(Some(&value), RECORDED_AT_MS);
        slowest = slowest.max(started.elapsed());
        let Verdict::Accept(interaction) = verdict else {
            continue;
        };
        accepted += 1;
        check_limits(&interaction);
        if value[0] == b'{' {
            serde_json::from_slice::<serde_json::Value>(&value).unwrap();
            continue;
        }
        let (id, body) = value.split_at(5);
        let writer = match u32::from_be_bytes([id[1], id[2], id[3], id[4]]) {
            V1 => &first,
            V2 => &reader,
            other => panic!("schema {other} is not known"),
        };
        let record = oracle::decode(writer, &reader, body);
        let record = record.unwrap_or_else(|error| panic!("{error}: {}", value.escape_ascii()));
        assert_eq!(Columns::of(&interaction, &types), Columns::of_record(&record));
    }
    // Some changes are harmless (a digit, a letter); if nothing were accepted nothing would be tested.
    assert!((1_000..MUTATIONS / 3).contains(&accepted), "{accepted}");
    // Generous, because machines stall; a decoder that was led astray would take minutes.
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}

#[test]
fn noise_is_always_a_verdict() {
    let mut decoder = decoder();
    let mut random = Random(11);
    for _ in 0..30_000 {
        let mut value: Vec<u8> = (0..random.below(64)).map(|_| random.next() as u8).collect();
        match random.below(3) {
            0 => drop(value.splice(0..0, [0, 0, 0, 0, 2])),
            1 => value.insert(0, b'{'),
            _ => {}
        }
        let verdict = decoder.decode(Some(&value), RECORDED_AT_MS);
        assert!(!matches!(verdict, Verdict::Accept(_)));
    }
}

#[test]
fn mutated_schemas_never_panic_the_compiler() {
    let mut random = Random(5);
    let sources = [READER_SCHEMA_JSON.to_owned(), read_schema("interaction.v1.avsc")];
    let words = ["\"null\"", "\"int\"", "\"Interaction\"", "[]", "{}", "\"map\"", "\"fixed\"", "0", "-1"];
    let event = Body::v2_full().0;
    for _ in 0..3_000 {
        let mut schema = random.pick(&sources).clone().into_bytes();
        if random.one_in(2) {
            mutate(&mut schema, &mut random);
        } else {
            // A value of the JSON becomes another: still a schema more often than not.
            let text = String::from_utf8(schema).unwrap();
            let quoted: Vec<&str> = text.split('"').collect();
            let at = 1 + 2 * random.below(quoted.len() / 2);
            let from = format!("\"{}\"", quoted[at]);
            schema = text.replacen(&from, words[random.below(words.len())], 1).into_bytes();
        }
        let mut decoder = decoder();
        let _ = decoder.add_schema(V2, &String::from_utf8_lossy(&schema));
        let _ = decoder.decode(Some(&event), RECORDED_AT_MS);
    }
}
