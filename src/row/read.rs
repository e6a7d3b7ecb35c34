//! Rows, read where they lie.

use std::fmt;

use uuid::Uuid;

use super::{
    COLUMNS, FIXED_LEN, JSONB_VERSION, OFFSET_AT, PARTITION_AT, POSTGRES_EPOCH_MS, RowError, USER_ID_AT,
    VIDEO_ID_AT,
};

/// A typed view of one row; the bytes stay where they are.
#[derive(Clone, Copy, PartialEq)]
pub struct RowRef<'a> {
    bytes: &'a [u8],
    recorded_at_ms: i64,
    occurred_at_ms: i64,
    ingested_at_ms: i64,
    interaction_type: &'a str,
    interaction_weight: f32,
    watch_time_seconds: Option<f64>,
    recommendation_score: Option<f64>,
    position: Option<i32>,
    algorithm: Option<&'a str>,
    experiment_variant_id: Option<&'a str>,
    feed_session_id: Option<&'a str>,
    event_id: Option<Uuid>,
    metadata: Option<&'a str>,
}

impl<'a> RowRef<'a> {
    /// Reads the row that `input` begins with, and checks every column of it.
    fn parse_first(input: &'a [u8]) -> Result<Self, RowError> {
        let mut fields = Fields { input, at: 2, column: 0 };
        let count = i16::from_be_bytes(*input.first_chunk().ok_or(RowError::Truncated)?);
        if usize::try_from(count) != Ok(COLUMNS.len()) {
            return Err(RowError::FieldCount(count));
        }
        // The lengths of the fixed columns are checked by reading them in order.
        fields.required::<4>()?;
        fields.required::<8>()?;
        let recorded_at_ms = fields.timestamp_ms()?;
        let occurred_at_ms = fields.timestamp_ms()?;
        let ingested_at_ms = fields.timestamp_ms()?;
        fields.required::<16>()?;
        fields.required::<16>()?;
        debug_assert_eq!(fields.at, FIXED_LEN);
        Ok(RowRef {
            recorded_at_ms,
            occurred_at_ms,
            ingested_at_ms,
            interaction_type: fields.required_text()?,
            interaction_weight: f32::from_be_bytes(fields.required()?),
            watch_time_seconds: fields.optional()?.map(f64::from_be_bytes),
            recommendation_score: fields.optional()?.map(f64::from_be_bytes),
            position: fields.optional()?.map(i32::from_be_bytes),
            algorithm: fields.text()?,
            experiment_variant_id: fields.text()?,
            feed_session_id: fields.text()?,
            event_id: fields.optional()?.map(Uuid::from_bytes),
            metadata: fields.jsonb()?,
            bytes: &input[..fields.at],
        })
    }

    /// Reads `input` as exactly one row.
    pub fn parse(input: &'a [u8]) -> Result<Self, RowError> {
        let row = Self::parse_first(input)?;
        match input.len() - row.bytes.len() {
            0 => Ok(row),
            more => Err(RowError::TrailingBytes(more)),
        }
    }

    /// The tuple itself.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn partition(&self) -> i32 {
        i32::from_be_bytes(self.fixed(PARTITION_AT))
    }

    pub fn offset(&self) -> i64 {
        i64::from_be_bytes(self.fixed(OFFSET_AT))
    }

    pub fn recorded_at_ms(&self) -> i64 {
        self.recorded_at_ms
    }

    pub fn occurred_at_ms(&self) -> i64 {
        self.occurred_at_ms
    }

    pub fn ingested_at_ms(&self) -> i64 {
        self.ingested_at_ms
    }

    pub fn user_id(&self) -> Uuid {
        Uuid::from_bytes(self.fixed(USER_ID_AT))
    }

    pub fn video_id(&self) -> Uuid {
        Uuid::from_bytes(self.fixed(VIDEO_ID_AT))
    }

    pub fn interaction_type(&self) -> &'a str {
        self.interaction_type
    }

    pub fn interaction_weight(&self) -> f32 {
        self.interaction_weight
    }

    pub fn watch_time_seconds(&self) -> Option<f64> {
        self.watch_time_seconds
    }

    pub fn recommendation_score(&self) -> Option<f64> {
        self.recommendation_score
    }

    pub fn position(&self) -> Option<i32> {
        self.position
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
        self.event_id
    }

    /// Canonical JSON text.
    pub fn metadata(&self) -> Option<&'a str> {
        self.metadata
    }

    fn fixed<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut value = [0; N];
        value.copy_from_slice(&self.bytes[at..at + N]); // parse_first has seen FIXED_LEN bytes
        value
    }
}

impl fmt::Debug for RowRef<'_> {
    /// Where the row is, not what a person did.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowRef({}@{}, {} bytes)", self.partition(), self.offset(), self.bytes.len())
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
    fn next(&mut self) -> Result<(Option<&'a [u8]>, &'static str), RowError> {
        let column = COLUMNS[self.column];
        self.column += 1;
        let rest = &self.input[self.at..];
        let length = i32::from_be_bytes(*rest.first_chunk().ok_or(RowError::Truncated)?);
        self.at += 4;
        if length == -1 {
            return Ok((None, column));
        }
        let length = usize::try_from(length).map_err(|_| RowError::Length { column, length })?;
        let value = rest[4..].get(..length).ok_or(RowError::Truncated)?;
        self.at += length;
        Ok((Some(value), column))
    }

    fn optional<const N: usize>(&mut self) -> Result<Option<[u8; N]>, RowError> {
        let (value, column) = self.next()?;
        value
            .map(|value| {
                let length = value.len() as i32;
                value.try_into().map_err(|_| RowError::Length { column, length })
            })
            .transpose()
    }

    fn required<const N: usize>(&mut self) -> Result<[u8; N], RowError> {
        let column = COLUMNS[self.column];
        self.optional()?.ok_or(RowError::Null { column })
    }

    fn timestamp_ms(&mut self) -> Result<i64, RowError> {
        let column = COLUMNS[self.column];
        let micros = i64::from_be_bytes(self.required()?);
        // Postgres's two infinities are no whole milliseconds either.
        if micros % 1000 != 0 {
            return Err(RowError::NotWholeMillisecond { column });
        }
        Ok(micros / 1000 + POSTGRES_EPOCH_MS)
    }

    fn text(&mut self) -> Result<Option<&'a str>, RowError> {
        let (value, column) = self.next()?;
        value.map(|value| utf8(value, column)).transpose()
    }

    fn required_text(&mut self) -> Result<&'a str, RowError> {
        let column = COLUMNS[self.column];
        self.text()?.ok_or(RowError::Null { column })
    }

    fn jsonb(&mut self) -> Result<Option<&'a str>, RowError> {
        match self.next()? {
            (None, _) => Ok(None),
            (Some([JSONB_VERSION, json @ ..]), column) => Ok(Some(utf8(json, column)?)),
            (Some([version, ..]), _) => Err(RowError::JsonbVersion(*version)),
            (Some([]), column) => Err(RowError::Length { column, length: 0 }),
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
            Ok(row) => &self.rest[row.bytes.len()..],
            Err(_) => &[],
        };
        Some(row)
    }
}
