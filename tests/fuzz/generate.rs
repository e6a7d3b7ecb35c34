//! Inputs that are valid, or nearly so, by the grammar of their format.

use std::fmt::Write as _;

use feed_worker::event::{Interaction, InteractionTypes, canonical_metadata};
use feed_worker::row::{self, Coordinates};
use uuid::Uuid;

use crate::support::{Body, OCCURRED_AT_MS, RECORDED_AT_MS, Random, USER, VIDEO};

const CHARACTERS: [&str; 24] = [
    "a",
    "Z",
    "0",
    " ",
    "\"",
    "\\",
    "/",
    "\u{1}",
    "\u{1f}",
    "\u{7f}",
    "\n",
    "\t",
    "\u{8}",
    "é",
    "€",
    "'",
    "{",
    "]",
    "\u{2028}",
    "\u{e000}",
    "\u{fffd}",
    "\u{1F600}",
    "\u{10ffff}",
    "ß",
];

const NUMBERS: [&str; 24] = [
    "0",
    "-0",
    "1",
    "-1",
    "3.0",
    "0.5",
    "1e3",
    "1E-3",
    "2147483647",
    "2147483648",
    "-2147483649",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "1.7976931348623157e308",
    "1e309",
    "5e-324",
    "1e-999",
    "0.1000000000000000055511151231257827",
    "1768478399123",
    "1768478399123.0",
    "1.768478399123e12",
    "946684799999",
    "99999999999999999999999999999999",
];

const TIMES: [&str; 12] = [
    "2026-01-15T11:59:59.123Z",
    "2026-01-15t11:59:59z",
    "2026-01-15 11:59",
    "2026-01-15T13:59:59,5+02:00",
    "2026-01-15T13:59:59.123456789123+0200",
    "2026-01-15T06:29:59-05:30",
    "2024-02-29T00:00:00+23",
    "2026-02-30T00:00Z",
    "2026-01-15T24:00:00Z",
    "1999-12-31T23:59:59.999Z",
    "2026-01-16T12:00:00.000Z",
    "0000-01-01T00:00:00Z",
];

pub fn text(random: &mut Random) -> String {
    (0..random.below(12)).map(|_| *random.pick(&CHARACTERS)).collect()
}

fn json_string(text: &str, random: &mut Random) -> String {
    if random.one_in(3) {
        // Every character as an escape: the same value, and another spelling.
        let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        return format!("\"{units}\"");
    }
    serde_json::to_string(text).unwrap()
}

fn json_value(random: &mut Random, depth: usize) -> String {
    match random.below(if depth == 0 { 5 } else { 8 }) {
        0 => "null".to_owned(),
        1 => "true".to_owned(),
        2 => (*random.pick(&NUMBERS)).to_owned(),
        3 | 4 => {
            let text = text(random);
            json_string(&text, random)
        }
        5 => {
            let items: Vec<String> = (0..random.below(4)).map(|_| json_value(random, depth - 1)).collect();
            format!("[{}]", items.join(*random.pick(&[",", " , "])))
        }
        _ => {
            let members = (0..random.below(4)).map(|n| {
                let key = format!("{}{n}", text(random));
                format!("{}:{}", json_string(&key, random), json_value(random, depth - 1))
            });
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
    }
}

/// An event as JSON: the fields in any order, some of them of another kind than they should be.
pub fn json_event(random: &mut Random) -> Vec<u8> {
    let id = |random: &mut Random| {
        let id = *random.pick(&[USER, VIDEO, "00000000-0000-0000-0000-00000000ABCD"]);
        json_string(id, random)
    };
    let mut members = vec![("userId".to_owned(), id(random)), ("videoId".to_owned(), id(random))];
    let kind = *random.pick(&["view", "Like", "SKIP", "complete", "share"]);
    members.push(("interactionType".to_owned(), json_string(kind, random)));
    let time = match random.below(6) {
        0 if random.one_in(3) => (*random.pick(&NUMBERS)).to_owned(),
        1 => {
            let time = *random.pick(&TIMES);
            json_string(time, random)
        }
        _ => (OCCURRED_AT_MS - random.below(1 << 40) as i64).to_string(),
    };
    members.push(("timestamp".to_owned(), time));
    for name in ["watchTime", "recommendationScore", "recommendation_score", "position"] {
        if random.one_in(3) {
            let usual = random.below(1 << 30).to_string();
            let number = if random.one_in(4) { *random.pick(&NUMBERS) } else { &usual };
            members.push((name.to_owned(), number.to_owned()));
        }
    }
    for name in ["feedSessionId", "algorithm", "experimentVariantId"] {
        if random.one_in(3) {
            let text = text(random) + "x";
            members.push((name.to_owned(), json_string(&text, random)));
        }
    }
    if random.one_in(4) {
        members.push(("eventId".to_owned(), id(random)));
    }
    for n in 0..random.below(3) {
        let key = format!("{}{n}", text(random));
        members.push((key, json_value(random, 3)));
    }
    if random.one_in(2) {
        let mut inner: Vec<String> = (0..random.below(5))
            .map(|n| {
                let key = format!("{}{n}", text(random));
                format!("{}:{}", json_string(&key, random), json_value(random, 2))
            })
            .collect();
        if random.one_in(5) {
            inner.push(format!("\"recommendationScore\":\"{}\"", random.pick(&NUMBERS)));
        }
        members.push(("metadata".to_owned(), format!("{{{}}}", inner.join(","))));
    }
    if random.one_in(8) {
        let at = random.below(members.len());
        members[at].1 = json_value(random, 2);
    }
    random.shuffle(&mut members);
    let space = *random.pick(&["", "", " ", "\n\t"]);
    let mut out = String::from("{");
    for (index, (key, value)) in members.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let _ = write!(out, "{comma}{space}{}:{space}{value}", json_string(key, random));
    }
    out.push('}');
    out.into_bytes()
}

/// About so many bytes, up to a little more than a value may have.
pub fn size(random: &mut Random) -> usize {
    let most = *random.pick(&[1 << 15, 1 << 17, (1 << 20) - 300, (1 << 20) - 300]);
    most - random.below(most / 4)
}

fn with_members(members: &str) -> Vec<u8> {
    let start = format!(
        r#"{{"userId":"{USER}","videoId":"{VIDEO}","interactionType":"view","timestamp":{OCCURRED_AT_MS}"#
    );
    format!("{start}{members}}}").into_bytes()
}

fn repeated(length: usize, piece: impl Fn(usize) -> String) -> String {
    let mut out = String::with_capacity(length + 64);
    let mut n = 0;
    while out.len() < length {
        if n > 0 {
            out.push(',');
        }
        out.push_str(&piece(n));
        n += 1;
    }
    out
}

/// JSON that would take memory or time out of proportion from a careless reader.
pub fn huge_json(random: &mut Random) -> Vec<u8> {
    let length = size(random);
    let members = match random.below(16) {
        0 => format!(r#","deep":{}"#, "[".repeat(length)),
        1 => format!(r#","deep":{}1"#, r#"{"a":"#.repeat(length / 5)),
        2 => format!(r#","deep":{}{}"#, "[".repeat(31), "]".repeat(31)),
        3 => format!(",{}", repeated(length, |n| format!(r#""k{n}":1"#))),
        4 => format!(r#","metadata":{{{}}}"#, repeated(length, |n| format!(r#""k{n}":"""#))),
        5 => format!(r#","nested":{{{}}}"#, repeated(length, |n| format!(r#""k{n}":0"#))),
        6 => format!(r#","nested":{{{}}}"#, repeated(length, |n| format!(r#""\u0061{n}":0"#))),
        7 => format!(r#","algorithm":"{}""#, "x".repeat(length)),
        8 => format!(r#","algorithm":"{}\n""#, "x".repeat(length)),
        9 => format!(r#","metadata":{{"a":"{}"}}"#, "\\u20ac".repeat(length / 6)),
        10 => format!(r#","many":[{}]"#, repeated(length, |_| "[]".to_owned())),
        11 => format!(r#","watchTime":{}"#, "9".repeat(length)),
        12 => format!(r#","watchTime":0.{}1"#, "0".repeat(length)),
        13 => " ".repeat(length),
        14 => {
            // Keys that differ at their very end, and have to be told apart.
            let long = "\\u0061".repeat(length / 60 / 6);
            format!(",{}", repeated(length, |n| format!(r#""{long}{n}":1"#)))
        }
        _ => {
            let long = "a".repeat(length / 4_000);
            format!(r#","nested":{{{}}}"#, repeated(length, |n| format!(r#""{long}{n}":1"#)))
        }
    };
    with_members(&members)
}

/// An event of version 2, piece by piece, with numbers and texts at their limits.
pub fn avro_v2(random: &mut Random) -> Vec<u8> {
    let kind = *random.pick(&["view", "Like", "SKIP", "complete", "nonsense"]);
    let time = match random.below(8) {
        0 => *random.pick(&[i64::MIN, -1, 0, 946_684_800_000, RECORDED_AT_MS + 86_400_000, i64::MAX]),
        _ => OCCURRED_AT_MS - random.below(1 << 40) as i64,
    };
    let double = |random: &mut Random| *random.pick(&[0.0, -0.0, 31.5, -1.0, 5e-324, f64::MAX, 2.5, 1.0]);
    let mut body = Body::framed(2).string(USER).string(VIDEO).string(kind);
    body = if random.one_in(3) { body.long(0) } else { body.long(1).double(double(random)) };
    body = body.long(time);
    body = if random.one_in(2) { body.long(0) } else { body.long(1).string(VIDEO) };
    for _ in 0..3 {
        body = if random.one_in(2) { body.long(0) } else { body.long(1).string(&(text(random) + "y")) };
    }
    body = if random.one_in(2) { body.long(0) } else { body.long(1).double(double(random)) };
    body = if random.one_in(2) { body.long(0) } else { body.long(1).long(random.below(1 << 20) as i64) };
    if random.one_in(3) {
        return body.long(0).0;
    }
    body = body.long(1);
    for block in 0..random.below(3) {
        let mut entries = Body::default();
        let count = 1 + random.below(4) as i64;
        for n in 0..count {
            entries = entries.string(&format!("{}{block}{n}", text(random))).string(&text(random));
        }
        body =
            if random.one_in(2) { body.long(count) } else { body.long(-count).long(entries.0.len() as i64) };
        body = body.raw(&entries.0);
    }
    body.long(0).0
}

/// A row's event with values of every kind; `metadata` is as jsonb would print it, or canonical.
pub fn row(out: &mut Vec<u8>, offset: i64, types: &InteractionTypes, random: &mut Random) {
    let texts: Vec<String> = (0..3).map(|_| text(random) + "z").collect();
    let mut pairs: Vec<(String, String)> =
        (0..random.below(5)).map(|_| (text(random), text(random))).collect();
    let mut metadata = String::new();
    if random.one_in(2) {
        canonical_metadata(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())), &mut metadata);
    } else {
        pairs.sort_by_key(|(key, _)| key.len());
        metadata = jsonb_text(&pairs, random);
    }
    let mut some = |value: &str| random.one_in(2).then(|| value.to_owned());
    let strings = [some(&texts[0]), some(&texts[1]), some(&texts[2]), some(&metadata)];
    let interaction = Interaction {
        watch_time_seconds: random.one_in(2).then(|| f64::from_bits(random.next())),
        recommendation_score: random.one_in(2).then_some(-0.0),
        position: random.one_in(2).then(|| random.next() as i32),
        event_id: random.one_in(2).then(|| Uuid::from_u128(u128::from(random.next()))),
        user_id: Uuid::from_u128(u128::from(random.next()) << 64),
        video_id: Uuid::from_u128(u128::from(random.next())),
        interaction_type: types.lookup("view").unwrap(),
        occurred_at_ms: random.next() as i64 >> random.below(64),
        algorithm: strings[0].as_deref(),
        experiment_variant_id: strings[1].as_deref(),
        feed_session_id: strings[2].as_deref(),
        metadata: strings[3].as_deref(),
    };
    let at = Coordinates {
        partition: random.below(12) as i32,
        offset,
        recorded_at_ms: RECORDED_AT_MS + random.below(1000) as i64,
        ingested_at_ms: RECORDED_AT_MS + 1000,
    };
    row::encode(out, &at, &interaction, types);
}

/// An object of strings with spaces where jsonb prints them.
pub fn jsonb_text(pairs: &[(String, String)], random: &mut Random) -> String {
    let members: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{}: {}", json_string(key, random), json_string(value, random)))
        .collect();
    format!("{{{}}}", members.join(", "))
}

pub fn huge_jsonb(random: &mut Random) -> Vec<u8> {
    let length = size(random);
    match random.below(4) {
        0 => format!("{{{}}}", repeated(length, |_| r#""":"""#.to_owned())),
        1 => format!("{{{}}}", repeated(length, |n| format!(r#""\u0061{n}": """#))),
        2 => format!(r#"{{"a": {}"#, "[".repeat(length)),
        _ => format!(r#"{{"a": "{}"}}"#, "x".repeat(length)),
    }
    .into_bytes()
}
