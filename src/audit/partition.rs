//! One partition: every record that the topic still has below the persist frontier against the one sink that it must
//! be in. Three streams in the order of offsets: memory does not grow with them.

use std::collections::{BTreeMap, BTreeSet};

use super::dead_letters::{self, DeadLetters, Letter};
use super::event::REASONS_OF_THEIR_TIME;
use super::report::{Kind, Report, Run};
use super::row::{DAY_MS, Row, day_text};
use super::table::{Ledger, Rows};
use super::topic::Record;
use super::{Audit, Trouble};

/// Two clocks, one of them perhaps a little off.
const INGESTED_BEFORE_RECORDED_US_MAX: i64 = 3_600_000_000;

/// What the topic has of a partition, and whose offsets were committed.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub partition: i32,
    /// The first offset that the topic had before the frontiers were taken.
    pub gone: i64,
    pub low: i64,
    pub high: i64,
    pub committed: Option<i64>,
}

pub struct PartitionCheck<'a> {
    audit: &'a Audit,
    dead: &'a DeadLetters,
    at: Bounds,
    /// Below it lies nothing that this ledger ever had.
    start: i64,
    name: String,
    day_reached: i32,
    lost: Run,
    absent: u64,
    /// Offsets of the producer's list that the topic no longer has, and that were met in no sink yet.
    listed: BTreeSet<i64>,
}

impl<'a> PartitionCheck<'a> {
    pub fn new(audit: &'a Audit, dead: &'a DeadLetters, at: Bounds, start: i64) -> Self {
        let name = format!("{}/{}", audit.settings.topic, at.partition);
        let lost = Run::new(Kind::LostWrite, &name, "in neither table nor DLQ");
        let listed = audit.produced_in(at.partition, 0, at.low).map(|(offset, _)| offset);
        let listed = listed.filter(|offset| !audit.gapped(at.partition, *offset)).collect();
        PartitionCheck { audit, dead, at, start, name, day_reached: i32::MIN, lost, absent: 0, listed }
    }

    pub async fn run(mut self, ledger: &Ledger, report: &mut Report) -> Result<(), Trouble> {
        self.check_frontiers(ledger, report);
        let upto = ledger.persist_frontier.min(self.at.high);
        report.count("records_pending", (self.at.high - upto).max(0).unsigned_abs());
        let mut rows = self.audit.table.rows(self.at.partition, 0, ledger.persist_frontier);
        let mut row = rows.next().await?;
        let mut records =
            self.audit.topics.records(&self.audit.settings.topic, self.at.partition, self.at.low, upto);
        let mut position = self.at.low;
        let none = BTreeMap::new();
        let letters = self.dead.of.get(&self.at.partition).unwrap_or(&none);
        while let Some(batch) = records.next().await? {
            self.audit.look_up_schemas(&batch).await?;
            for record in &batch {
                self.take_unmatched(&mut rows, &mut row, record.offset, report).await?;
                self.skipped(letters, (position, record.offset), report);
                position = record.offset + 1;
                let matched = self.take_same(&mut rows, &mut row, record.offset, report).await?;
                self.judge(record, matched.as_ref(), letters.get(&record.offset), report).await?;
            }
            self.audit.progress(batch.len() as u64);
        }
        self.take_unmatched(&mut rows, &mut row, i64::MAX, report).await?;
        self.skipped(letters, (position, upto.max(position)), report);
        self.lost.end(report);
        for offset in self.listed.iter().filter(|offset| !letters.contains_key(offset)) {
            report.find(
                Kind::LostWrite,
                format!("{}@{offset}: produced, and in neither table nor DLQ", self.name),
            );
        }
        self.say_unchecked(letters.len() as u64, upto, report);
        Ok(())
    }

    fn check_frontiers(&self, ledger: &Ledger, report: &mut Report) {
        let name = &self.name;
        let (persist, export) = (ledger.persist_frontier, ledger.export_frontier);
        if export > persist {
            report.find(
                Kind::FrontierBack,
                format!("{name}: export_frontier {export} is past persist_frontier {persist}"),
            );
        }
        if persist < self.at.gone {
            let gone = self.at.gone;
            let text =
                format!("{name}@[{persist}, {gone}): the topic no longer has them, and they were never read");
            report.find_many(Kind::LostWrite, (gone - persist).unsigned_abs(), text);
        }
        if persist > self.at.high {
            let text = format!("{name}: persist_frontier {persist} is past the topic's end {}", self.at.high);
            report.find(Kind::Inconsistent, text);
        }
        if let Some(committed) = self.at.committed.filter(|committed| *committed > persist) {
            let text = format!("{name}: persist_frontier {persist}, Kafka's committed offset {committed}");
            report.find(Kind::FrontierBack, text);
        }
        if ledger.rows_above > 0 {
            let first = ledger.first_above.unwrap_or(persist);
            let text = format!(
                "{name}: {} rows at or above persist_frontier {persist}, from {first} on",
                ledger.rows_above
            );
            report.find(Kind::FrontierBack, text);
        }
    }

    /// Rows before an offset: their records are not in the topic.
    async fn take_unmatched(
        &mut self,
        rows: &mut Rows<'_>,
        row: &mut Option<Row>,
        before: i64,
        report: &mut Report,
    ) -> Result<(), Trouble> {
        while let Some(offset) = row.as_ref().map(|row| row.offset).filter(|offset| *offset < before) {
            self.take_same(rows, row, offset, report).await?;
            if offset < self.at.low {
                self.listed.remove(&offset);
                report.count("rows_without_record", 1);
            } else {
                report.find(
                    Kind::Orphan,
                    format!("{}@{offset}: a row of a record that is not in the topic", self.name),
                );
            }
        }
        Ok(())
    }

    /// The row of an offset, and whether it has doubles.
    async fn take_same(
        &mut self,
        rows: &mut Rows<'_>,
        row: &mut Option<Row>,
        offset: i64,
        report: &mut Report,
    ) -> Result<Option<Row>, Trouble> {
        if row.as_ref().is_none_or(|row| row.offset != offset) {
            return Ok(None);
        }
        let first = row.take();
        *row = rows.next().await?;
        while row.as_ref().is_some_and(|row| row.offset == offset) {
            report.find(Kind::Duplicate, format!("{}@{offset}: two rows in the table", self.name));
            *row = rows.next().await?;
        }
        if let Some(first) = &first {
            self.check_times(first, report);
        }
        Ok(first)
    }

    fn check_times(&mut self, row: &Row, report: &mut Report) {
        let day = row.day();
        if day < self.day_reached {
            let text =
                format!("{}@{}: of {}, after a row of a later day", self.name, row.offset, day_text(day));
            report.find(Kind::Inconsistent, text);
        }
        self.day_reached = self.day_reached.max(day);
        if row.ingested_us < row.recorded_us - INGESTED_BEFORE_RECORDED_US_MAX {
            report.find(
                Kind::Inconsistent,
                format!("{}@{}: ingested long before it was recorded", self.name, row.offset),
            );
        }
    }

    /// Offsets without a record, as transactions leave them: nothing may claim to come from there.
    fn skipped(&self, letters: &BTreeMap<i64, Vec<Letter>>, (from, upto): (i64, i64), report: &mut Report) {
        for offset in letters.range(from..upto.max(from)).map(|(offset, _)| offset) {
            report.find(
                Kind::Orphan,
                format!("{}@{offset}: a dead letter of a record that is not in the topic", self.name),
            );
        }
        for (offset, _) in self.audit.produced_in(self.at.partition, from, upto) {
            report.find(Kind::LostWrite, format!("{}@{offset}: produced, but not in the topic", self.name));
        }
    }

    async fn judge(
        &mut self,
        record: &Record,
        row: Option<&Row>,
        letters: Option<&Vec<Letter>>,
        report: &mut Report,
    ) -> Result<(), Trouble> {
        let (offset, place) = (record.offset, format!("{}@{}", self.name, record.offset));
        report.count("records", 1);
        if self.audit.gapped(self.at.partition, offset) {
            report.count("records_in_gaps", 1);
            if row.is_some() || letters.is_some() {
                report.find(Kind::Inconsistent, format!("{place}: in an accepted gap, and yet persisted"));
            }
            return Ok(());
        }
        let decoded = self.audit.decode(record).await;
        self.hold_against_list(record, decoded.as_ref().err().copied(), &place, report);
        match (row, letters) {
            (Some(row), letters) => {
                if letters.is_some() {
                    report.count("dead_letters_of_rows", 1);
                }
                match decoded {
                    Ok(event) => self.compare(record, event, row, &place, report),
                    Err(reason) => {
                        report.find(Kind::MisFiled, format!("{place}: {reason}, and yet in the table"));
                    }
                }
            }
            (None, Some(letters)) => {
                report.count("dead_letters", 1);
                let reason = letters.first().map_or("", |letter| letter.reason.as_str());
                let of_its_time = REASONS_OF_THEIR_TIME.contains(&reason)
                    || (self.audit.settings.other_weights && reason == "unknown_interaction_type");
                if decoded.is_ok() && of_its_time {
                    report.count("rejected_for_reasons_of_their_time", 1);
                } else if decoded.is_ok() {
                    report.find(Kind::MisFiled, format!("{place}: a good event, dead-lettered as {reason}"));
                    return Ok(());
                }
                if let Some(Some(planted)) = self.audit.produced(record.partition, offset)
                    && planted != reason
                {
                    report.find(
                        Kind::Inconsistent,
                        format!("{place}: planted as {planted}, dead-lettered as {reason}"),
                    );
                }
                dead_letters::check(report, &place, record, letters);
            }
            (None, None) => self.absent(record, decoded.is_ok(), report).await?,
        }
        Ok(())
    }

    /// In neither sink: lost, unless a retention may have taken it.
    async fn absent(&mut self, record: &Record, is_good: bool, report: &mut Report) -> Result<(), Trouble> {
        let day = record.timestamp_ms.div_euclid(DAY_MS) as i32;
        if record.offset < self.start {
            self.absent += 1;
        } else if !is_good && self.dead.may_be_gone(self.at.partition, record.offset) {
            report.count("dead_letters_perhaps_gone", 1);
        } else if is_good && self.audit.is_dropped(day.max(self.day_reached)).await? {
            report.not_checked(format!("rows of {}: the table no longer has the day", day_text(day)));
        } else {
            self.lost.add(record.offset, report);
        }
        Ok(())
    }

    /// What the producer knows of the record.
    fn hold_against_list(
        &self,
        record: &Record,
        bad: Option<&'static str>,
        place: &str,
        report: &mut Report,
    ) {
        let Some(reason) = self.audit.produced(record.partition, record.offset) else { return };
        match (reason, bad) {
            (None, Some(bad)) => {
                report.find(Kind::Inconsistent, format!("{place}: produced as valid, but {bad}"));
            }
            (Some(reason), None) if !REASONS_OF_THEIR_TIME.contains(&reason) => {
                report.find(
                    Kind::Inconsistent,
                    format!("{place}: produced as {reason}, but a good event by its value"),
                );
            }
            _ => {}
        }
    }

    fn compare(&self, record: &Record, event: Row, row: &Row, place: &str, report: &mut Report) {
        let (recorded_ms, kafka_ms) = (row.recorded_ms(), record.timestamp_ms);
        let moved_to_midnight = recorded_ms % DAY_MS == 0 && recorded_ms > kafka_ms;
        let capped = self.audit.settings.allow_create_time && recorded_ms < kafka_ms;
        if recorded_ms != kafka_ms && !moved_to_midnight && !capped {
            let text = format!("{place}: recorded_at is {recorded_ms} ms, Kafka's timestamp {kafka_ms} ms");
            report.find(Kind::Inconsistent, text);
        }
        let weight = if self.audit.settings.other_weights { row.weight } else { event.weight };
        let expected = Row {
            partition: record.partition,
            offset: record.offset,
            recorded_us: recorded_ms * 1000,
            ingested_us: row.ingested_us.div_euclid(1000) * 1000,
            weight,
            ..event
        };
        report.count("rows_compared", 1);
        if let Some(columns) = expected.differences(row) {
            report.find(Kind::Inconsistent, format!("{place}: event and row differ in {columns}"));
        }
    }

    fn say_unchecked(&self, letters: u64, upto: i64, report: &mut Report) {
        let name = &self.name;
        if self.at.low > 0 && self.start < self.at.low {
            report.not_checked(format!(
                "{name}@[{}, {}): the topic no longer has these records; only table and files were compared",
                self.start,
                self.at.low.min(upto.max(self.start))
            ));
        }
        if self.absent > 0 {
            report.not_checked(format!(
                "{name}: {} records before offset {}, where this ledger begins",
                self.absent, self.start
            ));
        }
        report.count("dead_letters_kept", letters);
        for (offset, bad) in self.audit.produced_in(self.at.partition, self.at.high, i64::MAX) {
            let kind = if bad { "bad" } else { "valid" };
            report
                .find(Kind::LostWrite, format!("{name}@{offset}: produced as {kind}, but not in the topic"));
        }
    }
}
