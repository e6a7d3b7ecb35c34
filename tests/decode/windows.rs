//! Texts of JSON are read in words of eight bytes, and ids as one: whatever stands in a text, at whatever place of its
//! word, is read as serde_json reads it.

use feed_worker::event::{Decoder, RejectReason, Verdict};
use serde_json::Value;

use crate::support::{RECORDED_AT_MS, USER, VIDEO, decoder, json};

/// What a text may hold, or may not.
const PIECES: &[&str] = &[
    "",
    " ",
    "!",
    "#",
    "[",
    "]",
    "/",
    "\u{7f}",
    "é",
    "東",
    "🎬",
    r#"\""#,
    r"\\",
    r"\/",
    r"\n",
    r"\u0041",
    r"\u00e9",
    r"\ud83c\udfac",
    r"\u0022",
    r"\ud83c",
    r"\udfac",
    r"\ud83cx",
    r"\u12",
    r"\x",
    r"\",
    "\"",
    "\u{0}",
    "\u{1}",
    "\t",
    "\n",
    "\u{1f}",
];

#[test]
fn every_piece_at_every_place_of_a_text_is_read_as_by_serde_json() {
    let mut decoder = decoder();
    let mut accepted = 0;
    for piece in PIECES {
        for before in 0..=17 {
            for behind in [0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17] {
                let text = format!("x{}{piece}{}", "a".repeat(before), "b".repeat(behind));
                let value = json(&format!(r#","feedSessionId":"{text}","{text}":"{text}""#));
                accepted += u32::from(agrees(&mut decoder, &value, 1));
                let value = json(&format!(r#","metadata":{{"{text}":{{"{text}":["{text}"]}}}}"#));
                agrees(&mut decoder, &value, 1);
            }
        }
    }
    // 19 pieces are good wherever they stand, `\u12` before two letters that are digits, and `\` before a b.
    assert_eq!(accepted, 18 * (12 * 19 + 10 + 11));
}

#[test]
fn two_pieces_beside_each_other_are_read_as_by_serde_json() {
    let mut decoder = decoder();
    for (first, second) in PIECES.iter().flat_map(|first| PIECES.iter().map(move |second| (first, second))) {
        for before in 0..8 {
            let text = format!("x{}{first}{second}", "a".repeat(before));
            agrees(&mut decoder, &json(&format!(r#","algorithm":"{text}","{text}b":1"#)), 1);
        }
    }
}

#[test]
fn a_text_that_is_cut_anywhere_has_no_end() {
    let mut decoder = decoder();
    for piece in PIECES {
        for before in 0..=9 {
            let text = format!("x{}{piece}bbbbbbbb", "a".repeat(before));
            let value = json(&format!(r#","algorithm":"{text}","eventId":"{USER}""#));
            for length in json("").len()..value.len() {
                let Verdict::Reject(reject) = decoder.decode(Some(&value[..length]), RECORDED_AT_MS) else {
                    panic!("cut to {length} bytes: {}", value.escape_ascii());
                };
                let found = reject.reason;
                assert_eq!(found, RejectReason::JsonMalformed, "{length}: {}", value.escape_ascii());
            }
        }
    }
}

#[test]
fn an_id_with_any_byte_at_any_place_is_judged_as_before_it_was_read_at_once() {
    let mut decoder = decoder();
    let good = json(&format!(r#","eventId":"{USER}""#));
    let start = good.len() - 2 - USER.len();
    for at in start - 1..=start + USER.len() {
        for byte in 0..=255 {
            let mut value = good.clone();
            value[at] = byte;
            let is_json = serde_json::from_slice::<Value>(&value).is_ok();
            let id = value.get(start..start + USER.len()).unwrap();
            let is_hyphen = |place: usize| [8, 13, 18, 23].contains(&place);
            let fits = |(place, byte): (usize, &u8)| match is_hyphen(place) {
                true => *byte == b'-',
                false => byte.is_ascii_hexdigit(),
            };
            let is_id = id.iter().enumerate().all(fits);
            let expected = match (is_json, is_id) {
                (true, true) => None,
                (true, false) => Some(RejectReason::BadUuid),
                (false, _) => Some(RejectReason::JsonMalformed),
            };
            let found = match decoder.decode(Some(&value), RECORDED_AT_MS) {
                Verdict::Accept(event) => {
                    let sent = id.to_ascii_lowercase().escape_ascii().to_string();
                    assert_eq!(event.event_id.unwrap().to_string(), sent);
                    None
                }
                Verdict::Reject(reject) => Some(reject.reason),
                other => panic!("{other:?}"),
            };
            assert_eq!(found, expected, "{}", value.escape_ascii());
        }
    }
}

/// Whether the event was accepted. `at_least` members become metadata.
fn agrees(decoder: &mut Decoder, value: &[u8], at_least: usize) -> bool {
    let sent = serde_json::from_slice::<Value>(value);
    let shown = value.escape_ascii();
    match (decoder.decode(Some(value), RECORDED_AT_MS), sent) {
        (Verdict::Accept(event), Ok(sent)) => {
            assert_eq!(event.video_id.to_string(), VIDEO);
            assert_eq!(event.feed_session_id, sent.get("feedSessionId").and_then(Value::as_str), "{shown}");
            assert_eq!(event.algorithm, sent.get("algorithm").and_then(Value::as_str), "{shown}");
            let kept: Value = serde_json::from_str(event.metadata.unwrap()).unwrap();
            let kept = kept.as_object().unwrap();
            assert!(kept.len() >= at_least, "{shown}");
            let sent = sent.get("metadata").unwrap_or(&sent);
            for (key, text) in kept {
                let text = text.as_str().unwrap();
                match &sent[key] {
                    Value::String(sent) => assert_eq!(sent, text, "{shown}"),
                    sent => assert_eq!(*sent, serde_json::from_str::<Value>(text).unwrap(), "{shown}"),
                }
            }
            true
        }
        (Verdict::Reject(reject), Err(_)) => {
            assert_eq!(reject.reason, RejectReason::JsonMalformed, "{shown}");
            false
        }
        (verdict, sent) => panic!("{verdict:?}, and serde_json says {sent:?}: {shown}"),
    }
}
