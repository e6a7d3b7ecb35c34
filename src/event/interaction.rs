//! The domain value, and the rules that make one of what an event holds.

use uuid::Uuid;

use super::metadata::{self, Entry};
use super::raw::{Field, Raw, RawEvent, RawMetadata};
use super::reject::{Reject, RejectReason};
use super::timestamp;
use super::types::{InteractionTypes, TypeId};
use super::uuid_text;
use super::words::is_plain;

/// One accepted event: all limits are checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interaction<'a> {
    pub user_id: Uuid,
    pub video_id: Uuid,
    pub interaction_type: TypeId,
    /// By the client's clock.
    pub occurred_at_ms: i64,
    pub watch_time_seconds: Option<f64>,
    /// `None`: the video was not recommended.
    pub recommendation_score: Option<f64>,
    pub position: Option<i32>,
    /// The producer's own id.
    pub event_id: Option<Uuid>,
    pub algorithm: Option<&'a str>,
    pub experiment_variant_id: Option<&'a str>,
    pub feed_session_id: Option<&'a str>,
    /// Canonical JSON (RFC 8785): an object of strings.
    pub metadata: Option<&'a str>,
}

const STRING_BYTES_MAX: usize = 256;
/// 2000-01-01T00:00:00Z, which is also where Postgres's own clock begins.
const OCCURRED_AT_MS_MIN: i64 = 946_684_800_000;
/// Clients' clocks are wrong by hours, not by days.
const OCCURRED_AHEAD_MS_MAX: i64 = 86_400_000;

/// Beyond it not every whole number is a double.
const EXACT_MAX: u64 = 1 << 53;

/// What the rules need to know beside the event.
pub(super) struct Checks<'c> {
    pub types: &'c InteractionTypes,
    pub recorded_at_ms: i64,
}

impl Checks<'_> {
    /// Applies the rules in the order of the reader schema. `entries` are those of `metadata`; their
    /// canonical text is written to `canonical`, and borrowed by the result.
    pub fn apply<'a>(
        &self,
        raw: &RawEvent<'a>,
        entries: &mut Vec<Entry<'_>>,
        canonical: &'a mut String,
    ) -> Result<Interaction<'a>, Reject> {
        let user_id = required(Field::UserId, uuid(Field::UserId, raw.get(Field::UserId))?)?;
        let video_id = required(Field::VideoId, uuid(Field::VideoId, raw.get(Field::VideoId))?)?;
        let interaction_type =
            required(Field::InteractionType, self.interaction_type(raw.get(Field::InteractionType))?)?;
        let watch_time_seconds = double(Field::WatchTime, raw.get(Field::WatchTime))?;
        if watch_time_seconds.is_some_and(|seconds| seconds < 0.0) {
            return Err(reject(RejectReason::OutOfRange, Field::WatchTime).detail("below zero"));
        }
        let occurred_at_ms = required(Field::Timestamp, self.timestamp(raw.get(Field::Timestamp))?)?;
        Ok(Interaction {
            user_id,
            video_id,
            interaction_type,
            occurred_at_ms,
            watch_time_seconds,
            event_id: uuid(Field::EventId, raw.get(Field::EventId))?,
            feed_session_id: string(Field::FeedSessionId, raw.get(Field::FeedSessionId))?,
            algorithm: string(Field::Algorithm, raw.get(Field::Algorithm))?,
            experiment_variant_id: string(Field::ExperimentVariantId, raw.get(Field::ExperimentVariantId))?,
            recommendation_score: double(Field::RecommendationScore, raw.get(Field::RecommendationScore))?,
            position: position(raw.get(Field::Position))?,
            metadata: match raw.metadata {
                RawMetadata::Absent => None,
                RawMetadata::Entries => Some(metadata::write_checked(entries, canonical)?),
                RawMetadata::TooMany => return Err(metadata::too_many_entries()),
                RawMetadata::Other(found) => {
                    return Err(wrong_type(Field::Metadata, "an object of strings", found));
                }
            },
        })
    }

    fn interaction_type(&self, raw: Raw<'_>) -> Result<Option<TypeId>, Reject> {
        let Some(text) = text(Field::InteractionType, raw)? else {
            return Ok(None);
        };
        match self.types.lookup(text) {
            Some(id) => Ok(Some(id)),
            None => Err(reject(RejectReason::UnknownInteractionType, Field::InteractionType)),
        }
    }

    fn timestamp(&self, raw: Raw<'_>) -> Result<Option<i64>, Reject> {
        let bad = |detail: &str| reject(RejectReason::BadTimestamp, Field::Timestamp).detail(detail);
        let ms = match raw {
            Raw::Absent => return Ok(None),
            Raw::Integer(ms) => ms,
            Raw::Text(text) => timestamp::parse_iso8601_ms(text).ok_or_else(|| bad("not ISO 8601"))?,
            Raw::Number(text) => {
                whole_number(text).ok_or_else(|| bad("not a whole number of milliseconds"))?
            }
            other => {
                return Err(wrong_type(Field::Timestamp, "a timestamp", type_name(other)));
            }
        };
        if ms < OCCURRED_AT_MS_MIN {
            return Err(bad("before 2000-01-01"));
        }
        if ms > self.recorded_at_ms.saturating_add(OCCURRED_AHEAD_MS_MAX) {
            return Err(bad("more than a day ahead of Kafka's timestamp"));
        }
        Ok(Some(ms))
    }
}

fn required<T>(field: Field, value: Option<T>) -> Result<T, Reject> {
    value.ok_or_else(|| reject(RejectReason::MissingField, field))
}

fn uuid(field: Field, raw: Raw<'_>) -> Result<Option<Uuid>, Reject> {
    let text = match raw {
        Raw::Uuid(uuid) => return Ok(Some(uuid)),
        raw => text(field, raw)?,
    };
    let Some(text) = text else { return Ok(None) };
    match uuid_text::parse(text.as_bytes()) {
        Some(uuid) => Ok(Some(uuid)),
        None => Err(reject(RejectReason::BadUuid, field)
            .detail(format!("{} bytes are no hyphenated uuid", text.len()))),
    }
}

fn string<'a>(field: Field, raw: Raw<'a>) -> Result<Option<&'a str>, Reject> {
    let Some(text) = text(field, raw)? else {
        return Ok(None);
    };
    if text.is_empty() || text.len() > STRING_BYTES_MAX {
        let detail = format!("{} bytes, 1 to {STRING_BYTES_MAX} are allowed", text.len());
        return Err(reject(RejectReason::BadString, field).detail(detail));
    }
    if !is_plain(text.as_bytes()) && has_nul(text) {
        return Err(reject(RejectReason::BadString, field).detail("holds NUL"));
    }
    Ok(Some(text))
}

pub(super) fn has_nul(text: &str) -> bool {
    text.bytes().any(|byte| byte == 0)
}

fn text<'a>(field: Field, raw: Raw<'a>) -> Result<Option<&'a str>, Reject> {
    match raw {
        Raw::Absent => Ok(None),
        Raw::Text(text) => Ok(Some(text)),
        other => Err(wrong_type(field, "a string", type_name(other))),
    }
}

fn double(field: Field, raw: Raw<'_>) -> Result<Option<f64>, Reject> {
    let value = match raw {
        Raw::Absent => return Ok(None),
        Raw::Double(value) => value,
        Raw::Integer(value) => value as f64,
        Raw::Number(text) => double_of_number(text),
        other => return Err(wrong_type(field, "a number", type_name(other))),
    };
    if value.is_finite() {
        Ok(Some(value))
    } else {
        Err(reject(RejectReason::OutOfRange, field).detail("not a finite double"))
    }
}

/// The double that is nearest to a JSON number.
fn double_of_number(text: &str) -> f64 {
    // The grammar of JSON numbers is a part of the one that `parse` knows.
    double_of_short(text).unwrap_or_else(|| text.parse().unwrap_or(f64::NAN))
}

/// The same, of one with few digits and no exponent: without its point it is a double, as the power of ten is that the
/// point stands for, and a division of doubles is rounded to the nearest, once.
fn double_of_short(text: &str) -> Option<f64> {
    const BYTES_MAX: usize = 16;
    const POWERS: [f64; BYTES_MAX] =
        [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];
    let (is_negative, digits) = match text.as_bytes() {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.len() > BYTES_MAX {
        return None;
    }
    let mut whole = 0;
    let mut decimals = 0;
    let mut is_behind_point = false;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit < 10 {
            whole = whole * 10 + u64::from(digit);
            decimals += usize::from(is_behind_point);
        } else if *byte == b'.' {
            is_behind_point = true;
        } else {
            return None;
        }
    }
    if whole > EXACT_MAX {
        return None;
    }
    let value = whole as f64 / POWERS.get(decimals)?;
    Some(if is_negative { -value } else { value })
}

fn position(raw: Raw<'_>) -> Result<Option<i32>, Reject> {
    let out_of_range =
        || reject(RejectReason::OutOfRange, Field::Position).detail("0 to 2147483647 is allowed");
    let value = match raw {
        Raw::Absent => return Ok(None),
        Raw::Integer(value) => value,
        Raw::Number(text) => match whole_number(text) {
            Some(value) => value,
            None if text.parse::<f64>().is_ok_and(|n| n.fract() == 0.0 || n.is_infinite()) => {
                return Err(out_of_range());
            }
            None => {
                return Err(wrong_type(Field::Position, "a whole number", "fraction"));
            }
        },
        other => {
            return Err(wrong_type(Field::Position, "a whole number", type_name(other)));
        }
    };
    match i32::try_from(value) {
        Ok(value) if value >= 0 => Ok(Some(value)),
        _ => Err(out_of_range()),
    }
}

/// The value of a JSON number that has no fraction and is exact as a double or fits 64 bits.
fn whole_number(text: &str) -> Option<i64> {
    if let Ok(value) = text.parse() {
        return Some(value);
    }
    let value: f64 = text.parse().ok()?;
    (value.fract() == 0.0 && value.abs() <= EXACT_MAX as f64).then_some(value as i64)
}

fn type_name(raw: Raw<'_>) -> &'static str {
    match raw {
        Raw::Absent => "null",
        Raw::Text(_) => "string",
        Raw::Uuid(_) => "fixed",
        Raw::Integer(_) | Raw::Double(_) | Raw::Number(_) => "number",
        Raw::Other(name) => name,
    }
}

fn reject(reason: RejectReason, field: Field) -> Reject {
    Reject::new(reason).field(field.name())
}

fn wrong_type(field: Field, wanted: &str, found: &str) -> Reject {
    reject(RejectReason::WrongType, field).detail(format!("{found} where {wanted} is wanted"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_short_number_is_the_double_that_it_is_to_the_parser() {
        let whole =
            "0 -0 7 9007199254740992 9007199254740993 -9007199254740993 9999999999999999 123456789012345678";
        let parts =
            "0.0 -0.0 0.1 0.3 -1.005 12.345 0.5000 0.000000000000001 999999999999999.9 900719925474099.3";
        let others = "0.12345678901234567 1e2 1E-2 1.5e300 1e999";
        for text in [whole, parts, others].into_iter().flat_map(|texts| texts.split(' ')) {
            agrees(text);
        }
    }

    proptest! {
        #[test]
        fn so_is_every_number_of_any_digits(whole in "-?(0|[1-9][0-9]{0,17})", rest in "([.][0-9]{1,17})?(e[+-]?[0-9]{1,2})?") {
            agrees(&format!("{whole}{rest}"));
        }
    }

    fn agrees(text: &str) {
        let expected: f64 = text.parse().unwrap();
        assert_eq!(double_of_number(text).to_bits(), expected.to_bits(), "{text}");
    }
}
