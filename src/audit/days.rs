//! Days: the manifest is what the ledger makes of one, and `_SUCCESS` stands exactly where it may.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::bucket::{MANIFEST, SUCCESS};
use super::report::{Kind, Report};
use super::row::{day_text, time_text};
use super::{Audit, Trouble};

/// The marks that lie in each day's folder.
pub type Marks = BTreeMap<i32, BTreeSet<&'static str>>;

pub async fn check(audit: &Audit, marks: &Marks, report: &mut Report) -> Result<(), Trouble> {
    let (closed, success) = audit.snapshot.topic.unwrap_or((i32::MIN, i32::MIN));
    let behind = audit.snapshot.partitions.iter().filter(|(_, ledger)| ledger.closed_day < closed);
    for (number, ledger) in behind {
        let text = format!(
            "partition {number}: closed up to {}, the topic up to {}",
            day_text(ledger.closed_day),
            day_text(closed)
        );
        report.find(Kind::FrontierBack, text);
    }
    let mut days: BTreeSet<i32> = marks.keys().copied().collect();
    if let Some(first) = audit.snapshot.first_day {
        days.extend(first..=success);
    }
    let none = BTreeSet::new();
    for day in days {
        check_day(audit, day, marks.get(&day).unwrap_or(&none), (closed, success), report).await?;
    }
    Ok(())
}

pub async fn check_day(
    audit: &Audit,
    day: i32,
    present: &BTreeSet<&'static str>,
    (closed, success): (i32, i32),
    report: &mut Report,
) -> Result<(), Trouble> {
    let folder = day_text(day);
    let mut present = present.clone();
    if day <= success {
        // The day may have been finished after the bucket was listed.
        for name in [MANIFEST, SUCCESS] {
            if !present.contains(name)
                && audit.bucket.head(&audit.bucket.key_of(&folder, name)).await?.is_some()
            {
                present.insert(name);
            }
        }
    }
    if day <= success && !present.contains(SUCCESS) {
        report.find(Kind::LostWrite, format!("{folder}/{SUCCESS}: the ledger says that it was written"));
    }
    if present.contains(SUCCESS) && !present.contains(MANIFEST) {
        report.find(Kind::LostWrite, format!("{folder}/{MANIFEST}: there is a {SUCCESS}"));
    }
    if !present.is_empty() && day > closed {
        report.find(
            Kind::FrontierBack,
            format!("{folder}: it has {present:?}, but closed_day is {}", day_text(closed)),
        );
    }
    if present.contains(SUCCESS)
        && let Some(told) = audit.bucket.head(&audit.bucket.key_of(&folder, SUCCESS)).await?
        && told.bytes > 0
    {
        report.find(
            Kind::Inconsistent,
            format!("{folder}/{SUCCESS}: {} bytes, and should have none", told.bytes),
        );
    }
    if present.contains(MANIFEST)
        && let Some(body) = audit.bucket.get(&audit.bucket.key_of(&folder, MANIFEST)).await?
    {
        check_manifest(audit, day, &body, report).await?;
    }
    Ok(())
}

async fn check_manifest(audit: &Audit, day: i32, body: &[u8], report: &mut Report) -> Result<(), Trouble> {
    let place = format!("{}/{MANIFEST}", day_text(day));
    report.count("manifests", 1);
    report.manifest(day, Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect());
    let Ok(found) = serde_json::from_slice::<Value>(body) else {
        report.find(Kind::Inconsistent, format!("{place}: no JSON"));
        return Ok(());
    };
    let schema_version = found.get("schema_version").cloned().unwrap_or(Value::Null);
    if !schema_version.is_u64() {
        report.find(Kind::Inconsistent, format!("{place}: no schema_version"));
    }
    let expected = expected(audit, day, schema_version).await?;
    let mut paths = Vec::new();
    differences(&expected, &found, String::new(), &mut paths);
    for path in &paths {
        report.find(Kind::Inconsistent, format!("{place}: {path} is not what the ledger says"));
    }
    let mut canonical = found;
    canonical.sort_all_objects();
    if canonical.to_string().as_bytes() != body {
        report.find(Kind::Inconsistent, format!("{place}: not in canonical form"));
    }
    Ok(())
}

/// The manifest that the ledger makes.
async fn expected(audit: &Audit, day: i32, schema_version: Value) -> Result<Value, Trouble> {
    let files = audit.table.files_of_day(day).await?;
    let known = audit.snapshot.partitions.iter().filter(|(_, ledger)| ledger.first_day <= day);
    let mut ends: BTreeMap<i32, Option<i64>> = known.map(|(number, _)| (*number, None)).collect();
    for file in &files {
        ends.insert(file.partition, Some(file.next_offset));
    }
    let file = |file: &super::table::FileEntry| {
        json!({
            "key": file.key,
            "partition": file.partition,
            "first_offset": file.first_offset,
            "last_offset": file.next_offset - 1,
            "rows": file.rows,
            "bytes": file.bytes,
            "row_hash": file.row_hash,
            "recorded_at_min": time_text(file.min_ms),
            "recorded_at_max": time_text(file.max_ms),
        })
    };
    let end = |(number, next): (&i32, &Option<i64>)| json!({"partition": number, "next_offset": next});
    let text = day_text(day);
    let gap = |gap: &super::table::Gap| {
        json!({
            "partition": gap.partition,
            "from_offset": gap.from_offset,
            "to_offset": gap.to_offset,
            "reason": gap.reason,
        })
    };
    let fields = [
        ("version", json!(1)),
        ("topic", json!(audit.settings.topic)),
        ("day", json!(text)),
        ("schema_version", schema_version),
        ("rows", json!(files.iter().map(|file| file.rows).sum::<i64>())),
        ("partitions", ends.iter().map(end).collect()),
        ("files", files.iter().map(file).collect()),
        ("gaps", audit.snapshot.gaps.iter().filter(|gap| gap.day == text).map(gap).collect()),
    ];
    Ok(Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>()))
}

/// Where two JSON values differ.
fn differences(expected: &Value, found: &Value, path: String, paths: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(one), Value::Object(other)) => {
            let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for name in names {
                let (one, other) =
                    (one.get(name).unwrap_or(&Value::Null), other.get(name).unwrap_or(&Value::Null));
                differences(one, other, format!("{path}.{name}"), paths);
            }
            if one.len() != other.len() {
                paths.push(format!("the number of fields in {path}."));
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                differences(one, other, format!("{path}[{index}]"), paths);
            }
        }
        (Value::Array(one), Value::Array(other)) => {
            paths.push(format!("{path} ({} entries in place of {})", other.len(), one.len()));
        }
        _ if expected != found => paths.push(path),
        _ => {}
    }
}
