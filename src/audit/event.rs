//! What an event must be, told again from docs and DESIGN: a record's value becomes the columns of its row, or
//! the reason for which it must be dead-lettered.

use std::collections::HashMap;

use super::avro::{self, Value, Writer};
use super::json::{self, Json, Member};
use super::row::{DAY_MS, Row, parse_uuid};

const VALUE_BYTES_MAX: usize = 1 << 20;
const EARLIEST_MS: i64 = 946_684_800_000; // 2000-01-01
const TEXT_BYTES_MAX: usize = 256;
const METADATA_ENTRIES_MAX: usize = 64;
const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Beyond it not every whole number is a double.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// The reasons that dead letters may give.
pub const REASONS: [&str; 18] = [
    "empty_value",
    "tombstone",
    "bad_framing",
    "schema_not_found",
    "schema_incompatible",
    "avro_malformed",
    "json_malformed",
    "json_duplicate_key",
    "missing_field",
    "wrong_type",
    "bad_uuid",
    "unknown_interaction_type",
    "bad_timestamp",
    "out_of_range",
    "bad_string",
    "metadata_too_large",
    "value_too_large",
    "refused_by_postgres",
];

/// True at their time, but not to be seen in the record afterwards.
pub const REASONS_OF_THEIR_TIME: [&str; 2] = ["refused_by_postgres", "schema_not_found"];

/// The schemas that were looked up: none = the registry says that there is no such id.
pub type Schemas = HashMap<u32, Option<Result<Writer, &'static str>>>;

/// The weights as configured: `name:weight,…`.
pub fn parse_weights(text: &str) -> Option<HashMap<String, f32>> {
    let pair = |pair: &str| {
        let (name, weight) = pair.split_once(':')?;
        Some((name.trim().to_ascii_lowercase(), weight.trim().parse().ok()?))
    };
    text.split(',').map(pair).collect()
}

/// The schema id of a value that has one.
pub fn schema_id(value: &[u8]) -> Option<u32> {
    let (_, id) =
        value.strip_prefix(b"\0").map(|rest| rest.split_first_chunk::<4>())?.map(|(id, rest)| (rest, id))?;
    Some(u32::from_be_bytes(*id))
}

/// A record's columns; coordinates and times of recording and ingesting are the caller's.
pub fn decode(
    value: Option<&[u8]>,
    kafka_ms: i64,
    schemas: &Schemas,
    weights: &HashMap<String, f32>,
) -> Result<Row, &'static str> {
    let value = value.ok_or("tombstone")?;
    let fields = match value.first() {
        _ if value.len() > VALUE_BYTES_MAX => return Err("value_too_large"),
        None => return Err("empty_value"),
        Some(b'{') => of_json(value)?,
        Some(0) => {
            let id = schema_id(value).ok_or("bad_framing")?;
            let writer = schemas.get(&id).and_then(Option::as_ref).ok_or("schema_not_found")?;
            let writer = writer.as_ref().map_err(|reason| *reason)?;
            Fields { values: writer.read(value.get(5..).unwrap_or(&[]))?, spelled: HashMap::new() }
        }
        Some(_) => return Err("bad_framing"),
    };
    row(&fields, kafka_ms, weights)
}

/// What a value holds, before any rule but its form's.
struct Fields {
    values: HashMap<&'static str, Value>,
    /// JSON numbers as they were written.
    spelled: HashMap<&'static str, String>,
}

fn row(fields: &Fields, kafka_ms: i64, weights: &HashMap<String, f32>) -> Result<Row, &'static str> {
    let kind = fields.text("interactionType")?.ok_or("missing_field")?.to_ascii_lowercase();
    let weight = *weights.get(&kind).ok_or("unknown_interaction_type")?;
    let occurred_ms = fields.timestamp()?.ok_or("missing_field")?;
    if occurred_ms < EARLIEST_MS || occurred_ms > kafka_ms.saturating_add(DAY_MS) {
        return Err("bad_timestamp");
    }
    let watch_time = fields.double("watchTime")?;
    if watch_time.is_some_and(|seconds| seconds < 0.0) {
        return Err("out_of_range");
    }
    Ok(Row {
        occurred_us: occurred_ms * 1000,
        user: fields.uuid("userId")?.ok_or("missing_field")?,
        video: fields.uuid("videoId")?.ok_or("missing_field")?,
        kind,
        weight,
        watch_time,
        score: fields.double("recommendationScore")?,
        position: fields.position()?,
        algorithm: fields.short("algorithm")?,
        variant: fields.short("experimentVariantId")?,
        session: fields.short("feedSessionId")?,
        event: fields.uuid("eventId")?,
        metadata: fields.metadata()?,
        ..Row::default()
    })
}

impl Fields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name).filter(|value| **value != Value::Null)
    }

    fn text(&self, name: &str) -> Result<Option<&str>, &'static str> {
        match self.get(name) {
            None if self.spelled.contains_key(name) => Err("wrong_type"),
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err("wrong_type"),
        }
    }

    fn short(&self, name: &str) -> Result<Option<String>, &'static str> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.contains('\0') {
            return Err("bad_string");
        }
        Ok(Some(text.to_owned()))
    }

    fn uuid(&self, name: &str) -> Result<Option<[u8; 16]>, &'static str> {
        if let Some(Value::Uuid(id)) = self.get(name) {
            return Ok(Some(*id));
        }
        let Some(text) = self.text(name)? else { return Ok(None) };
        parse_uuid(text.as_bytes()).map(Some).ok_or("bad_uuid")
    }

    fn double(&self, name: &str) -> Result<Option<f64>, &'static str> {
        let value = match (self.spelled.get(name), self.get(name)) {
            (Some(spelled), _) => spelled.parse().map_err(|_| "wrong_type")?,
            (None, None) => return Ok(None),
            (None, Some(Value::Double(value))) => *value,
            (None, Some(Value::Integer(value))) => *value as f64,
            (None, Some(_)) => return Err("wrong_type"),
        };
        if f64::is_finite(value) { Ok(Some(value)) } else { Err("out_of_range") }
    }

    /// A whole number; `not_whole` when it is written as anything else.
    fn whole(&self, name: &str, not_whole: &'static str) -> Result<Option<i64>, &'static str> {
        match (self.spelled.get(name), self.get(name)) {
            (Some(spelled), _) => whole_number(spelled).map(Some).ok_or(not_whole),
            (None, None) => Ok(None),
            (None, Some(Value::Integer(value))) => Ok(Some(*value)),
            (None, Some(_)) => Err("wrong_type"),
        }
    }

    fn position(&self) -> Result<Option<i32>, &'static str> {
        let Some(value) = self.whole("position", "wrong_type")? else { return Ok(None) };
        i32::try_from(value).ok().filter(|value| *value >= 0).map(Some).ok_or("out_of_range")
    }

    fn timestamp(&self) -> Result<Option<i64>, &'static str> {
        match self.get("timestamp") {
            Some(Value::Text(text)) => moment_ms(text).map(Some).ok_or("bad_timestamp"),
            _ => self.whole("timestamp", "bad_timestamp"),
        }
    }

    fn metadata(&self) -> Result<Option<String>, &'static str> {
        let sent = match self.get("metadata") {
            None => return Ok(None),
            Some(Value::Map(entries)) => entries,
            Some(_) => return Err("wrong_type"),
        };
        let mut entries: Vec<(String, String)> = Vec::new();
        for (key, value) in sent {
            let Value::Text(value) = value else { return Err("wrong_type") };
            // Of two with one key the later counts.
            match entries.iter_mut().find(|(known, _)| known == key) {
                Some(known) => known.1.clone_from(value),
                None => entries.push((key.clone(), value.clone())),
            }
            if entries.len() > METADATA_ENTRIES_MAX {
                return Err("metadata_too_large");
            }
        }
        if entries.iter().any(|(key, value)| key.contains('\0') || value.contains('\0')) {
            return Err("bad_string");
        }
        let text = json::canonical(&mut entries);
        if text.len() > METADATA_BYTES_MAX { Err("metadata_too_large") } else { Ok(Some(text)) }
    }
}

fn whole_number(spelled: &str) -> Option<i64> {
    spelled.parse().ok().or_else(|| {
        let value: f64 = spelled.parse().ok()?;
        (value.fract() == 0.0 && value.abs() <= EXACT_MAX).then_some(value as i64)
    })
}

/// `YYYY-MM-DD`, `T` or a space, `hh:mm`, perhaps seconds with a fraction, perhaps a zone; UTC without one.
fn moment_ms(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let day = super::row::parse_day(date)?;
    let zone_at = rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len());
    let (clock, zone) = rest.split_at_checked(zone_at)?;
    let two = |text: &str| {
        (text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse::<i64>().ok())
            .flatten()
    };
    let mut parts = clock.split(':');
    let (hour, minute) = (two(parts.next()?)?, two(parts.next()?)?);
    let (mut second, mut ms) = (0, 0);
    if let Some(part) = parts.next() {
        let (whole, fraction) = part.split_once(['.', ',']).unwrap_or((part, "0"));
        second = two(whole)?;
        if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        ms = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    }
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let east = match zone {
        "" | "Z" | "z" => 0,
        _ => {
            let (sign, zone) = zone.split_at_checked(1)?;
            let (hours, rest) = zone.split_at_checked(2)?;
            let minutes = match rest {
                "" => 0,
                rest => two(rest.strip_prefix(':').unwrap_or(rest))?,
            };
            let hours = two(hours)?;
            if hours > 23 || minutes > 59 || !matches!(sign, "+" | "-") {
                return None;
            }
            (hours * 60 + minutes) * if sign == "-" { -1 } else { 1 }
        }
    };
    Some(i64::from(day) * DAY_MS + ((hour * 60 + minute - east) * 60 + second) * 1000 + ms)
}

const NAMES: [&str; 12] = [
    "userId",
    "videoId",
    "interactionType",
    "watchTime",
    "timestamp",
    "eventId",
    "feedSessionId",
    "algorithm",
    "experimentVariantId",
    "recommendationScore",
    "position",
    "metadata",
];
const SCORES: [&str; 2] = ["recommendationScore", "recommendation_score"];

/// The feed's own JSON: its metadata may be spread over the top level, and its score lie in three places.
fn of_json(value: &[u8]) -> Result<Fields, &'static str> {
    let Json::Object(members) = json::parse(value)? else { return Err(json::MALFORMED) };
    let mut inner = Vec::new();
    let mut fields = Fields { values: HashMap::new(), spelled: HashMap::new() };
    let (mut others, mut has_metadata) = (Vec::new(), false);
    for member in members {
        let known = NAMES.iter().find(|name| **name == member.key);
        match (known, member.value) {
            (_, Json::Null) if known.is_some() || member.key == SCORES[1] => {}
            (Some(&"metadata"), Json::Object(entries)) => (inner, has_metadata) = (entries, true),
            (Some(&"metadata"), _) => return Err("wrong_type"),
            (Some(name), Json::Number(spelled)) => drop(fields.spelled.insert(name, spelled.to_owned())),
            (Some(name), Json::Text(text)) => drop(fields.values.insert(name, Value::Text(text))),
            (Some(name), _) => drop(fields.values.insert(name, Value::Other)),
            (None, value) => others.push(Member { value, ..member }),
        }
    }
    let has_score =
        |fields: &Fields| fields.values.contains_key(SCORES[0]) || fields.spelled.contains_key(SCORES[0]);
    if !has_score(&fields)
        && let Some(at) = others.iter().position(|member| member.key == SCORES[1])
    {
        put_score(&mut fields, others.remove(at).value, false);
    }
    if !has_score(&fields) {
        let place =
            |name: &str| inner.iter().position(|m: &Member<'_>| m.key == name && m.value != Json::Null);
        if let Some(at) = SCORES.iter().find_map(|name| place(name)) {
            put_score(&mut fields, inner.remove(at).value, true);
        }
    }
    if has_metadata || !others.is_empty() {
        let entry = |member: Member<'_>| {
            let text = match member.value {
                Json::Text(text) => text,
                _ => member.spelled.to_owned(),
            };
            (member.key, Value::Text(text))
        };
        // What lies in metadata itself counts before what lies beside it.
        let entries = others.into_iter().chain(inner).map(entry).collect();
        fields.values.insert("metadata", Value::Map(entries));
    }
    Ok(fields)
}

/// Within metadata many write texts only: there a text may be a number.
fn put_score(fields: &mut Fields, value: Json<'_>, in_metadata: bool) {
    let is_number =
        |text: &str| matches!(json::parse(text.as_bytes()), Ok(Json::Number(whole)) if whole == text);
    match value {
        Json::Number(spelled) => drop(fields.spelled.insert(SCORES[0], spelled.to_owned())),
        Json::Text(text) if in_metadata && is_number(&text) => drop(fields.spelled.insert(SCORES[0], text)),
        _ => drop(fields.values.insert(SCORES[0], Value::Other)),
    }
}

/// Whether a schema must be looked up before `decode`.
pub fn missing_schema(value: Option<&[u8]>, schemas: &Schemas) -> Option<u32> {
    value.and_then(schema_id).filter(|id| !schemas.contains_key(id))
}

/// A schema as the registry gave it.
pub fn schema(text: Option<&str>) -> Option<Result<Writer, &'static str>> {
    text.map(|text| if text.is_empty() { Err(avro::INCOMPATIBLE) } else { Writer::parse(text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KAFKA_MS: i64 = 1_771_200_000_000;

    fn decoded(json: &str) -> Result<Row, &'static str> {
        let weights = parse_weights("view:1, Like:3").unwrap();
        decode(Some(json.as_bytes()), KAFKA_MS, &Schemas::new(), &weights)
    }

    fn event(more: &str) -> String {
        format!(
            r#"{{"userId":"0abc0000-0000-4000-8000-00000000000F","videoId":"0abc0000-0000-4000-8000-000000000001",
            "interactionType":"VIEW","timestamp":"2026-02-15T23:59:59.9999+01:00"{more}}}"#
        )
    }

    #[test]
    fn an_event_becomes_its_columns() {
        let row = decoded(&event(
            r#","position":2e1,"a":[1, 2],"metadata":{"recommendation_score":"0.5","a":null}"#,
        ));
        let row = row.unwrap();
        assert_eq!((row.kind.as_str(), row.weight, row.user[15]), ("view", 1.0, 15));
        assert_eq!((row.position, row.score, row.occurred_us), (Some(20), Some(0.5), 1_771_196_399_999_000));
        assert_eq!(row.metadata.as_deref(), Some(r#"{"a":"null"}"#));
        let row =
            decoded(&event(r#","recommendationScore":null,"recommendation_score":1,"b":{"c": 1}"#)).unwrap();
        assert_eq!((row.score, row.metadata.as_deref()), (Some(1.0), Some(r#"{"b":"{\"c\": 1}"}"#)));
        assert_eq!(decoded(&event("")).unwrap().metadata, None);
    }

    #[test]
    fn a_bad_event_has_a_reason() {
        for (more, reason) in [
            (r#","position":-1"#, "out_of_range"),
            (r#","position":1.5"#, "wrong_type"),
            (r#","watchTime":-0.1"#, "out_of_range"),
            (r#","watchTime":1e999"#, "out_of_range"),
            (r#","algorithm":"""#, "bad_string"),
            (r#","algorithm":7"#, "wrong_type"),
            (r#","eventId":"x""#, "bad_uuid"),
            (r#","metadata":{"a":"\u0000"}"#, "bad_string"),
            (r#","metadata":[]"#, "wrong_type"),
            (r#","userId":"""#, "json_duplicate_key"),
            (r#","metadata":{"recommendationScore":true}"#, "wrong_type"),
        ] {
            assert_eq!(decoded(&event(more)), Err(reason), "{more}");
        }
        assert_eq!(decoded(&event("").replace("VIEW", "like!")), Err("unknown_interaction_type"));
        assert_eq!(decoded(&event("").replace("2026-02-15", "1999-12-30")), Err("bad_timestamp"));
        assert_eq!(decoded(&event("").replace("23:59:59", "24:00:00")), Err("bad_timestamp"));
        let none = HashMap::new();
        assert_eq!(decode(None, 0, &Schemas::new(), &none), Err("tombstone"));
        assert_eq!(decode(Some(b""), 0, &Schemas::new(), &none), Err("empty_value"));
        assert_eq!(decode(Some(b"\0\0\0"), 0, &Schemas::new(), &none), Err("bad_framing"));
        assert_eq!(decode(Some(b"\0\0\0\0\x01"), 0, &Schemas::new(), &none), Err("schema_not_found"));
    }
}
