//! What a closed day consists of, and how the objects of a day are called.

use serde::{Deserialize, Serialize};

use crate::event::SCHEMA_VERSION;
use crate::row::{day_text, parse_day};

/// The version of the manifest itself.
const MANIFEST_VERSION: u32 = 1;

/// `_manifest.json` of a day. Made of nothing but what the ledger holds for a closed day, so that
/// whoever writes it writes the same bytes.
///
/// The fields stand in alphabetical order: that and the lack of white space make the text canonical
/// JSON (RFC 8785).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `YYYY-MM-DD`
    pub day: String,
    pub files: Vec<FileEntry>,
    pub gaps: Vec<GapEntry>,
    pub partitions: Vec<PartitionEntry>,
    pub rows: u64,
    pub schema_version: u32,
    pub topic: String,
    pub version: u32,
}

/// One Parquet file of the day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub bytes: u64,
    pub first_offset: i64,
    pub key: String,
    /// The offset of the file's last row.
    pub last_offset: i64,
    pub partition: i32,
    /// RFC 3339, UTC, with milliseconds
    pub recorded_at_max: String,
    pub recorded_at_min: String,
    pub row_hash: String,
    pub rows: u64,
}

/// Offsets that were never read, as an operator accepted it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GapEntry {
    pub from_offset: i64,
    pub partition: i32,
    pub reason: String,
    /// Exclusive.
    pub to_offset: i64,
}

/// Where a partition's files of the day end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionEntry {
    /// The offset behind the last row of the day; null if the partition has no row of that day.
    pub next_offset: Option<i64>,
    pub partition: i32,
}

impl Manifest {
    /// The order of the arguments' elements does not matter; a partition of the topic without a
    /// file still has its entry.
    pub fn new(
        topic: &str,
        day: i32,
        partitions: &[i32],
        mut files: Vec<FileEntry>,
        mut gaps: Vec<GapEntry>,
    ) -> Self {
        files.sort_by_key(|file| (file.partition, file.first_offset));
        gaps.sort_by_key(|gap| (gap.partition, gap.from_offset));
        let mut numbers: Vec<i32> =
            partitions.iter().copied().chain(files.iter().map(|file| file.partition)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let end_of = |partition| {
            files.iter().rev().find(|file| file.partition == partition).map(|f| f.last_offset + 1)
        };
        let partitions = numbers
            .into_iter()
            .map(|partition| PartitionEntry { partition, next_offset: end_of(partition) })
            .collect();
        Manifest {
            day: day_text(day),
            rows: files.iter().map(|file| file.rows).sum(),
            files,
            gaps,
            partitions,
            schema_version: schema_version(),
            topic: topic.to_owned(),
            version: MANIFEST_VERSION,
        }
    }

    /// The bytes of the object.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and integers always have a JSON text")
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

/// A number here, because the reader's schema versions are; elsewhere it is text like everything.
fn schema_version() -> u32 {
    SCHEMA_VERSION.parse().expect("the version of the reader schema is a number")
}

/// The folder of a day, without a slash at its end. The prefix may be empty.
pub fn day_folder(prefix: &str, day: i32) -> String {
    let day = day_text(day);
    match prefix.trim_matches('/') {
        "" => day,
        prefix => format!("{prefix}/{day}"),
    }
}

pub fn manifest_key(prefix: &str, day: i32) -> String {
    format!("{}/_manifest.json", day_folder(prefix, day))
}

pub fn success_key(prefix: &str, day: i32) -> String {
    format!("{}/_SUCCESS", day_folder(prefix, day))
}

/// The key under which every owner of the partition would write what begins at `first_offset`.
pub fn file_key(prefix: &str, day: i32, topic: &str, partition: i32, first_offset: i64) -> String {
    format!("{}{first_offset:020}.parquet", partition_prefix(prefix, day, topic, partition))
}

/// What the keys of a partition's files of a day begin with, and no other keys do.
pub fn partition_prefix(prefix: &str, day: i32, topic: &str, partition: i32) -> String {
    format!("{}/{topic}+{partition}+", day_folder(prefix, day))
}

/// Day, topic, partition and first offset of a key that `file_key` made with whatever prefix;
/// `None` for every other key.
pub fn parse_file_key(key: &str) -> Option<(i32, String, i32, i64)> {
    let mut segments = key.rsplit('/');
    let name = segments.next()?.strip_suffix(".parquet")?;
    let day = parse_day(segments.next()?)?;
    // A topic's name has no `+`.
    let mut parts = name.split('+');
    let topic = parts.next().filter(|topic| !topic.is_empty())?;
    let (partition, first_offset) = (parts.next()?, parts.next()?);
    let (partition, first_offset) = (partition.parse().ok()?, first_offset.parse().ok()?);
    let made = file_key("", day, topic, partition, first_offset);
    let rebuilt = made.rsplit('/').next()?.strip_suffix(".parquet")?;
    (rebuilt == name && partition >= 0 && first_offset >= 0)
        .then(|| (day, topic.to_owned(), partition, first_offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(partition: i32, first_offset: i64, rows: u64) -> FileEntry {
        FileEntry {
            bytes: 1000 + rows,
            first_offset,
            key: file_key("exports", 20_500, "t", partition, first_offset),
            last_offset: first_offset + 99,
            partition,
            recorded_at_max: "2026-02-16T00:00:00.000Z".to_owned(),
            recorded_at_min: "2026-02-16T00:00:00.000Z".to_owned(),
            row_hash: "0".repeat(32),
            rows,
        }
    }

    fn gap(partition: i32, from_offset: i64) -> GapEntry {
        GapEntry {
            from_offset,
            partition,
            reason: "retention \"ran out\" before the restore\n".to_owned(),
            to_offset: from_offset + 5,
        }
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_order_of_the_parts() {
        let one = Manifest::new(
            "t",
            20_500,
            &[2, 0, 1],
            vec![file(1, 500, 5), file(0, 100, 90), file(0, 0, 100)],
            vec![gap(1, 7), gap(0, 9)],
        );
        let two = Manifest::new(
            "t",
            20_500,
            &[0, 1, 2],
            vec![file(0, 0, 100), file(0, 100, 90), file(1, 500, 5)],
            vec![gap(0, 9), gap(1, 7)],
        );
        assert_eq!(one.to_bytes(), two.to_bytes());
        assert_eq!(one.rows, 195);
        let ends: Vec<_> = one.partitions.iter().map(|p| (p.partition, p.next_offset)).collect();
        assert_eq!(ends, [(0, Some(200)), (1, Some(600)), (2, None)]);
        assert_eq!(Manifest::from_bytes(&one.to_bytes()).unwrap(), one);
    }

    #[test]
    fn the_bytes_are_canonical_json() {
        let bytes = Manifest::new("t", 20_500, &[0], vec![file(0, 0, 1)], vec![gap(0, 9)]).to_bytes();
        // serde_json keeps the order of a text's keys: sorting them must change nothing.
        let mut sorted: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        sorted.sort_all_objects();
        assert_eq!(String::from_utf8(bytes).unwrap(), sorted.to_string());
    }

    #[test]
    fn a_day_without_rows_has_a_manifest_too() {
        let text = String::from_utf8(Manifest::new("t", 20_500, &[0], vec![], vec![]).to_bytes());
        let expected = concat!(
            r#"{"day":"2026-02-16","files":[],"gaps":[],"#,
            r#""partitions":[{"next_offset":null,"partition":0}],"#,
            r#""rows":0,"schema_version":2,"topic":"t","version":1}"#,
        );
        assert_eq!(text.unwrap(), expected);
    }

    #[test]
    fn keys_are_as_the_design_says() {
        let key = file_key("exports", 20_500, "feed.interactions.v1", 3, 42);
        assert_eq!(key, "exports/2026-02-16/feed.interactions.v1+3+00000000000000000042.parquet");
        assert_eq!(manifest_key("/a/b/", 20_500), "a/b/2026-02-16/_manifest.json");
        assert_eq!(success_key("", 20_500), "2026-02-16/_SUCCESS");
    }

    #[test]
    fn only_keys_of_files_parse() {
        for prefix in ["exports", "a/b", ""] {
            let key = file_key(prefix, 20_500, "feed.v1", 11, i64::MAX);
            assert_eq!(parse_file_key(&key), Some((20_500, "feed.v1".to_owned(), 11, i64::MAX)));
        }
        for key in [
            "",
            "exports/2026-02-16/_SUCCESS",
            "exports/2026-02-16/_manifest.json",
            "exports/2026-02-30/t+0+00000000000000000042.parquet",
            "exports/2026-2-16/t+0+00000000000000000042.parquet",
            "exports/2026-02-16/t+0+42.parquet",
            "exports/2026-02-16/t+00+00000000000000000042.parquet",
            "exports/2026-02-16/t+-1+00000000000000000042.parquet",
            "exports/2026-02-16/t+0+-0000000000000000042.parquet",
            "exports/2026-02-16/t+0+00000000000000000042+1.parquet",
            "exports/2026-02-16/+0+00000000000000000042.parquet",
            "exports/2026-02-16/t+0+00000000000000000042.parquet.tmp",
            "t+0+00000000000000000042.parquet",
        ] {
            assert_eq!(parse_file_key(key), None, "{key}");
        }
    }
}
