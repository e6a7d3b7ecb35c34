//! What was found, in the words of Jepsen's Kafka workload; what was not checked, and why; and what a later
//! audit is to be compared with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::row::day_text;
use super::table::{Gap, Snapshot};

/// Examples of each kind that are told; the others are counted.
const EXAMPLES_MAX: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    LostWrite,
    Duplicate,
    MisFiled,
    Gap,
    Overlap,
    Orphan,
    FrontierBack,
    Inconsistent,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::LostWrite => "lost-write",
            Kind::Duplicate => "duplicate",
            Kind::MisFiled => "mis-filed",
            Kind::Gap => "gap",
            Kind::Overlap => "overlap",
            Kind::Orphan => "orphan",
            Kind::FrontierBack => "frontier-back",
            Kind::Inconsistent => "inconsistent",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Kind::LostWrite => "a record, row, file or mark that must be there is nowhere",
            Kind::Duplicate => "what must be there once is there twice",
            Kind::MisFiled => "in the wrong sink, day or range",
            Kind::Gap => "offsets that no file claims, below a frontier that has passed them",
            Kind::Overlap => "offsets that two files claim",
            Kind::Orphan => "something that nothing accounts for",
            Kind::FrontierBack => "the ledger stands behind what has already been done",
            Kind::Inconsistent => "two places that must agree do not",
        }
    }
}

#[derive(Debug, Default, Serialize)]
struct Found {
    count: u64,
    examples: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Report {
    found: BTreeMap<Kind, Found>,
    figures: BTreeMap<&'static str, u64>,
    not_checked: Vec<String>,
    /// Day → SHA-256 of its manifest: a closed day never changes.
    manifests: BTreeMap<String, String>,
}

impl Report {
    pub fn find(&mut self, kind: Kind, text: impl Into<String>) {
        self.find_many(kind, 1, text);
    }

    pub fn find_many(&mut self, kind: Kind, count: u64, text: impl Into<String>) {
        let found = self.found.entry(kind).or_default();
        found.count += count;
        if found.examples.len() < EXAMPLES_MAX {
            found.examples.push(text.into());
        }
    }

    pub fn count(&mut self, figure: &'static str, by: u64) {
        *self.figures.entry(figure).or_default() += by;
    }

    pub fn figure(&self, name: &str) -> u64 {
        self.figures.get(name).copied().unwrap_or(0)
    }

    /// Something that nobody can compare any more. Never an "ok".
    pub fn not_checked(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.not_checked.contains(&text) {
            self.not_checked.push(text);
        }
    }

    pub fn manifest(&mut self, day: i32, hash: String) {
        self.manifests.insert(day_text(day), hash);
    }

    pub fn clean(&self) -> bool {
        self.found.is_empty()
    }

    pub fn findings(&self) -> u64 {
        self.found.values().map(|found| found.count).sum()
    }

    /// Holds this audit against an earlier one.
    pub fn compare(&mut self, before: &Before, snapshot: &Snapshot) {
        for was in &before.frontiers {
            let Some(is) = snapshot.partitions.get(&was.partition) else {
                self.find(
                    Kind::FrontierBack,
                    format!("partition {}: was in the ledger, and is not", was.partition),
                );
                continue;
            };
            let moves = [
                ("epoch", was.epoch, is.epoch),
                ("persist_frontier", was.persist_frontier, is.persist_frontier),
                ("export_frontier", was.export_frontier, is.export_frontier),
                ("persist_day", was.persist_day.into(), is.persist_day.into()),
                ("closed_day", was.closed_day.into(), is.closed_day.into()),
            ];
            for (name, was_at, is_at) in moves {
                if is_at < was_at {
                    let text = format!("partition {}: {name} was {was_at}, and is {is_at}", was.partition);
                    self.find(Kind::FrontierBack, text);
                }
            }
        }
        for (day, hash) in &before.manifests {
            if self.manifests.get(day).is_some_and(|now| now != hash) {
                self.find(
                    Kind::Inconsistent,
                    format!("the manifest of {day} is not the one of the earlier audit"),
                );
            }
        }
    }

    pub fn to_json(&self, topic: &str, scope: &str, snapshot: &Snapshot, seconds: f64) -> serde_json::Value {
        let frontiers: Vec<Stand> =
            snapshot.partitions.iter().map(|(n, ledger)| Stand::of(*n, ledger)).collect();
        json!({
            "verdict": if self.clean() { "clean" } else { "findings" },
            "complete": self.not_checked.is_empty(),
            "topic": topic,
            "scope": scope,
            "findings": self.found,
            "not_checked": self.not_checked,
            "accepted_gaps": snapshot.gaps,
            "figures": self.figures,
            "frontiers": frontiers,
            "manifests": self.manifests,
            "seconds": (seconds * 10.0).round() / 10.0,
        })
    }

    /// For people.
    pub fn lines(&self, topic: &str, scope: &str, gaps: &[Gap], seconds: f64) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, found) in &self.found {
            lines.push(format!("{}: {} ({})", kind.as_str(), found.count, kind.meaning()));
            lines.extend(found.examples.iter().map(|text| format!("  {text}")));
            let told = found.examples.len() as u64;
            if found.count > told {
                lines.push(format!("  … {} in all", found.count));
            }
        }
        for gap in gaps {
            lines.push(format!(
                "accepted gap: partition {} [{}, {}) on {}: {}",
                gap.partition, gap.from_offset, gap.to_offset, gap.day, gap.reason
            ));
        }
        lines.extend(self.not_checked.iter().map(|text| format!("not checked: {text}")));
        let state = match (self.clean(), self.not_checked.is_empty()) {
            (true, true) => "clean".to_owned(),
            (true, false) => "clean as far as it could be checked".to_owned(),
            (false, _) => format!("{} findings", self.findings()),
        };
        let figure = |name| self.figure(name);
        lines.push(format!(
            "{topic}, {scope}: {state}; {} records, {} rows compared with them, {} dead letters, {} files with {} rows, \
             {} rows in no file yet, {} records not persisted yet; {seconds:.1} s",
            figure("records"),
            figure("rows_compared"),
            figure("dead_letters"),
            figure("files"),
            figure("rows_filed"),
            figure("rows_unexported"),
            figure("records_pending"),
        ));
        lines
    }
}

/// A partition's stand, as a report keeps it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stand {
    partition: i32,
    epoch: i64,
    persist_frontier: i64,
    export_frontier: i64,
    /// Days since 1970-01-01.
    persist_day: i32,
    closed_day: i32,
}

impl Stand {
    fn of(partition: i32, ledger: &super::table::Ledger) -> Self {
        Stand {
            partition,
            epoch: ledger.epoch,
            persist_frontier: ledger.persist_frontier,
            export_frontier: ledger.export_frontier,
            persist_day: ledger.persist_day,
            closed_day: ledger.closed_day,
        }
    }
}

/// What an earlier report said.
#[derive(Debug, Deserialize)]
pub struct Before {
    pub topic: String,
    frontiers: Vec<Stand>,
    manifests: BTreeMap<String, String>,
}

/// Offsets of one trouble that follow each other are told as one.
#[derive(Debug)]
pub struct Run {
    kind: Kind,
    place: String,
    text: &'static str,
    open: Option<(i64, i64, u64)>,
}

impl Run {
    pub fn new(kind: Kind, place: &str, text: &'static str) -> Self {
        Run { kind, place: place.to_owned(), text, open: None }
    }

    pub fn add(&mut self, offset: i64, report: &mut Report) {
        match &mut self.open {
            Some((_, next, count)) if *next == offset => (*next, *count) = (offset + 1, *count + 1),
            _ => {
                self.end(report);
                self.open = Some((offset, offset + 1, 1));
            }
        }
    }

    pub fn end(&mut self, report: &mut Report) {
        if let Some((first, next, count)) = self.open.take() {
            report.find_many(self.kind, count, format!("{}@[{first}, {next}): {}", self.place, self.text));
        }
    }
}
