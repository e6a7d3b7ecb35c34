//! Table and ledger in memory, with exactly the conditions that the SQL in `src/postgres` has.
//!
//! `tests/simulation/conformance.rs` holds it to a real Postgres. Everything here happens at one moment;
//! what a transaction sees while it waits for another one is in `database.rs`.

use std::collections::BTreeMap;

use feed_worker::export::manifest::{FileEntry, GapEntry};
use feed_worker::kafka::rebalance::Candidate;
use feed_worker::postgres::lane::PartitionBatch;
use feed_worker::postgres::ledger::{Entered, NewFile, NewestObject, Owned, Stop};
use feed_worker::postgres::reread::Range;
use feed_worker::reject_limit::{RejectLimits, RejectWindow};
use feed_worker::row;

use crate::plan::Protection;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic {
    pub closed_day: i32,
    pub success_day: i32,
}

/// A partition's row in the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct Partition {
    pub epoch: i64,
    pub persist_frontier: i64,
    pub persist_day: i32,
    pub export_frontier: i64,
    pub closed_day: i32,
    pub first_day: i32,
    pub last_record_hash: Option<i64>,
    pub rejects_total: i64,
    pub window: RejectWindow,
    pub stopped: Option<(String, String)>,
}

/// A row of the table, and when it was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub tuple: Vec<u8>,
    pub committed: u64,
}

/// Offset and `recorded_at`: with the partition, the table's primary key.
pub type Key = (i32, i64, i64);

#[derive(Clone, Default)]
pub struct Ledger {
    pub topic: Option<Topic>,
    pub partitions: BTreeMap<i32, Partition>,
    pub rows: BTreeMap<Key, Row>,
    pub files: BTreeMap<(i32, i64), NewFile>,
    pub gaps: Vec<(i32, GapEntry)>,
    /// Counts commits: what a statement sees is what was committed before it began.
    pub commits: u64,
    /// A condition that is left out.
    pub without: Option<Protection>,
    /// What no step may do, and some did.
    pub violations: Vec<String>,
}

/// The keys of rows in COPY-binary form, with the rows.
pub fn keyed(tuples: &[u8]) -> Vec<(Key, Vec<u8>)> {
    let keyed = |tuple: row::RowRef<'_>| {
        ((tuple.partition(), tuple.offset(), tuple.recorded_at_ms()), tuple.bytes().to_vec())
    };
    row::Rows::new(tuples).map(|tuple| keyed(tuple.expect("the worker wrote it"))).collect()
}

/// Owned partitions, stopped ones with the reason, and where the owned ones stood before.
pub type Given = (Vec<Owned>, Vec<(i32, String)>, BTreeMap<i32, Owned>);

impl Ledger {
    pub fn topic_known(&self) -> bool {
        self.topic.is_some()
    }

    pub fn enter_topic(&mut self, first_day: i32) {
        self.topic.get_or_insert(Topic { closed_day: first_day - 1, success_day: first_day - 1 });
    }

    pub fn owned(&self, partition: i32) -> Option<Owned> {
        self.partitions.get(&partition).map(|row| Owned {
            partition,
            epoch: row.epoch,
            persist_frontier: row.persist_frontier,
            persist_day: row.persist_day,
            export_frontier: row.export_frontier,
            closed_day: row.closed_day,
            last_record_hash: row.last_record_hash,
            window: row.window,
        })
    }

    pub fn peek(&self) -> BTreeMap<i32, Owned> {
        self.partitions.keys().filter_map(|p| Some((*p, self.owned(*p)?))).collect()
    }

    /// What an assignment gives; an error is a reject limit that is exceeded.
    pub fn assign(
        &mut self,
        candidates: &[Candidate],
        objects: &[NewestObject],
        limits: &RejectLimits,
        now_ms: i64,
    ) -> Result<Given, (i32, String)> {
        let before = self.clone();
        let assigned = self.try_assign(candidates, objects, limits, now_ms);
        if assigned.is_err() {
            *self = before;
        } else {
            self.commits += 1;
        }
        assigned
    }

    fn try_assign(
        &mut self,
        candidates: &[Candidate],
        objects: &[NewestObject],
        limits: &RejectLimits,
        now_ms: i64,
    ) -> Result<Given, (i32, String)> {
        for candidate in candidates {
            let start = candidate.committed.unwrap_or(candidate.low);
            let Some(mut topic) = self.topic else { continue };
            if self.lacks(Protection::StartAfterClosedDay) {
                topic.closed_day -= 2;
            }
            self.partitions.entry(candidate.partition).or_insert(Partition {
                epoch: 0,
                persist_frontier: start,
                persist_day: topic.closed_day + 1,
                export_frontier: start,
                closed_day: topic.closed_day,
                first_day: topic.closed_day + 1,
                last_record_hash: None,
                rejects_total: 0,
                window: RejectWindow::default(),
                stopped: None,
            });
        }
        let mut stopped = Vec::new();
        for candidate in candidates {
            let Some(row) = self.partitions.get(&candidate.partition) else { continue };
            if let Some(why) = row.window.exceeds(limits) {
                return Err((candidate.partition, why));
            }
            if let Some((reason, detail)) = &row.stopped {
                stopped.push((candidate.partition, format!("{reason}: {detail}")));
                continue;
            }
            let object = objects.iter().find(|o| o.partition == candidate.partition);
            let restored =
                object.is_some_and(|o| o.next_offset > row.persist_frontier || o.epoch > row.epoch);
            let stop = if candidate.low > row.persist_frontier {
                Some(Stop::Gap)
            } else if candidate.is_short {
                Some(Stop::Ahead)
            } else {
                restored.then_some(Stop::Restored)
            };
            if let Some(stop) = stop {
                let detail = format!("at {}", row.persist_frontier);
                self.write_stop(candidate.partition, None, stop.as_str(), &detail);
                stopped.push((candidate.partition, format!("{}: {detail}", stop.as_str())));
            }
        }
        let mut taken: Vec<i32> = candidates.iter().map(|c| c.partition).collect();
        taken.retain(|p| !stopped.iter().any(|(s, _)| s == p));
        taken.sort_unstable();
        taken.dedup();
        let before = taken.iter().filter_map(|p| Some((*p, self.owned(*p)?))).collect();
        for partition in &taken {
            if let Some(row) = self.partitions.get_mut(partition)
                && self.without != Some(Protection::NewEpoch)
            {
                row.epoch = (row.epoch + 1).max(now_ms);
            }
        }
        Ok((taken.into_iter().filter_map(|p| self.owned(p)).collect(), stopped, before))
    }

    fn write_stop(&mut self, partition: i32, epoch: Option<i64>, stop: &str, detail: &str) -> bool {
        let Some(row) = self.partitions.get_mut(&partition) else { return false };
        if epoch.is_some_and(|epoch| epoch != row.epoch) {
            return false;
        }
        row.stopped.get_or_insert((stop.to_owned(), detail.to_owned()));
        true
    }

    pub fn stop(&mut self, partition: i32, epoch: i64, stop: Stop, detail: &str) -> bool {
        self.commits += 1;
        self.write_stop(partition, Some(epoch), stop.as_str(), detail)
    }

    pub fn released(&self, partitions: &[i32]) -> Vec<i32> {
        let runs = |p: &i32| self.partitions.get(p).is_some_and(|row| row.stopped.is_none());
        let mut released: Vec<i32> = partitions.iter().copied().filter(runs).collect();
        released.sort_unstable();
        released
    }

    /// Whether a batch passes the compare-and-set of persisting.
    pub fn passes(&self, batch: &PartitionBatch) -> bool {
        self.partitions.get(&batch.partition).is_some_and(|row| {
            (row.epoch == batch.epoch || self.lacks(Protection::EpochInPersist))
                && (row.persist_frontier == batch.first || self.lacks(Protection::FrontierInPersist))
                && (row.persist_day == batch.day_before || self.lacks(Protection::DayInPersist))
                && row.stopped.is_none()
        })
    }

    /// What a batch that passed makes of its partition's row.
    pub fn move_frontier(&mut self, batch: &PartitionBatch) {
        self.change(batch.partition, |row| {
            row.persist_frontier = batch.next;
            row.persist_day = batch.day;
            row.last_record_hash = batch.last_record_hash.or(row.last_record_hash);
            row.rejects_total += batch.rejects.cast_signed();
            row.window = batch.window;
        });
    }

    pub fn insert(&mut self, rows: impl IntoIterator<Item = (Key, Vec<u8>)>) {
        self.commits += 1;
        let committed = self.commits;
        for (key, tuple) in rows {
            let (partition, offset, recorded_at_ms) = key;
            let day = row::day_of_ms(recorded_at_ms);
            if self.topic.is_some_and(|topic| day <= topic.closed_day) {
                self.violate(format!("a row of {partition}/{offset} was added to closed day {day}"));
            }
            if self.rows.insert(key, Row { tuple, committed }).is_some() {
                self.violate(format!("the row {key:?} was inserted twice"));
            }
        }
    }

    pub fn rows_exist(&self, partition: i32, first: i64, next: i64) -> bool {
        self.rows.range((partition, first, i64::MIN)..(partition, next, i64::MIN)).next().is_some()
    }

    /// Rows of a range that were committed up to a moment: tuples, how many, and whether these are all.
    pub fn read(&self, range: &Range, upto_commit: u64) -> (Vec<u8>, u64, bool) {
        let from_ms = row::day_start_ms(range.first_day);
        let mut tuples = Vec::new();
        let mut rows = 0;
        let full = |rows: u64, bytes: usize| rows >= range.rows_max || (rows > 0 && bytes >= range.bytes_max);
        let of =
            (range.partition, range.from, i64::MIN)..(range.partition, range.upto.max(range.from), i64::MIN);
        for ((.., recorded_at_ms), row) in self.rows.range(of) {
            if !full(rows, tuples.len()) && *recorded_at_ms >= from_ms && row.committed <= upto_commit {
                tuples.extend_from_slice(&row.tuple);
                rows += 1;
            }
        }
        let complete = !full(rows, tuples.len());
        (tuples, rows, complete)
    }

    /// Epoch and export frontier.
    pub fn export_stand(&self, partition: i32) -> Option<(i64, i64)> {
        self.partitions.get(&partition).map(|row| (row.epoch, row.export_frontier))
    }

    pub fn enter_file(&mut self, file: &NewFile) -> Entered {
        let Some(row) = self.partitions.get(&file.partition) else { return Entered::Fenced };
        let passes = (row.epoch == file.epoch || self.lacks(Protection::EpochInEnter))
            && (row.export_frontier == file.first_offset || self.lacks(Protection::ExportFrontierInEnter))
            && (row.persist_frontier >= file.next_offset || self.lacks(Protection::PersistFrontierInEnter));
        if !passes {
            let mine = row.epoch == file.epoch && row.export_frontier == file.next_offset;
            return if mine { Entered::Yes } else { Entered::Fenced };
        }
        self.commits += 1;
        self.change(file.partition, |row| row.export_frontier = file.next_offset);
        if self.topic.is_some_and(|topic| file.day <= topic.closed_day) {
            self.violate(format!("{} was entered after its day was closed", file.object_key));
        }
        if self.files.insert((file.partition, file.first_offset), file.clone()).is_some() {
            self.violate(format!("{} was entered twice", file.object_key));
        }
        Entered::Yes
    }

    pub fn advance(&mut self, (partition, epoch, frontier): (i32, i64, i64), (from, to): (i32, i32)) -> bool {
        let passes = self.partitions.get(&partition).is_some_and(|row| {
            row.epoch == epoch
                && (row.persist_frontier == frontier || self.lacks(Protection::FrontierInAdvance))
                && (row.persist_day == from && row.persist_day < to || self.lacks(Protection::DayInAdvance))
        });
        if passes {
            self.commits += 1;
            self.change(partition, |row| row.persist_day = to);
        }
        passes
    }

    pub fn reached(&self, partition: i32, epoch: i64) -> Option<i32> {
        self.partitions.get(&partition).filter(|row| row.epoch == epoch).map(|row| row.persist_day)
    }

    /// Whether closing passes, by what the row says now and the rows that were committed up to a moment.
    pub fn may_close(&self, partition: i32, epoch: i64, day: i32, upto_commit: u64) -> bool {
        let Some(row) = self.partitions.get(&partition) else { return false };
        let (from_ms, to_ms) = (row::day_start_ms(row.closed_day + 1), row::day_start_ms(day));
        let from = (partition, row.export_frontier, i64::MIN);
        let is_left = self
            .rows
            .range(from..(partition + 1, i64::MIN, i64::MIN))
            .any(|((.., ms), row)| *ms >= from_ms && *ms < to_ms && row.committed <= upto_commit);
        row.epoch == epoch
            && row.persist_day == day
            && row.closed_day < day - 1
            && (!is_left || self.lacks(Protection::RowsInClose))
    }

    pub fn close(&mut self, partition: i32, day: i32) {
        self.commits += 1;
        self.change(partition, |row| row.closed_day = day - 1);
    }

    pub fn closed(&self, partition: i32, epoch: i64) -> Option<i32> {
        self.partitions.get(&partition).filter(|row| row.epoch == epoch).map(|row| row.closed_day)
    }

    pub fn topic_days(&self) -> Option<(i32, i32)> {
        self.topic.map(|topic| (topic.closed_day, topic.success_day))
    }

    pub fn least_closed(&self) -> Option<i32> {
        self.partitions.values().map(|row| row.closed_day).min()
    }

    pub fn close_topic(&mut self, partitions: &[i32]) {
        let known: Vec<i32> =
            partitions.iter().filter_map(|p| Some(self.partitions.get(p)?.closed_day)).collect();
        let (Some(least), Some(topic)) = (known.iter().min().copied(), &mut self.topic) else { return };
        let all =
            known.len() == partitions.len() || self.without == Some(Protection::AllPartitionsInCloseTopic);
        if all && least > topic.closed_day {
            topic.closed_day = least;
            self.commits += 1;
        }
    }

    pub fn day_files(&self, from: i32, to: i32) -> Vec<FileEntry> {
        let of_day = self.files.values().filter(|file| (from..=to).contains(&file.day));
        of_day
            .map(|file| FileEntry {
                key: file.object_key.clone(),
                partition: file.partition,
                first_offset: file.first_offset,
                last_offset: file.next_offset - 1,
                rows: file.rows.cast_unsigned(),
                bytes: file.bytes.cast_unsigned(),
                row_hash: file.row_hash.clone(),
                recorded_at_min: row::timestamp_text(file.recorded_at_min_ms),
                recorded_at_max: row::timestamp_text(file.recorded_at_max_ms),
            })
            .collect()
    }

    pub fn day_partitions(&self, of: i32) -> Vec<i32> {
        self.partitions.iter().filter(|(_, row)| row.first_day <= of).map(|(p, _)| *p).collect()
    }

    pub fn day_gaps(&self, of: i32) -> Vec<GapEntry> {
        self.gaps.iter().filter(|(day, _)| *day == of).map(|(_, gap)| gap.clone()).collect()
    }

    pub fn finished(&mut self, day: i32) {
        if let Some(topic) = self.topic.as_mut().filter(|t| t.success_day < day && t.closed_day >= day) {
            topic.success_day = day;
            self.commits += 1;
        }
    }

    pub fn lacks(&self, protection: Protection) -> bool {
        self.without.is_some_and(|without| without.takes_out(protection))
    }

    fn violate(&mut self, what: String) {
        if self.violations.len() < 8 {
            self.violations.push(what);
        }
    }

    /// Changes a partition's row and looks at what must hold across every change.
    fn change(&mut self, partition: i32, change: impl FnOnce(&mut Partition)) {
        let Some(row) = self.partitions.get_mut(&partition) else { return };
        let before = row.clone();
        change(row);
        let after = row.clone();
        for (what, before, after) in [
            ("persist_frontier", before.persist_frontier, after.persist_frontier),
            ("export_frontier", before.export_frontier, after.export_frontier),
            ("persist_day", before.persist_day.into(), after.persist_day.into()),
            ("closed_day", before.closed_day.into(), after.closed_day.into()),
            ("epoch", before.epoch, after.epoch),
        ] {
            if after < before {
                self.violate(format!("{what} of {partition} went back from {before} to {after}"));
            }
        }
        if after.export_frontier > after.persist_frontier {
            self.violate(format!("the export of {partition} is past its rows: {after:?}"));
        }
        if after.closed_day >= after.persist_day {
            self.violate(format!("{partition} closed a day that it has not left: {after:?}"));
        }
    }
}
