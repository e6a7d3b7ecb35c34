//! Rows, read where they lie.

use std::fmt;

use uuid::Uuid;

use super::{
    COLUMNS, FIXED_COLUMNS, FIXED_LEN, FIXED_TEMPLATE, INGESTED_AT_AT, JSONB_VERSION, OCCURRED_AT_AT,
    OFFSET_AT, PARTITION_AT, POSTGRES_EPOCH_MS, RECORDED_AT_AT, RowError, USER_ID_AT, VIDEO_ID_AT,
};

/// One row where it lies: every length is checked, texts are still bytes. For what checks many texts at once.
#[derive(Clone, Copy, PartialEq)]
pub struct RawRow<'a> {
    /// The tuple itself.
    pub bytes: &'a [u8],
    pub partition: i32,
    pub offset: i64,
    pub recorded_at_ms: i64,
    pub occurred_at_ms: i64,
    pub ingested_at_ms: i64,
    pub user_id: [u8; 16],
    pub video_id: [u8; 16],
    pub interaction_type: &'a [u8],
    pub interaction_weight: f32,
    pub watch_time_seconds: Option<f64>,
    pub recommendation_score: Option<f64>,
    pub position: Option<i32>,
    pub algorithm: Option<&'a [u8]>,
    pub experiment_variant_id: Option<&'a [u8]>,
    pub feed_session_id: Option<&'a [u8]>,
    pub event_id: Option<[u8; 16]>,
    pub metadata: Option<&'a [u8]>,
}

impl<'a> RawRow<'a> {
    /// Reads the row that `input` begins with.
    #[inline]
    pub fn first(input: &'a [u8]) -> Result<Self, RowError> {
        let Some(fixed) = input.first_chunk().filter(|fixed| has_fixed_lengths(fixed)) else {
            return Err(fault_of_fixed(input));
        };
        let mut fields = Fields { input, at: FIXED_LEN, column: FIXED_COLUMNS };
        Ok(RawRow {
            partition: i32::from_be_bytes(at(fixed, PARTITION_AT)),
            offset: i64::from_be_bytes(at(fixed, OFFSET_AT)),
            recorded_at_ms: milliseconds(at(fixed, RECORDED_AT_AT), "recorded_at")?,
            occurred_at_ms: milliseconds(at(fixed, OCCURRED_AT_AT), "occurred_at")?,
            ingested_at_ms: milliseconds(at(fixed, INGESTED_AT_AT), "ingested_at")?,
            user_id: at(fixed, USER_ID_AT),
            video_id: at(fixed, VIDEO_ID_AT),
            interaction_type: fields.required_value()?,
            interaction_weight: f32::from_be_bytes(fields.required()?),
            watch_time_seconds: fields.optional()?.map(f64::from_be_bytes),
            recommendation_score: fields.optional()?.map(f64::from_be_bytes),
            position: fields.optional()?.map(i32::from_be_bytes),
            algorithm: fields.next()?,
            experiment_variant_id: fields.next()?,
            feed_session_id: fields.next()?,
            event_id: fields.optional()?,
            metadata: fields.jsonb()?,
            bytes: &input[..fields.at],
        })
    }
}

/// Whether the field count and the lengths of the columns that are never null are as they must be.
#[inline]
fn has_fixed_lengths(fixed: &[u8; FIXED_LEN]) -> bool {
    const LENGTHS_AT: [usize; FIXED_COLUMNS] = [
        PARTITION_AT - 4,
        OFFSET_AT - 4,
        RECORDED_AT_AT - 4,
        OCCURRED_AT_AT - 4,
        INGESTED_AT_AT - 4,
        USER_ID_AT - 4,
        VIDEO_ID_AT - 4,
    ];
    let lengths_fit = LENGTHS_AT.iter().all(|from| fixed[*from..from + 4] == FIXED_TEMPLATE[*from..from + 4]);
    fixed[..2] == FIXED_TEMPLATE[..2] && lengths_fit
}

/// What is wrong with a row that does not begin as every row does.
#[cold]
fn fault_of_fixed(input: &[u8]) -> RowError {
    let fault = || {
        let count = i16::from_be_bytes(*input.first_chunk().ok_or(RowError::Truncated)?);
        if usize::try_from(count) != Ok(COLUMNS.len()) {
            return Err(RowError::FieldCount(count));
        }
        let mut fields = Fields { input, at: 2, column: 0 };
        fields.required::<4>()?;
        fields.required::<8>()?;
        for _ in ["recorded_at", "occurred_at", "ingested_at"] {
            fields.required::<8>()?;
        }
        fields.required::<16>()?;
        fields.required::<16>()
    };
    fault().err().unwrap_or(RowError::Truncated)
}

#[inline]
fn at<const N: usize>(fixed: &[u8; FIXED_LEN], from: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&fixed[from..from + N]);
    value
}

#[inline]
fn milliseconds(micros: [u8; 8], column: &'static str) -> Result<i64, RowError> {
    let micros = i64::from_be_bytes(micros);
    // Postgres's two infinities are no whole milliseconds either.
    if micros % 1000 != 0 {
        return Err(RowError::NotWholeMillisecond { column });
    }
    Ok(micros / 1000 + POSTGRES_EPOCH_MS)
}

/// A typed view of one row; the bytes stay where they are.
#[derive(Clone, Copy, PartialEq)]
pub struct RowRef<'a> {
    raw: RawRow<'a>,
    interaction_type: &'a str,
    algorithm: Option<&'a str>,
    experiment_variant_id: Option<&'a str>,
    feed_session_id: Option<&'a str>,
    metadata: Option<&'a str>,
}

impl<'a> RowRef<'a> {
    /// Reads the row that `input` begins with, and checks every column of it.
    fn parse_first(input: &'a [u8]) -> Result<Self, RowError> {
        let raw = RawRow::first(input)?;
        let text = |value: Option<&'a [u8]>, column| value.map(|value| utf8(value, column)).transpose();
        Ok(RowRef {
            interaction_type: utf8(raw.interaction_type, "interaction_type")?,
            algorithm: text(raw.algorithm, "algorithm")?,
            experiment_variant_id: text(raw.experiment_variant_id, "experiment_variant_id")?,
            feed_session_id: text(raw.feed_session_id, "feed_session_id")?,
            metadata: text(raw.metadata, "metadata")?,
            raw,
        })
    }

    /// Reads `input` as exactly one row.
    pub fn parse(input: &'a [u8]) -> Result<Self, RowError> {
        let row = Self::parse_first(input)?;
        match input.len() - row.raw.bytes.len() {
            0 => Ok(row),
            more => Err(RowError::TrailingBytes(more)),
        }
    }

    /// The tuple itself.
    pub fn bytes(&self) -> &'a [u8] {
        self.raw.bytes
    }

    pub fn partition(&self) -> i32 {
        self.raw.partition
    }

    pub fn offset(&self) -> i64 {
        self.raw.offset
    }

    pub fn recorded_at_ms(&self) -> i64 {
        self.raw.recorded_at_ms
    }

    pub fn occurred_at_ms(&self) -> i64 {
        self.raw.occurred_at_ms
    }

    pub fn ingested_at_ms(&self) -> i64 {
        self.raw.ingested_at_ms
    }

    pub fn user_id(&self) -> Uuid {
        Uuid::from_bytes(self.raw.user_id)
    }

    pub fn video_id(&self) -> Uuid {
        Uuid::from_bytes(self.raw.video_id)
    }

    pub fn interaction_type(&self) -> &'a str {
        self.interaction_type
    }

    pub fn interaction_weight(&self) -> f32 {
        self.raw.interaction_weight
    }

    pub fn watch_time_seconds(&self) -> Option<f64> {
        self.raw.watch_time_seconds
    }

    pub fn recommendation_score(&self) -> Option<f64> {
        self.raw.recommendation_score
    }

    pub fn position(&self) -> Option<i32> {
        self.raw.position
    }

    pub fn algorithm(&self) -> Option<&'a str> {
        self.algorithm
    }

    pub fn experiment_variant_id(&self) -> Option<&'a str> {
        self.experiment_variant_id
    }

    pub fn feed_session_id(&self) -> Option<&'a str> {
        self.feed_session_id
    }

    pub fn event_id(&self) -> Option<Uuid> {
        self.raw.event_id.map(Uuid::from_bytes)
    }

    /// Canonical JSON text.
    pub fn metadata(&self) -> Option<&'a str> {
        self.metadata
    }
}

impl fmt::Debug for RowRef<'_> {
    /// Where the row is, not what a person did.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowRef({}@{}, {} bytes)", self.partition(), self.offset(), self.bytes().len())
    }
}

/// Walks over the columns of one row.
struct Fields<'a> {
    input: &'a [u8],
    at: usize,
    column: usize,
}

impl<'a> Fields<'a> {
    /// The next column's bytes, `None` for null.
    #[inline]
    fn next(&mut self) -> Result<Option<&'a [u8]>, RowError> {
        let column = self.column;
        self.column += 1;
        let (length, rest) = self.input[self.at..].split_first_chunk().ok_or(RowError::Truncated)?;
        let length = i32::from_be_bytes(*length);
        self.at += 4;
        if length == -1 {
            return Ok(None);
        }
        let Ok(bytes) = usize::try_from(length) else {
            return Err(RowError::Length { column: COLUMNS[column], length });
        };
        let value = rest.get(..bytes).ok_or(RowError::Truncated)?;
        self.at += bytes;
        Ok(Some(value))
    }

    #[inline]
    fn optional<const N: usize>(&mut self) -> Result<Option<[u8; N]>, RowError> {
        let column = self.column;
        let Some(value) = self.next()? else { return Ok(None) };
        match value.try_into() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(RowError::Length { column: COLUMNS[column], length: value.len() as i32 }),
        }
    }

    #[inline]
    fn required<const N: usize>(&mut self) -> Result<[u8; N], RowError> {
        let column = self.column;
        self.optional()?.ok_or(RowError::Null { column: COLUMNS[column] })
    }

    #[inline]
    fn required_value(&mut self) -> Result<&'a [u8], RowError> {
        let column = self.column;
        self.next()?.ok_or(RowError::Null { column: COLUMNS[column] })
    }

    #[inline]
    fn jsonb(&mut self) -> Result<Option<&'a [u8]>, RowError> {
        let column = self.column;
        match self.next()? {
            None => Ok(None),
            Some([JSONB_VERSION, json @ ..]) => Ok(Some(json)),
            Some([version, ..]) => Err(RowError::JsonbVersion(*version)),
            Some([]) => Err(RowError::Length { column: COLUMNS[column], length: 0 }),
        }
    }
}

fn utf8<'a>(value: &'a [u8], column: &'static str) -> Result<&'a str, RowError> {
    std::str::from_utf8(value).map_err(|_| RowError::NotUtf8 { column })
}

/// Iterates over rows that lie one behind the other. After an error there is no next row.
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    rest: &'a [u8],
}

impl<'a> Rows<'a> {
    pub fn new(tuples: &'a [u8]) -> Self {
        Rows { rest: tuples }
    }
}

impl<'a> Iterator for Rows<'a> {
    type Item = Result<RowRef<'a>, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let row = RowRef::parse_first(self.rest);
        self.rest = match &row {
            Ok(row) => &self.rest[row.bytes().len()..],
            Err(_) => &[],
        };
        Some(row)
    }
}
