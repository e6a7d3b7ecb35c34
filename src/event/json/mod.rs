//! Events as plain JSON, as the feed's API emits them and as they are met.
//!
//! - The keys of the reader schema are taken as they are, case included. Every other top-level key is
//!   an entry of the metadata, beside the entries of `metadata` itself. If both have the same key, the
//!   one in `metadata` counts: it was put there on purpose, the other one is the remainder.
//! - The score is `recommendationScore`, else `recommendation_score`, else the entry
//!   `recommendationScore`, else `recommendation_score`, of `metadata`: the first that is there and not
//!   null. That one leaves the metadata. Those after it stay, or become, entries of it. Inside
//!   `metadata` it may also be a string that holds a JSON number, for these are maps of strings to
//!   many; whatever else it is, the event is refused (`wrong_type`), not read as "not recommended".
//! - An entry that is no string is kept as its JSON text, byte for byte as it was sent: `1.50` stays
//!   `1.50`, `null` stays `null`, and white space in a nested object stays too.
//! - Null in a field, `recommendation_score` included, is as good as nothing. A `metadata` that is
//!   neither null nor an object is refused.
//! - Refused as a whole: a key twice in one object at any level (escapes make no difference), anything
//!   but white space after the object, objects and arrays more than 32 deep, half a surrogate pair.
//!   Of so many keys that the metadata limit is passed for certain the rest is not read.

pub(super) mod scan;
mod token;

use std::mem;

use super::interaction::{Checks, Interaction};
use super::metadata::{self, ENTRIES_MAX, Entry};
use super::raw::{Field, Raw, RawEvent, RawMetadata, Wanted};
use super::reject::{Reject, RejectReason};
use scan::{Fault, Scanner};
use token::{Kind, Token};

/// The other way in which the score is met.
const SCORE_SNAKE_CASE: &str = "recommendation_score";

/// So many keys and the metadata has too many entries for certain: one may leave it as the score.
const KEYS_MAX: usize = ENTRIES_MAX + 1;

/// What every event within its limits fits into. More, and a value of 1 MiB that is one escaped string
/// would make us hold it two or three times over; less, and metadata within its limit would not fit.
const UNESCAPED_BYTES_MAX: usize = 64 * 1024;

/// An id's text, the one form that is taken.
const UUID_BYTES: usize = 36;

type Pair<'v> = (Token<'v>, Token<'v>);

#[derive(Debug, Default)]
pub(super) struct Scratch {
    unknown: Vec<Pair<'static>>,
    entries: Vec<Pair<'static>>,
    nested_keys: Vec<Token<'static>>,
    /// Values of the strings that have escapes, one after the other, and where each ends.
    unescaped: String,
    unescaped_ends: Vec<usize>,
}

/// What was sent, as it stands in the text.
#[derive(Debug, Default)]
struct Sent<'v> {
    raw: RawEvent<'v>,
    /// The fields that were met, null or not; and those that are strings with escapes, as they were sent.
    met: Fields,
    escaped: Fields,
    metadata_is_object: bool,
    score_snake_case: Option<Token<'v>>,
    unknown: Vec<Pair<'v>>,
    entries: Vec<Pair<'v>>,
    /// Whether any string has one.
    has_escapes: bool,
}

/// A set of them, a bit for each.
#[derive(Debug, Clone, Copy, Default)]
struct Fields(u16);

impl Fields {
    fn has(self, field: Field) -> bool {
        self.0 & (1 << field as u16) != 0
    }

    fn add(&mut self, field: Field) {
        self.0 |= 1 << field as u16;
    }

    fn remove(&mut self, field: Field) {
        self.0 &= !(1 << field as u16);
    }
}

pub(super) fn decode<'a>(
    value: &'a [u8],
    checks: &Checks<'_>,
    scratch: &'a mut super::Scratch,
) -> Result<Interaction<'a>, Reject> {
    let text = std::str::from_utf8(value).map_err(|error| {
        Reject::new(RejectReason::JsonMalformed)
            .detail(format!("not UTF-8 after byte {}", error.valid_up_to()))
    })?;
    let json = &mut scratch.json;
    let mut sent = Sent {
        unknown: mem::take(&mut json.unknown),
        entries: mem::take(&mut json.entries),
        ..Sent::default()
    };
    let mut scanner = Scanner::new(text, mem::take(&mut json.nested_keys));
    let read = sent.read(&mut scanner);
    json.nested_keys = recycle_tokens(scanner.into_keys());
    let accepted = read.and_then(|()| {
        sent.unescape(&mut json.unescaped, &mut json.unescaped_ends);
        sent.place_unescaped(&json.unescaped, &json.unescaped_ends);
        let mut entries = mem::take(&mut scratch.entries);
        sent.resolve(&mut entries);
        let accepted = checks.apply(&sent.raw, &mut entries, &mut scratch.canonical);
        scratch.entries = metadata::recycle(entries);
        accepted
    });
    json.unknown = recycle_pairs(sent.unknown);
    json.entries = recycle_pairs(sent.entries);
    accepted
}

impl<'v> Sent<'v> {
    /// Reads the text to its end.
    fn read(&mut self, scanner: &mut Scanner<'v>) -> Result<(), Reject> {
        let mut known = None;
        self.read_object(scanner, &mut known).map_err(|fault| refused(fault, scanner.position(), known))
    }

    /// `known` is left at the field that was last met, if the key was one.
    fn read_object(&mut self, scanner: &mut Scanner<'v>, known: &mut Option<Field>) -> Result<(), Fault> {
        scanner.open_object()?;
        let mut is_first = true;
        while let Some(key) = scanner.key(is_first)? {
            is_first = false;
            *known = field_of_key(&key);
            if *known == Some(Field::Metadata) && scanner.at_object() {
                read_entries(scanner, &mut self.entries)?;
                self.put(Field::Metadata, Token { kind: Kind::Object, text: "" })?;
                continue;
            }
            let id = match *known {
                Some(field) if field.wanted() == Wanted::Uuid => scanner.plain_value::<UUID_BYTES>(),
                _ => None,
            };
            let value = match id {
                Some(id) => id,
                None => scanner.value(1)?,
            };
            match *known {
                Some(field) => self.put(field, value)?,
                None if key.is(SCORE_SNAKE_CASE) => {
                    if self.score_snake_case.replace(value).is_some() {
                        return Err(Fault::DuplicateKey);
                    }
                }
                None => push_entry(&mut self.unknown, key, value)?,
            }
        }
        *known = None;
        self.has_escapes = scanner.has_escapes();
        scanner.end()
    }

    #[inline]
    fn put(&mut self, field: Field, value: Token<'v>) -> Result<(), Fault> {
        if self.met.has(field) {
            return Err(Fault::DuplicateKey);
        }
        self.met.add(field);
        match value.kind {
            Kind::Escaped => self.escaped.add(field),
            Kind::Object if field == Field::Metadata => self.metadata_is_object = true,
            _ => {}
        }
        self.raw.set(field, raw_of(&value));
        Ok(())
    }

    /// Every token that may be a string with escapes, always in the same order.
    fn for_each_token(&mut self, mut visit: impl FnMut(&mut Token<'v>)) {
        for field in Field::ALL {
            if self.escaped.has(field)
                && let Raw::Text(text) = self.raw.get(field)
            {
                let mut token = Token { kind: Kind::Escaped, text };
                visit(&mut token);
                if token.kind == Kind::String {
                    self.escaped.remove(field);
                    self.raw.set(field, Raw::Text(token.text));
                }
            }
        }
        self.score_snake_case.iter_mut().for_each(&mut visit);
        for (key, value) in self.unknown.iter_mut().chain(&mut self.entries) {
            visit(key);
            visit(value);
        }
    }

    /// A string that is past every limit stays as it was sent, which is longer still: the rules refuse it.
    fn unescape(&mut self, text: &mut String, ends: &mut Vec<usize>) {
        text.clear();
        ends.clear();
        if !self.has_escapes {
            return;
        }
        self.for_each_token(|token| {
            if token.kind != Kind::Escaped {
                return;
            }
            let length: usize = token.chars().map(char::len_utf8).sum();
            if text.len() + length > UNESCAPED_BYTES_MAX {
                token.kind = Kind::String;
            } else {
                text.extend(token.chars());
                ends.push(text.len());
            }
        });
    }

    /// Points the tokens that had escapes to their values.
    fn place_unescaped(&mut self, text: &'v str, ends: &[usize]) {
        if ends.is_empty() {
            return;
        }
        let mut start = 0;
        let mut ends = ends.iter();
        self.for_each_token(|token| {
            if token.kind == Kind::Escaped
                && let Some(&end) = ends.next()
            {
                token.kind = Kind::String;
                token.text = text.get(start..end).unwrap_or_default();
                start = end;
            }
        });
    }

    /// Finds the score, and fills `entries` with what is metadata.
    fn resolve(&mut self, entries: &mut Vec<Entry<'v>>) {
        self.settle_score();
        // Of two entries with one key the later counts: those of `metadata` itself.
        let kept = self.unknown.iter().chain(&self.entries);
        entries.extend(kept.map(|(key, value)| (key.text, value.text)));
        let may_take_entries = self.metadata_is_object || self.raw.metadata == RawMetadata::Absent;
        if may_take_entries && (self.metadata_is_object || !entries.is_empty()) {
            self.raw.metadata = RawMetadata::Entries;
        }
    }

    /// Finds the score in the first of its places, and takes it out of there.
    fn settle_score(&mut self) {
        let snake_case = self.score_snake_case.take().filter(|token| token.kind != Kind::Null);
        if self.raw.get(Field::RecommendationScore) != Raw::Absent {
            if let Some(value) = snake_case {
                let kind = Kind::String;
                let text = SCORE_SNAKE_CASE;
                self.unknown.push((Token { kind, text }, value));
            }
            return;
        }
        if let Some(value) = snake_case {
            self.raw.set(Field::RecommendationScore, raw_of(&value));
            return;
        }
        for name in [Field::RecommendationScore.name(), SCORE_SNAKE_CASE] {
            let is_score = |(key, value): &Pair<'v>| key.text == name && value.kind != Kind::Null;
            let Some(at) = self.entries.iter().position(is_score) else {
                continue;
            };
            let (_, value) = self.entries.remove(at);
            let score = match raw_of(&value) {
                Raw::Text(text) if scan::is_number(text) => Raw::Number(text),
                other => other,
            };
            self.raw.set(Field::RecommendationScore, score);
            return;
        }
    }
}

fn field_of_key(key: &Token<'_>) -> Option<Field> {
    match key.kind {
        Kind::Escaped => Field::ALL.into_iter().find(|field| key.is(field.name())),
        _ => Field::of_name(key.text),
    }
}

/// Reads the object that is `metadata`.
fn read_entries<'v>(scanner: &mut Scanner<'v>, entries: &mut Vec<Pair<'v>>) -> Result<(), Fault> {
    // A second `metadata` is found to be a duplicate after its entries: they must not mix.
    entries.clear();
    scanner.open_object()?;
    let mut is_first = true;
    while let Some(key) = scanner.key(is_first)? {
        is_first = false;
        let value = scanner.value(2)?;
        push_entry(entries, key, value)?;
    }
    Ok(())
}

/// The comparison with all keys so far is bounded by [`KEYS_MAX`].
fn push_entry<'v>(entries: &mut Vec<Pair<'v>>, key: Token<'v>, value: Token<'v>) -> Result<(), Fault> {
    if entries.iter().any(|(known, _)| known.same(&key)) {
        return Err(Fault::DuplicateKey);
    }
    if entries.len() >= KEYS_MAX {
        return Err(Fault::TooManyKeys);
    }
    entries.push((key, value));
    Ok(())
}

fn raw_of<'v>(token: &Token<'v>) -> Raw<'v> {
    match token.kind {
        Kind::String | Kind::Escaped => Raw::Text(token.text),
        Kind::Number => Raw::Number(token.text),
        Kind::Null => Raw::Absent,
        Kind::Boolean => Raw::Other("boolean"),
        Kind::Object => Raw::Other("object"),
        Kind::Array => Raw::Other("array"),
    }
}

fn refused(fault: Fault, position: usize, known: Option<Field>) -> Reject {
    match fault {
        Fault::Malformed(what) => {
            Reject::new(RejectReason::JsonMalformed).detail(format!("{what} at byte {position}"))
        }
        Fault::DuplicateKey => {
            let reject =
                Reject::new(RejectReason::JsonDuplicateKey).detail(format!("before byte {position}"));
            match known {
                Some(field) => reject.field(field.name()),
                None => reject,
            }
        }
        Fault::TooManyKeys => metadata::too_many_entries(),
    }
}

/// Gives the buffer back without what it held. (The compiler collects in place: no allocation.)
fn recycle_tokens(mut tokens: Vec<Token<'_>>) -> Vec<Token<'static>> {
    tokens.clear();
    tokens.into_iter().map(|_| Token::NULL).collect()
}

fn recycle_pairs(mut pairs: Vec<Pair<'_>>) -> Vec<Pair<'static>> {
    pairs.clear();
    pairs.into_iter().map(|_| (Token::NULL, Token::NULL)).collect()
}
