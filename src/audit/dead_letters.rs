//! The DLQ: whose copies lie there, and whether they are the records that they copy.
//!
//! A letter is kept as hashes, some 300 bytes each, however large the record was. Letters of one record count
//! once, and not at all if the table has the record: that is how every reader of the DLQ counts.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_128;

use super::Trouble;
use super::event::REASONS;
use super::report::{Kind, Report};
use super::topic::{Record, Topics};

const ERRORS: &str = "__connect.errors.";
const REASON: &str = "feed_worker.reject.reason";
const TRUNCATED: &str = "feed_worker.value.truncated";

/// One copy.
#[derive(Debug)]
pub struct Letter {
    key: Option<u128>,
    value: Option<u128>,
    value_bytes: usize,
    timestamp_ms: i64,
    /// Of each header: its hash, and whether its name is one of the worker's.
    headers: Vec<(u128, bool)>,
    explained: bool,
    pub reason: String,
    /// Length and SHA-256 that a truncated value had.
    whole: Option<(String, String)>,
}

/// All letters of the audited topic.
#[derive(Debug, Default)]
pub struct DeadLetters {
    pub of: HashMap<i32, BTreeMap<i64, Vec<Letter>>>,
    /// Partitions of the DLQ that have lost their beginning.
    cut: Vec<bool>,
}

impl DeadLetters {
    pub async fn read(topics: &Topics, dlq: &str, topic: &str, report: &mut Report) -> Result<Self, Trouble> {
        let bounds = topics.bounds(dlq).await?;
        let mut found =
            DeadLetters { cut: bounds.iter().map(|(_, low, _)| *low > 0).collect(), ..Self::default() };
        let count = bounds.len() as i64;
        for (number, low, high) in bounds {
            let mut records = topics.records(dlq, number, low, high);
            while let Some(batch) = records.next().await? {
                for record in batch {
                    found.take(&record, topic, &format!("{dlq}/{number}@{}", record.offset), count, report);
                }
            }
        }
        if found.cut.contains(&true) {
            report.not_checked(format!("{dlq} has lost its first letters to its retention"));
        }
        Ok(found)
    }

    fn take(&mut self, record: &Record, topic: &str, place: &str, count: i64, report: &mut Report) {
        if record.header(&format!("{ERRORS}topic")).is_some_and(|of| of != topic) {
            report.count("dead_letters_of_other_topics", 1);
            return;
        }
        let number =
            |name: &str| record.header(&format!("{ERRORS}{name}")).and_then(|text| text.parse::<i64>().ok());
        let (Some(partition), Some(offset)) = (number("partition"), number("offset")) else {
            report.find(Kind::Orphan, format!("{place}: does not say which record it copies"));
            return;
        };
        if i64::from(record.partition) != partition % count {
            report.find(Kind::MisFiled, format!("{place}: a copy from partition {partition}"));
        }
        report.count("dead_letter_copies", 1);
        let Ok(partition) = i32::try_from(partition) else { return };
        self.of.entry(partition).or_default().entry(offset).or_default().push(Letter::of(record));
    }

    /// Whether the letter of a record may have been there once.
    pub fn may_be_gone(&self, partition: i32, offset: i64) -> bool {
        let lies_in = usize::try_from(partition).ok().and_then(|number| number.checked_rem(self.cut.len()));
        let cut = lies_in.and_then(|index| self.cut.get(index)).copied().unwrap_or(false);
        let first_kept = self.of.get(&partition).and_then(|letters| letters.keys().next());
        cut && first_kept.is_none_or(|first| offset < *first)
    }
}

impl Letter {
    fn of(record: &Record) -> Self {
        let own = |name: &str| name.starts_with(ERRORS) || name.starts_with("feed_worker.");
        let explained = ["exception.class.name", "exception.message"]
            .iter()
            .all(|name| record.header(&format!("{ERRORS}{name}")).is_some_and(|text| !text.is_empty()));
        let whole = record.header(TRUNCATED).map(|_| {
            let header = |name: &str| record.header(&format!("feed_worker.value.{name}")).unwrap_or_default();
            (header("length"), header("sha256"))
        });
        Letter {
            key: record.key.as_deref().map(xxh3_128),
            value: record.value.as_deref().map(xxh3_128),
            value_bytes: record.value.as_ref().map_or(0, Vec::len),
            timestamp_ms: record.timestamp_ms,
            headers: record
                .headers
                .iter()
                .map(|(name, value)| (header_hash(name, value), own(name)))
                .collect(),
            explained,
            reason: record.header(REASON).unwrap_or_default(),
            whole,
        }
    }

    /// How the copy is not the record.
    fn faults(&self, record: &Record) -> Vec<&'static str> {
        let mut faults = Vec::new();
        let mut hold = |holds: bool, fault: &'static str| {
            if !holds {
                faults.push(fault);
            }
        };
        hold(self.key == record.key.as_deref().map(xxh3_128), "another key");
        hold(self.timestamp_ms == record.timestamp_ms, "another timestamp");
        let originals = record.headers.len();
        let same = record
            .headers
            .iter()
            .zip(&self.headers)
            .all(|((name, value), (hash, _))| header_hash(name, value) == *hash);
        hold(same && self.headers.len() >= originals, "other headers");
        hold(self.headers.iter().skip(originals).all(|(_, own)| *own), "headers that are nobody's");
        hold(self.explained, "does not say what was wrong");
        hold(REASONS.contains(&self.reason.as_str()), "a reason that nobody knows");
        match &self.whole {
            None => hold(self.value == record.value.as_deref().map(xxh3_128), "another value"),
            Some((length, hash)) => {
                let value = record.value.as_deref().unwrap_or_default();
                let kept = value.get(..self.value_bytes).filter(|kept| kept.len() < value.len());
                hold(self.value.is_some() && self.value == kept.map(xxh3_128), "truncated to something else");
                hold(*length == value.len().to_string(), "another length of the whole value");
                let whole: String = Sha256::digest(value).iter().map(|byte| format!("{byte:02x}")).collect();
                hold(*hash == whole, "another hash of the whole value");
            }
        }
        faults
    }
}

/// All copies of one record: each of them true, and of one opinion.
pub fn check(report: &mut Report, place: &str, record: &Record, letters: &[Letter]) {
    let Some(first) = letters.first() else { return };
    if letters.iter().any(|letter| letter.reason != first.reason) {
        report
            .find(Kind::Inconsistent, format!("{place}: the copies of its dead letter give several reasons"));
    }
    for letter in letters {
        for fault in letter.faults(record) {
            report.find(Kind::Inconsistent, format!("{place}: its dead letter has {fault}"));
        }
    }
}

fn header_hash(name: &str, value: &Option<Vec<u8>>) -> u128 {
    let mut bytes = (name.len() as u64).to_be_bytes().to_vec();
    bytes.extend_from_slice(name.as_bytes());
    if let Some(value) = value {
        bytes.push(1);
        bytes.extend_from_slice(value);
    }
    xxh3_128(&bytes)
}
