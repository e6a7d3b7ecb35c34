//! Days are UTC dates, counted from 1970-01-01.

use chrono::{DateTime, Days, NaiveDate, SecondsFormat};

const DAY_MS: i64 = 86_400_000;
const EPOCH: NaiveDate = NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();

/// The day that a time belongs to.
pub fn day_of_ms(ms: i64) -> i32 {
    let day = ms.div_euclid(DAY_MS);
    i32::try_from(day).unwrap_or(if day < 0 { i32::MIN } else { i32::MAX })
}

/// The first millisecond of a day.
pub fn day_start_ms(day: i32) -> i64 {
    i64::from(day) * DAY_MS
}

/// `YYYY-MM-DD`.
pub fn day_text(day: i32) -> String {
    let span = Days::new(u64::from(day.unsigned_abs()));
    let date = match day {
        0.. => EPOCH.checked_add_days(span),
        _ => EPOCH.checked_sub_days(span),
    };
    date.unwrap_or(if day < 0 { NaiveDate::MIN } else { NaiveDate::MAX }).to_string()
}

/// The day of a `YYYY-MM-DD`, and of nothing that is written in another way.
pub fn parse_day(text: &str) -> Option<i32> {
    let date: NaiveDate = text.parse().ok()?;
    let day = i32::try_from(date.signed_duration_since(EPOCH).num_days()).ok()?;
    (text.len() == 10 && day_text(day) == text).then_some(day)
}

/// RFC 3339 in UTC with milliseconds, as in `2026-01-31T23:59:59.999Z`.
pub fn timestamp_text(ms: i64) -> String {
    let time = DateTime::from_timestamp_millis(ms);
    let saturated = if ms < 0 { DateTime::<chrono::Utc>::MIN_UTC } else { DateTime::<chrono::Utc>::MAX_UTC };
    time.unwrap_or(saturated).to_rfc3339_opts(SecondsFormat::Millis, true)
}
