//! A row as the audit sees it, whatever it was read from; and the bytes that row hashes are over, written
//! down a second time from docs/exports.md.

use chrono::{DateTime, NaiveDate};
use xxhash_rust::xxh3::Xxh3;

pub const COLUMNS: [&str; 17] = [
    "kafka_partition",
    "kafka_offset",
    "recorded_at",
    "occurred_at",
    "ingested_at",
    "user_id",
    "video_id",
    "interaction_type",
    "interaction_weight",
    "watch_time_seconds",
    "recommendation_score",
    "position",
    "algorithm",
    "experiment_variant_id",
    "feed_session_id",
    "event_id",
    "metadata",
];

pub const DAY_MS: i64 = 86_400_000;
/// 2000-01-01T00:00:00Z, from where Postgres counts, in microseconds since 1970.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Times in microseconds since 1970; metadata as it stands in the file, or as canonical JSON of the table's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    pub partition: i32,
    pub offset: i64,
    pub recorded_us: i64,
    pub occurred_us: i64,
    pub ingested_us: i64,
    pub user: [u8; 16],
    pub video: [u8; 16],
    pub kind: String,
    pub weight: f32,
    pub watch_time: Option<f64>,
    pub score: Option<f64>,
    pub position: Option<i32>,
    pub algorithm: Option<String>,
    pub variant: Option<String>,
    pub session: Option<String>,
    pub event: Option<[u8; 16]>,
    pub metadata: Option<String>,
}

impl Row {
    pub fn day(&self) -> i32 {
        day_of_us(self.recorded_us)
    }

    pub fn recorded_ms(&self) -> i64 {
        self.recorded_us.div_euclid(1000)
    }

    /// Each column's bytes as Postgres's binary COPY has them, none for null.
    fn fields(&self) -> [Option<Vec<u8>>; 17] {
        let time = |us: i64| Some((us - POSTGRES_EPOCH_US).to_be_bytes().to_vec());
        let text = |text: &Option<String>| text.as_ref().map(|text| text.as_bytes().to_vec());
        let double = |value: Option<f64>| value.map(|value| value.to_be_bytes().to_vec());
        let jsonb = |text: &String| [b"\x01", text.as_bytes()].concat();
        [
            Some(self.partition.to_be_bytes().to_vec()),
            Some(self.offset.to_be_bytes().to_vec()),
            time(self.recorded_us),
            time(self.occurred_us),
            time(self.ingested_us),
            Some(self.user.to_vec()),
            Some(self.video.to_vec()),
            Some(self.kind.as_bytes().to_vec()),
            Some(self.weight.to_be_bytes().to_vec()),
            double(self.watch_time),
            double(self.score),
            self.position.map(|position| position.to_be_bytes().to_vec()),
            text(&self.algorithm),
            text(&self.variant),
            text(&self.session),
            self.event.map(|id| id.to_vec()),
            self.metadata.as_ref().map(jsonb),
        ]
    }

    /// The columns in which two rows differ (floats by their bits), none if they are the same.
    pub fn differences(&self, other: &Row) -> Option<String> {
        // The usual case is worth not making seventeen small allocations for.
        if self == other && !self.has_zero() {
            return None;
        }
        let pairs = self.fields().into_iter().zip(other.fields());
        let differing: Vec<&str> =
            COLUMNS.into_iter().zip(pairs).filter(|(_, (a, b))| a != b).map(|(column, _)| column).collect();
        (!differing.is_empty()).then(|| differing.join(", "))
    }

    /// 0 and -0 are equal as numbers, not as bits.
    fn has_zero(&self) -> bool {
        self.weight == 0.0 || self.watch_time == Some(0.0) || self.score == Some(0.0)
    }
}

/// The row hash: XXH3-128 over the rows in the order of their offsets.
#[derive(Default)]
pub struct Hash {
    state: Xxh3,
    tuple: Vec<u8>,
}

impl Hash {
    pub fn add(&mut self, row: &Row) {
        self.tuple.clear();
        self.tuple.extend_from_slice(&17i16.to_be_bytes());
        for field in row.fields() {
            match field {
                None => self.tuple.extend_from_slice(&(-1i32).to_be_bytes()),
                Some(bytes) => {
                    self.tuple.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
                    self.tuple.extend_from_slice(&bytes);
                }
            }
        }
        self.state.update(&self.tuple);
    }

    pub fn hex(&self) -> String {
        format!("{:032x}", self.state.digest128())
    }
}

pub fn day_of_us(us: i64) -> i32 {
    us.div_euclid(DAY_MS * 1000) as i32
}

/// `YYYY-MM-DD`
pub fn day_text(day: i32) -> String {
    let epoch = NaiveDate::default();
    match epoch.checked_add_signed(chrono::TimeDelta::days(i64::from(day))) {
        Some(date) => date.format("%Y-%m-%d").to_string(),
        None => format!("day {day}"),
    }
}

pub fn parse_day(text: &str) -> Option<i32> {
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    let day = i32::try_from(date.signed_duration_since(NaiveDate::default()).num_days()).ok()?;
    (day_text(day) == text).then_some(day)
}

/// RFC 3339 with milliseconds.
pub fn time_text(ms: i64) -> String {
    match DateTime::from_timestamp_millis(ms) {
        Some(time) => time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        None => format!("{ms} ms"),
    }
}

/// A hyphenated UUID of 36 characters in either case; nothing else that some library would take.
pub fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    let text: &[u8; 36] = text.try_into().ok()?;
    let mut digits =
        text.iter().enumerate().filter(|(at, _)| !matches!(at, 8 | 13 | 18 | 23)).map(|(_, b)| b);
    if [8, 13, 18, 23].iter().any(|at| text[*at] != b'-') {
        return None;
    }
    let mut id = [0; 16];
    for byte in &mut id {
        let (high, low) = (digits.next()?, digits.next()?);
        let value = |digit: &u8| char::from(*digit).to_digit(16);
        *byte = u8::try_from(value(high)? * 16 + value(low)?).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_times_have_one_spelling() {
        for (day, text) in
            [(0, "1970-01-01"), (20_500, "2026-02-16"), (-1, "1969-12-31"), (11_016, "2000-02-29")]
        {
            assert_eq!(day_text(day), text);
            assert_eq!(parse_day(text), Some(day));
        }
        for text in ["2026-2-16", "2026-02-30", "", "2026-02-16 ", "x"] {
            assert_eq!(parse_day(text), None, "{text}");
        }
        assert_eq!(time_text(1_771_200_000_007), "2026-02-16T00:00:00.007Z");
        assert_eq!(day_of_us(-1), -1);
    }

    #[test]
    fn only_hyphenated_uuids_are_read() {
        let id = parse_uuid(b"0aBC0000-0000-4000-8000-00000000000f").unwrap();
        assert_eq!((id[0], id[1], id[15]), (0x0a, 0xbc, 0x0f));
        let others: [&[u8]; 4] = [
            b"0abc00000000400080000000000000000000",
            b"0abc0000-0000-4000-8000-00000000000g",
            b"{abc0000-0000-4000-8000-00000000000f",
            b"",
        ];
        for text in others {
            assert_eq!(parse_uuid(text), None);
        }
    }

    #[test]
    fn rows_that_differ_in_a_bit_differ() {
        let one = Row { score: Some(0.0), ..Row::default() };
        let two = Row { score: Some(-0.0), metadata: Some("{}".to_owned()), ..Row::default() };
        assert_eq!(one.differences(&two).unwrap(), "recommendation_score, metadata");
        assert_eq!(one.differences(&one.clone()), None);
        let (mut a, mut b) = (Hash::default(), Hash::default());
        a.add(&one);
        b.add(&two);
        assert_ne!(a.hex(), b.hex());
    }
}
