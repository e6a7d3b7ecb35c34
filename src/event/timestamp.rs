//! ISO 8601 as it is met in events: `2026-01-15T09:30:00.123Z` and its relatives.

/// Milliseconds since 1970 of `YYYY-MM-DD`, `T` (or `t`, or a space), `hh:mm` with optional `:ss` and
/// fraction (`.` or `,`, any number of digits, cut to milliseconds), and an optional zone: `Z`, `z`,
/// `±hh`, `±hhmm` or `±hh:mm`. Without a zone it is UTC. A date alone, a leap second and 24:00 are
/// not taken: what instant they mean is a guess.
pub(super) fn parse_iso8601_ms(text: &str) -> Option<i64> {
    parse_usual(text.as_bytes()).or_else(|| parse_any(text.as_bytes()))
}

/// `YYYY-MM-DDThh:mm:ss.mmmZ`, as most clients write it: all its bytes are looked at as vectors. `None` says nothing.
fn parse_usual(text: &[u8]) -> Option<i64> {
    const SHAPE: &[u8; 24] = b"0000-00-00T00:00:00.000Z";
    let text: &[u8; 24] = text.try_into().ok()?;
    let mut digits = [0; 24];
    let mut fits = true;
    for ((digit, byte), shape) in digits.iter_mut().zip(text).zip(SHAPE) {
        *digit = byte.wrapping_sub(*shape);
        fits &= *digit <= if *shape == b'0' { 9 } else { 0 };
    }
    if !fits {
        return None;
    }
    let [a, b, c, d, _, e, f, _, g, h, _, i, j, _, k, l, _, m, n, _, o, p, q, _] = digits.map(i64::from);
    let time = Time {
        year: a * 1000 + b * 100 + c * 10 + d,
        month: e * 10 + f,
        day: g * 10 + h,
        hour: i * 10 + j,
        minute: k * 10 + l,
        second: m * 10 + n,
        millisecond: o * 100 + p * 10 + q,
    };
    time.instant_ms(0)
}

fn parse_any(text: &[u8]) -> Option<i64> {
    let mut rest = Digits(text);
    let year = rest.number(4)?;
    rest.one_of(b"-")?;
    let month = rest.number(2)?;
    rest.one_of(b"-")?;
    let day = rest.number(2)?;
    rest.one_of(b"Tt ")?;
    let hour = rest.number(2)?;
    rest.one_of(b":")?;
    let minute = rest.number(2)?;
    let mut second = 0;
    let mut millisecond = 0;
    if rest.one_of(b":").is_some() {
        second = rest.number(2)?;
        if rest.one_of(b".,").is_some() {
            millisecond = rest.milliseconds()?;
        }
    }
    let offset_minutes = rest.zone()?;
    if !rest.0.is_empty() {
        return None;
    }
    Time { year, month, day, hour, minute, second, millisecond }.instant_ms(offset_minutes)
}

/// What was written; none is below zero.
struct Time {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    millisecond: i64,
}

impl Time {
    /// Milliseconds since 1970, if there is such a time.
    fn instant_ms(&self, offset_minutes: i64) -> Option<i64> {
        let Self { year, month, day, hour, minute, second, millisecond } = *self;
        let fits = (1..=12).contains(&month)
            && (1..=days_in_month(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        if !fits {
            return None;
        }
        let minutes = (days_since_1970(year, month, day) * 24 + hour) * 60 + minute - offset_minutes;
        Some((minutes * 60 + second) * 1000 + millisecond)
    }
}

struct Digits<'t>(&'t [u8]);

impl Digits<'_> {
    /// Exactly `count` digits.
    fn number(&mut self, count: usize) -> Option<i64> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        let mut value = 0;
        for digit in digits {
            value = value * 10 + digit_value(*digit)?;
        }
        self.0 = rest;
        Some(value)
    }

    fn one_of(&mut self, set: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        if !set.contains(first) {
            return None;
        }
        self.0 = rest;
        Some(*first)
    }

    /// At least one digit; those after the third are dropped.
    fn milliseconds(&mut self) -> Option<i64> {
        let mut value = 0;
        let mut unit = 100;
        let mut any = false;
        while let Some((first, rest)) = self.0.split_first()
            && let Some(digit) = digit_value(*first)
        {
            value += digit * unit;
            unit /= 10;
            any = true;
            self.0 = rest;
        }
        any.then_some(value)
    }

    /// Minutes east of UTC.
    fn zone(&mut self) -> Option<i64> {
        if self.0.is_empty() || self.one_of(b"Zz").is_some() {
            return Some(0);
        }
        let sign = if self.one_of(b"+-")? == b'-' { -1 } else { 1 };
        let hours = self.number(2)?;
        let colon = self.one_of(b":").is_some();
        let minutes = if self.0.is_empty() && !colon { 0 } else { self.number(2)? };
        (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))
    }
}

fn digit_value(byte: u8) -> Option<i64> {
    byte.is_ascii_digit().then(|| i64::from(byte - b'0'))
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Of the proleptic Gregorian calendar; the year is counted from March, so that a leap day ends it.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_every_form_that_is_documented() {
        let expected = 1_768_469_400_123;
        for text in [
            "2026-01-15T09:30:00.123Z",
            "2026-01-15t09:30:00.123z",
            "2026-01-15 09:30:00.123",
            "2026-01-15T09:30:00,123",
            "2026-01-15T09:30:00.123999999999",
            "2026-01-15T11:30:00.123+02:00",
            "2026-01-15T11:30:00.123+0200",
            "2026-01-15T11:30:00.123+02",
            "2026-01-15T04:00:00.123-05:30",
        ] {
            assert_eq!(parse_iso8601_ms(text), Some(expected), "{text}");
        }
        for (text, expected) in [
            ("1970-01-01T00:00", 0),
            ("1970-01-01T00:00:00.5Z", 500),
            ("1970-01-01T00:00:00.05Z", 50),
            ("2000-02-29T23:59:59.999Z", 951_868_799_999),
            ("2000-01-01T00:00:00Z", 946_684_800_000),
            ("0000-01-01T00:00:00Z", -62_167_219_200_000),
            ("9999-12-31T23:59:59Z", 253_402_300_799_000),
            ("2100-03-01T00:00:00Z", 4_107_542_400_000),
        ] {
            assert_eq!(parse_iso8601_ms(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_an_instant() {
        for text in [
            "",
            "2026-01-15",
            "2026-01-15T",
            "2026-01-15T09",
            "2026-01-15T24:00:00Z",
            "2026-01-15T09:60:00Z",
            "2026-01-15T09:30:60Z",
            "2026-02-29T09:30:00Z",
            "2100-02-29T09:30:00Z",
            "2026-13-01T09:30:00Z",
            "2026-00-01T09:30:00Z",
            "2026-01-00T09:30:00Z",
            "2026-01-15T09:30:00.Z",
            "2026-01-15T09:30:00+",
            "2026-01-15T09:30:00+2",
            "2026-01-15T09:30:00+02:",
            "2026-01-15T09:30:00+02:0",
            "2026-01-15T09:30:00+24:00",
            "2026-01-15T09:30:00Zz",
            "2026-01-15T09:30:00Z ",
            " 2026-01-15T09:30:00Z",
            "+2026-01-15T09:30:00Z",
            "2026-1-15T09:30:00Z",
            "1768469400123",
            "2026-01-15T09:30:00.123 UTC",
            "２026-01-15T09:30:00Z",
        ] {
            assert_eq!(parse_iso8601_ms(text), None, "{text}");
        }
    }
    #[test]
    fn the_usual_form_is_read_as_any_other() {
        for good in ["2026-01-15T09:30:00.123Z", "2000-02-29T23:59:59.999Z", "0000-03-31T00:00:00.000Z"] {
            assert!(parse_usual(good.as_bytes()).is_some());
            for at in 0..24 {
                for byte in 0..=255 {
                    let mut text = good.as_bytes().to_vec();
                    text[at] = byte;
                    let usual = parse_usual(&text);
                    assert!(usual.is_none() || usual == parse_any(&text), "{}", text.escape_ascii());
                }
            }
        }
    }
}
