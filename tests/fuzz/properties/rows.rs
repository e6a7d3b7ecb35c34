//! Rows as Postgres sends them. Where a stream is cut makes no difference, every row is the bytes of what
//! is read of it, and metadata is canonical.

use std::collections::HashMap;

use feed_worker::event::{Decoder, recanonicalize};
use feed_worker::row::{
    COPY_HEADER, COPY_TRAILER, CopyOutParser, RowError, RowRef, Rows, canonical_from_postgres, row_hash,
};
use serde_json::{Map, Value};

use super::Target;
use super::events::assert_canonical;
use crate::generate;
use crate::meter::{BYTES_MAX, Meter};
use crate::support::{self, Random};

/// Rows come in pieces of at most a network buffer, and what they become is the caller's: beyond the
/// bound for all, what is held may be a few times the input.
fn bytes_max(input: &[u8]) -> usize {
    BYTES_MAX + 4 * input.len().saturating_sub(64 << 10)
}

pub struct Copy(Decoder);

impl Copy {
    pub fn new() -> Self {
        Self(support::decoder())
    }

    fn rows(&self, count: usize, random: &mut Random) -> Vec<u8> {
        let mut stream = COPY_HEADER.to_vec();
        for offset in 0..count {
            generate::row(&mut stream, offset as i64, self.0.types(), random);
        }
        stream.extend(COPY_TRAILER);
        stream
    }
}

/// What became of a stream that came in these pieces.
fn parse<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Result<u64, RowError>) {
    let (mut parser, mut out) = (CopyOutParser::new(), Vec::new());
    for piece in pieces {
        if let Err(error) = parser.push(piece, &mut out) {
            return (out, Err(error));
        }
    }
    (out, parser.finish())
}

impl Target for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }
    fn share(&self) -> u64 {
        110
    }
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let count = random.below(4);
        self.rows(count, random)
    }
    fn huge(&mut self, random: &mut Random) -> Vec<u8> {
        let mut stream = self.rows(400, random);
        match random.below(3) {
            0 => {}
            // The last column of the first row says that it is longer than it is.
            1 => stream.truncate(COPY_HEADER.len() + 98),
            _ => stream.splice(15..19, 0x000F_0000_u32.to_be_bytes()).for_each(drop),
        }
        stream.resize(stream.len().max(300_000), 0);
        stream
    }
    fn check(&mut self, input: &[u8], meter: &mut Meter) -> bool {
        meter.run(input.len(), bytes_max(input), || drop(parse(std::iter::once(input))));
        meter.run(input.len(), bytes_max(input), || drop(canonical_from_postgres(input, &mut Vec::new())));
        let (whole, result) = parse(std::iter::once(input));
        // Cuts that depend on the input alone, and cuts everywhere.
        let cut = 1 + input.iter().fold(0usize, |sum, byte| sum.wrapping_mul(31) + usize::from(*byte)) % 97;
        for piece in [1, cut] {
            if input.len() < 2_000 || piece > 16 {
                assert_eq!(
                    parse(input.chunks(piece)),
                    (whole.clone(), result.clone()),
                    "in pieces of {piece}"
                );
            }
        }
        check_rows(&whole);
        if result.is_ok() {
            let (_, longer) = parse([input, b"\0"].into_iter());
            assert_eq!(longer, Err(RowError::AfterCopyTrailer), "with a byte behind its end");
        }
        // The bytes behind the header may also be met as bare rows.
        if let Some(bare) = input.get(COPY_HEADER.len()..) {
            for row in Rows::new(bare).map_while(Result::ok).take(3) {
                assert!(encode(&row) == row.bytes());
                canonical_from_postgres(row.bytes(), &mut Vec::new()).ok();
            }
        }
        result.is_ok()
    }
}

fn check_rows(tuples: &[u8]) {
    let mut canonical = Vec::new();
    for row in Rows::new(tuples) {
        let row = row.expect("what was given out is a row");
        assert!(
            encode(&row) == row.bytes(),
            "the row is not what is read of it: {}",
            row.bytes().escape_ascii()
        );
        if let Some(metadata) = row.metadata() {
            assert_canonical(metadata);
        }
        assert!(!format!("{row:?}").is_empty());
        canonical_from_postgres(row.bytes(), &mut canonical).unwrap();
    }
    assert_eq!(row_hash(&canonical), row_hash(tuples), "canonical rows are changed when they are read again");
}

/// The tuple of what can be read of a row, written a second time.
fn encode(row: &RowRef<'_>) -> Vec<u8> {
    let mut out = 17i16.to_be_bytes().to_vec();
    let mut field = |value: Option<&[u8]>| {
        out.extend(value.map_or(-1, |value| value.len() as i32).to_be_bytes());
        out.extend(value.unwrap_or_default());
    };
    let micros = |ms: i64| ((ms - 946_684_800_000) * 1000).to_be_bytes();
    field(Some(&row.partition().to_be_bytes()));
    field(Some(&row.offset().to_be_bytes()));
    field(Some(&micros(row.recorded_at_ms())));
    field(Some(&micros(row.occurred_at_ms())));
    field(Some(&micros(row.ingested_at_ms())));
    field(Some(row.user_id().as_bytes()));
    field(Some(row.video_id().as_bytes()));
    field(Some(row.interaction_type().as_bytes()));
    field(Some(&row.interaction_weight().to_be_bytes()));
    field(row.watch_time_seconds().map(f64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
    field(row.recommendation_score().map(f64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
    field(row.position().map(i32::to_be_bytes).as_ref().map(<[u8; 4]>::as_slice));
    field(row.algorithm().map(str::as_bytes));
    field(row.experiment_variant_id().map(str::as_bytes));
    field(row.feed_session_id().map(str::as_bytes));
    field(row.event_id().as_ref().map(|id| id.as_bytes().as_slice()));
    field(row.metadata().map(|json| [&[1], json.as_bytes()].concat()).as_deref());
    out
}

/// Metadata as jsonb prints it.
pub struct Jsonb;

impl Target for Jsonb {
    fn name(&self) -> &'static str {
        "jsonb"
    }
    fn share(&self) -> u64 {
        110
    }
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let pairs: Vec<_> =
            (0..random.below(6)).map(|_| (generate::text(random), generate::text(random))).collect();
        generate::jsonb_text(&pairs, random).into_bytes()
    }
    fn huge(&mut self, random: &mut Random) -> Vec<u8> {
        generate::huge_jsonb(random)
    }
    fn check(&mut self, input: &[u8], meter: &mut Meter) -> bool {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        meter.run(input.len(), bytes_max(input), || {
            recanonicalize(text, &mut String::new()).ok();
        });
        let mut canonical = String::from("before");
        if let Err(error) = recanonicalize(text, &mut canonical) {
            assert_eq!(canonical, "before");
            assert!(error.position <= text.len());
            let strings: Option<HashMap<String, String>> = serde_json::from_str(text).ok();
            assert!(strings.is_none() || input.len() > 20_000, "refused: {error}");
            return false;
        }
        let canonical = canonical.strip_prefix("before").unwrap();
        assert_canonical(canonical);
        let [sent, read] = [text, canonical].map(|t| serde_json::from_str::<Map<String, Value>>(t).unwrap());
        assert_eq!(sent, read);
        true
    }
}
