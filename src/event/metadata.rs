//! Metadata as canonical JSON (RFC 8785): one object of strings, keys sorted by their UTF-16 code
//! units, no white space, no escape that is not needed. Both sinks hold exactly this text: the file
//! keeps it as it is, and what jsonb prints of it is brought back by [`recanonicalize`].

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use super::interaction::has_nul;
use super::json::scan::Scanner;
use super::reject::{Reject, RejectReason};
use super::words::{is_plain, plain_end};

/// Key and value.
pub(super) type Entry<'a> = (&'a str, &'a str);

pub(super) const ENTRIES_MAX: usize = 64;
pub(super) const CANONICAL_BYTES_MAX: usize = 16 * 1024;

/// Entries that are read back from a table. None of ours has more than [`ENTRIES_MAX`]; without a bound
/// a row of somebody else's, of 1 MiB, could make us remember 170,000.
const READ_BACK_ENTRIES_MAX: usize = 4096;

const FIELD: &str = "metadata";

/// Applies the limits and writes the canonical text. Of two entries with one key the later counts.
pub(super) fn write_checked<'a>(
    entries: &mut Vec<Entry<'_>>,
    canonical: &'a mut String,
) -> Result<&'a str, Reject> {
    sort_entries(entries);
    if entries.len() > ENTRIES_MAX {
        return Err(too_many_entries());
    }
    // Escaping makes a text at most six times as long: what is too long already is not written.
    let raw_bytes: usize = entries.iter().map(|(k, v)| k.len() + v.len()).sum();
    if raw_bytes > CANONICAL_BYTES_MAX {
        return Err(too_long());
    }
    let are_plain = entries.iter().all(|(k, v)| is_plain(k.as_bytes()) && is_plain(v.as_bytes()));
    if !are_plain && entries.iter().any(|(k, v)| has_nul(k) || has_nul(v)) {
        return Err(Reject::new(RejectReason::BadString).field(FIELD).detail("holds NUL"));
    }
    canonical.clear();
    if are_plain {
        write_plain_object(entries, canonical);
    } else {
        write_object(entries, canonical);
    }
    if canonical.len() > CANONICAL_BYTES_MAX {
        return Err(too_long());
    }
    Ok(canonical)
}

pub(super) fn too_many_entries() -> Reject {
    Reject::new(RejectReason::MetadataTooLarge)
        .field(FIELD)
        .detail(format!("more than {ENTRIES_MAX} entries"))
}

fn too_long() -> Reject {
    Reject::new(RejectReason::MetadataTooLarge)
        .field(FIELD)
        .detail(format!("more than {CANONICAL_BYTES_MAX} bytes as canonical JSON"))
}

/// Appends the canonical text of `pairs` to `out`. Of two pairs with one key the later counts.
pub fn canonical_metadata<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>, out: &mut String) {
    let mut entries: Vec<Entry<'a>> = pairs.collect();
    sort_entries(&mut entries);
    write_object(&entries, out);
}

/// What was to be brought back to canonical text is no JSON object of strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotStringMap {
    /// Where in the text this was seen.
    pub position: usize,
}

impl fmt::Display for NotStringMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a JSON object of strings (byte {})", self.position)
    }
}

impl std::error::Error for NotStringMap {}

/// Appends to `out` the canonical text of an object of strings in any other formatting: what
/// Postgres prints of a jsonb has other spacing, and its keys sorted by length. On an error nothing is
/// appended.
pub fn recanonicalize(jsonb_text: &str, out: &mut String) -> Result<(), NotStringMap> {
    let mut scanner = Scanner::new(jsonb_text, Vec::new());
    let Some(tokens) = scan_string_map(&mut scanner) else {
        let position = scanner.position();
        return Err(NotStringMap { position });
    };
    let mut entries: Vec<Entry<'_>> = tokens.iter().map(|(k, v)| (&**k, &**v)).collect();
    sort_entries(&mut entries);
    write_object(&entries, out);
    Ok(())
}

type Decoded<'v> = (Cow<'v, str>, Cow<'v, str>);

fn scan_string_map<'v>(scanner: &mut Scanner<'v>) -> Option<Vec<Decoded<'v>>> {
    let mut decoded = Vec::new();
    scanner.open_object().ok()?;
    while let Some(key) = scanner.key(decoded.is_empty()).ok()? {
        let value = scanner.value(1).ok()?;
        if !value.is_string() || decoded.len() >= READ_BACK_ENTRIES_MAX {
            return None;
        }
        decoded.push((key.decoded(), value.decoded()));
    }
    scanner.end().ok()?;
    Some(decoded)
}

/// Gives the buffer back without what it held. (The compiler collects in place: no allocation.)
pub(super) fn recycle(mut entries: Vec<Entry<'_>>) -> Vec<Entry<'static>> {
    entries.clear();
    entries.into_iter().map(|_| ("", "")).collect()
}

fn sort_entries(entries: &mut Vec<Entry<'_>>) {
    // Stable, and without allocation for as many entries as an event may have.
    entries.sort_by(|(a, _), (b, _)| cmp_utf16(a, b));
    entries.dedup_by(|later, earlier| {
        let same = later.0 == earlier.0;
        if same {
            earlier.1 = later.1;
        }
        same
    });
}

/// The order of the UTF-16 code units. It is that of the UTF-8 bytes, except that U+E000 to U+FFFF
/// (lead bytes EE and EF) come after everything that UTF-16 writes as surrogates (lead bytes F0 to F4).
fn cmp_utf16(a: &str, b: &str) -> Ordering {
    let rank = |byte: u8| match byte {
        0xEE | 0xEF => byte + 0x10,
        _ => byte,
    };
    a.bytes().map(rank).cmp(b.bytes().map(rank))
}

/// The same as [`write_object`], where nothing needs an escape.
fn write_plain_object(entries: &[Entry<'_>], out: &mut String) {
    out.push('{');
    for (index, (key, value)) in entries.iter().enumerate() {
        out.push_str(if index > 0 { ",\"" } else { "\"" });
        out.push_str(key);
        out.push_str("\":\"");
        out.push_str(value);
        out.push('"');
    }
    out.push('}');
}

fn write_object(entries: &[Entry<'_>], out: &mut String) {
    out.push('{');
    for (index, (key, value)) in entries.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_string(key, out);
        out.push(':');
        write_string(value, out);
    }
    out.push('}');
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    if is_plain(text.as_bytes()) {
        out.push_str(text);
    } else {
        write_escaped(text, out);
    }
    out.push('"');
}

fn write_escaped(text: &str, out: &mut String) {
    let mut start = 0;
    let mut searched = 0;
    loop {
        let at = plain_end(text.as_bytes(), searched);
        // Only ASCII needs an escape, so both sides of it are whole characters.
        out.push_str(text.get(start..at).unwrap_or_default());
        let Some(&special) = text.as_bytes().get(at) else {
            return;
        };
        searched = at + 1;
        start = searched;
        if let b'"' | b'\\' = special {
            out.push('\\');
            start = at;
        } else {
            write_escape(special, out);
        }
    }
}

/// Of a control character.
fn write_escape(special: u8, out: &mut String) {
    out.push('\\');
    match special {
        0x8 => out.push('b'),
        b'\t' => out.push('t'),
        b'\n' => out.push('n'),
        0xC => out.push('f'),
        b'\r' => out.push('r'),
        other => {
            out.push_str("u00");
            out.push(if other >= 0x10 { '1' } else { '0' });
            out.push(char::from_digit(u32::from(other) & 0xF, 16).unwrap_or('0'));
        }
    }
}
