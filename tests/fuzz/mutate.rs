//! Changes that break parsers.

use crate::support::Random;

/// Pieces that stand at some limit of some format.
const WORDS: &[&[u8]] = &[
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\x00",
    b"\x80\x80\x80\x80\x10",
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"\x00\x10\x00\x00",
    b"\x00\x11",
    b"\xff\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xef\xbb\xbf",
    b"\xee\x80\x80",
    b"\xf0\x9f\x98\x80",
    b"\\ud800",
    b"\\udc00",
    b"\\ud83d\\ude00",
    b"\\u0000",
    b"\\",
    b"\"",
    b"null",
    b"true",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"1e999",
    b"-0",
    b"-1",
    b"0.1e-400",
    b"2147483648",
    b"9223372036854775808",
    b"18446744073709551616",
    b"9007199254740993",
    b"NaN",
    b"-Infinity",
    b"\"userId\":null,",
    b"\"metadata\":{},",
    b"\"recommendation_score\":1,",
    b"\"a\":{\"b\":1,\"b\":2},",
    b"2026-02-30T24:00:60Z",
    b"+",
    b"/",
    b"..",
    b"\n",
    b" ",
];

/// One to four changes. `other` is another input of the same target, to take pieces from.
pub fn mutate(value: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        if value.is_empty() {
            value.push(random.next() as u8);
        }
        let at = random.below(value.len());
        match random.below(13) {
            0 => value[at] ^= 1 << random.below(8),
            1 => value[at] = random.next() as u8,
            2 => value.truncate(at),
            3 => {
                let end = at + random.below((value.len() - at).min(9) + 1);
                drop(value.drain(at..end));
            }
            4 => value.insert(at, random.next() as u8),
            5 => {
                let piece = piece(value, random).to_vec();
                drop(value.splice(at..at, piece));
            }
            6 if !other.is_empty() => {
                let piece = piece(other, random);
                drop(value.splice(at..at, piece.iter().copied()));
            }
            7 | 8 => drop(value.splice(at..at, random.pick(WORDS).iter().copied())),
            9 => {
                let word = random.pick(WORDS);
                let end = (at + word.len()).min(value.len());
                drop(value.splice(at..end, word.iter().copied()));
            }
            10 => value[at] = value[at].wrapping_add(*random.pick(&[1, 2, 0xFF, 0x80])),
            11 => {
                let (a, b) = (random.below(value.len()), random.below(value.len()));
                value.swap(a, b);
            }
            _ => repeat_members(value, random),
        }
    }
}

fn piece<'a>(from: &'a [u8], random: &mut Random) -> &'a [u8] {
    let start = random.below(from.len());
    let length = random.below((from.len() - start).min(300) + 1);
    &from[start..start + length]
}

/// What lies between two commas comes twice: a duplicate key, most of the time.
fn repeat_members(value: &mut Vec<u8>, random: &mut Random) {
    let commas: Vec<usize> =
        value.iter().enumerate().filter(|(_, b)| **b == b',').map(|(at, _)| at).collect();
    if commas.len() < 2 {
        return;
    }
    let first = random.below(commas.len() - 1);
    let member = value[commas[first]..commas[first + 1]].to_vec();
    let to = *random.pick(&commas);
    drop(value.splice(to..to, member));
}
