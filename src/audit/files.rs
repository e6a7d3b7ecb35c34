//! The files of a partition: that they tile its offsets, and that each is what the ledger says of it, row for
//! row what the table has. One file is in memory at a time, and a few thousand rows.

use super::bucket::Key;
use super::file::File;
use super::report::{Kind, Report, Run};
use super::row::{Hash, Row, day_text};
use super::table::{FileEntry, Ledger};
use super::{Audit, Trouble};

/// Walks over a partition's files in the order of their offsets.
pub struct FileWalk<'a> {
    audit: &'a Audit,
    partition: i32,
    name: String,
    /// Where the last file ended; none before the first.
    position: Option<i64>,
    /// Behind the greatest offset that was met in a file.
    filed: i64,
    epoch: i64,
}

impl<'a> FileWalk<'a> {
    pub fn new(audit: &'a Audit, partition: i32, epoch: i64) -> Self {
        let name = format!("{}/{partition}", audit.settings.topic);
        FileWalk { audit, partition, name, position: None, filed: i64::MIN, epoch }
    }

    /// All files below the export frontier, and what lies in none.
    pub async fn run(mut self, ledger: &Ledger, report: &mut Report) -> Result<(), Trouble> {
        let frontier = ledger.export_frontier;
        let (mut from, mut first) = (0, None);
        loop {
            // A frontier that went back must not hide the files past it.
            let files = self.audit.table.files(self.partition, from, i64::MAX).await?;
            let Some(last) = files.last() else { break };
            from = last.first_offset + 1;
            let ended = ledger.files_end.is_none_or(|end| from >= end);
            for file in &files {
                // Entered after the frontiers were taken: the next audit's.
                if ledger.files_end.is_none_or(|end| file.first_offset >= end) {
                    continue;
                }
                if first.is_none() {
                    first = Some(file.first_offset);
                    self.below(file.first_offset.min(frontier), report).await?;
                }
                if file.next_offset > frontier {
                    let text = format!(
                        "{}: export_frontier {frontier}, a file ends at {}",
                        self.name, file.next_offset
                    );
                    report.find(Kind::FrontierBack, text);
                }
                if file.next_offset > ledger.persist_frontier {
                    let persist = ledger.persist_frontier;
                    let text = format!(
                        "{}: persist_frontier {persist}, a file ends at {}",
                        self.name, file.next_offset
                    );
                    report.find(Kind::FrontierBack, text);
                }
                self.take(file, report).await?;
            }
            if ended {
                break;
            }
        }
        if first.is_none() {
            self.below(frontier, report).await?;
        }
        if let Some(position) = self.position.filter(|position| *position < frontier) {
            self.uncovered(position, frontier, "before export_frontier", report).await?;
        }
        self.above(frontier.max(self.position.unwrap_or(frontier)), ledger, report).await
    }

    /// One file in its place.
    pub async fn take(&mut self, file: &FileEntry, report: &mut Report) -> Result<(), Trouble> {
        if let Some(position) = self.position {
            if file.first_offset > position {
                self.uncovered(position, file.first_offset, "between two files", report).await?;
            } else if file.first_offset < position {
                let end = position.min(file.next_offset);
                report.find(
                    Kind::Overlap,
                    format!("{}: two files for [{}, {end})", self.name, file.first_offset),
                );
            }
        }
        self.position = Some(self.position.unwrap_or(file.next_offset).max(file.next_offset));
        self.check_entry(file, report);
        self.check_file(file, report).await
    }

    /// Rows below the first file.
    async fn below(&self, upto: i64, report: &mut Report) -> Result<(), Trouble> {
        let count = self.say_rows(0, upto, "below export_frontier, and in no file", report).await?;
        if count > 0 {
            report.find_many(Kind::Gap, count, format!("{}: no file for rows below {upto}", self.name));
        }
        Ok(())
    }

    /// A range that no file claims: well only if an accepted gap explains it, and no row lies in it.
    async fn uncovered(&self, from: i64, upto: i64, what: &str, report: &mut Report) -> Result<(), Trouble> {
        let rows = self.say_rows(from, upto, "below export_frontier, and in no file", report).await?;
        let explained = self
            .audit
            .snapshot
            .gaps
            .iter()
            .any(|gap| gap.partition == self.partition && gap.from_offset < upto && gap.to_offset > from);
        if rows > 0 || !explained {
            report.find(Kind::Gap, format!("{}: no file for [{from}, {upto}), {what}", self.name));
        }
        Ok(())
    }

    async fn say_rows(
        &self,
        from: i64,
        upto: i64,
        text: &'static str,
        report: &mut Report,
    ) -> Result<u64, Trouble> {
        let mut lost = Run::new(Kind::LostWrite, &self.name, text);
        let mut rows = self.audit.table.rows(self.partition, from, upto);
        let mut count = 0;
        while let Some(row) = rows.next().await? {
            lost.add(row.offset, report);
            count += 1;
        }
        lost.end(report);
        Ok(count)
    }

    /// Rows at or above the frontier: not yet exported, unless their day is closed.
    async fn above(&self, from: i64, ledger: &Ledger, report: &mut Report) -> Result<(), Trouble> {
        let mut late = Run::new(Kind::LostWrite, &self.name, "of a closed day, and in no file");
        let mut rows = self.audit.table.rows(self.partition, from, ledger.persist_frontier);
        while let Some(row) = rows.next().await? {
            report.count("rows_unexported", 1);
            if row.day() <= ledger.closed_day {
                late.add(row.offset, report);
            }
        }
        late.end(report);
        Ok(())
    }

    /// Key and entry are of one file.
    fn check_entry(&self, file: &FileEntry, report: &mut Report) {
        let key = &file.key;
        match self.audit.bucket.parse(key) {
            Key::File { day, topic, partition, first_offset } => {
                if (topic.as_str(), partition) != (self.audit.settings.topic.as_str(), self.partition) {
                    report.find(Kind::MisFiled, format!("{key}: in the ledger as {}", self.name));
                }
                if day != file.day {
                    report.find(Kind::MisFiled, format!("{key}: in the ledger as of {}", day_text(file.day)));
                }
                if first_offset != file.first_offset {
                    report.find(
                        Kind::Inconsistent,
                        format!("{key}: begins at {} in the ledger", file.first_offset),
                    );
                }
            }
            _ => report.find(Kind::Inconsistent, format!("{key}: no key of the agreed form")),
        }
        if file.epoch > self.epoch {
            let text =
                format!("{key}: written under epoch {}, the partition's is {}", file.epoch, self.epoch);
            report.find(Kind::FrontierBack, text);
        }
    }

    /// The object itself.
    async fn check_file(&mut self, file: &FileEntry, report: &mut Report) -> Result<(), Trouble> {
        let key = &file.key;
        let told = self.audit.bucket.head(key).await?;
        let body = match &told {
            Some(_) => self.audit.bucket.get(key).await?,
            None => None,
        };
        let (Some(told), Some(body)) = (told, body) else {
            report.find(Kind::LostWrite, format!("{key}: in the ledger, not in the bucket"));
            self.say_rows(file.first_offset, file.next_offset, "in no file: the object is gone", report)
                .await?;
            return Ok(());
        };
        report.count("files", 1);
        if body.len() as i64 != file.bytes {
            report.find(
                Kind::Inconsistent,
                format!("{key}: {} bytes, {} in the ledger", body.len(), file.bytes),
            );
        }
        let said = |name: &str| told.metadata.get(&name.replace('_', "-")).cloned();
        self.check_said(file, "the object's metadata", said, report);
        match File::open(body) {
            Ok(mut opened) => {
                for fault in &opened.form {
                    report.find(Kind::Inconsistent, format!("{key}: {fault}"));
                }
                let said = std::mem::take(&mut opened.said);
                self.check_said(file, "the file", |name| said.get(name).cloned(), report);
                for (name, wanted) in
                    [("recorded_at_min_ms", file.min_ms), ("recorded_at_max_ms", file.max_ms)]
                {
                    if said.get(name) != Some(&wanted.to_string()) {
                        report.find(
                            Kind::Inconsistent,
                            format!("{key}: the file says another {name} than the ledger"),
                        );
                    }
                }
                self.check_rows(file, opened, report).await
            }
            Err(fault) => {
                report.find(Kind::Inconsistent, format!("{key}: {fault}"));
                self.say_rows(file.first_offset, file.next_offset, "in a file that cannot be read", report)
                    .await?;
                Ok(())
            }
        }
    }

    /// What is said of a file in one place, against the ledger.
    fn check_said(
        &self,
        file: &FileEntry,
        place: &str,
        said: impl Fn(&str) -> Option<String>,
        report: &mut Report,
    ) {
        let wanted = [
            ("topic", self.audit.settings.topic.clone()),
            ("partition", self.partition.to_string()),
            ("first_offset", file.first_offset.to_string()),
            ("next_offset", file.next_offset.to_string()),
            ("last_offset", (file.next_offset - 1).to_string()),
            ("rows", file.rows.to_string()),
            ("row_hash", file.row_hash.clone()),
            ("epoch", file.epoch.to_string()),
        ];
        for (name, wanted) in wanted {
            let found = said(name);
            if found.as_ref() != Some(&wanted) {
                let text = format!("{}: {place} says {found:?} as its {name}, the ledger {wanted}", file.key);
                report.find(Kind::Inconsistent, text);
            }
        }
        if said("schema_version").is_none_or(|version| version.is_empty()) {
            report.find(Kind::Inconsistent, format!("{}: {place} says no schema_version", file.key));
        }
    }

    /// The file's rows beside the table's, in lockstep.
    async fn check_rows(
        &mut self,
        file: &FileEntry,
        mut opened: File,
        report: &mut Report,
    ) -> Result<(), Trouble> {
        let mut seen = Seen::new(file, self.filed);
        let mut lost = Run::new(Kind::LostWrite, &self.name, "below export_frontier, and not in its file");
        let mut orphans = Run::new(Kind::Orphan, &file.key, "has no row in the table");
        let dropped = self.audit.is_dropped(file.day).await?;
        let mut rows = self.audit.table.rows(self.partition, file.first_offset, file.next_offset);
        let mut table = rows.next().await?;
        let mut table_hash = Hash::default();
        loop {
            let row = match opened.next() {
                Ok(row) => row,
                Err(fault) => {
                    report.find(Kind::Inconsistent, format!("{}: {fault}", file.key));
                    break;
                }
            };
            let upto = row.as_ref().map_or(i64::MAX, |row| row.offset);
            while let Some(only) = table.take_if(|table| table.offset < upto) {
                table_hash.add(&only);
                lost.add(only.offset, report);
                table = rows.next().await?;
            }
            let Some(row) = row else { break };
            seen.take(&row, report);
            match table.take_if(|table| table.offset == row.offset) {
                Some(same) => {
                    table_hash.add(&same);
                    if let Some(columns) = same.differences(&row) {
                        let text = format!("{}@{}: table and file differ in {columns}", file.key, row.offset);
                        report.find(Kind::Inconsistent, text);
                    }
                    table = rows.next().await?;
                    // A second row of one offset was told where the table was read.
                    while table.take_if(|table| table.offset == row.offset).is_some() {
                        table = rows.next().await?;
                    }
                }
                // Another range's row was told; whether the table has it is for that range's file.
                None if dropped || !file.claims(row.offset) => {}
                None => orphans.add(row.offset, report),
            }
        }
        lost.end(report);
        orphans.end(report);
        self.filed = self.filed.max(seen.next_offset);
        self.audit.progress(seen.rows.unsigned_abs());
        report.count("rows_filed", seen.rows.unsigned_abs());
        if dropped {
            report.not_checked(format!(
                "rows of {} against the table: it no longer has the day; its files were held against the ledger",
                day_text(file.day)
            ));
        } else if table_hash.hex() != file.row_hash {
            let text = format!("{}: the table's rows have hash {}", file.key, table_hash.hex());
            report.find(Kind::Inconsistent, text);
        }
        seen.end(report);
        Ok(())
    }
}

/// What was met in a file.
struct Seen<'f> {
    file: &'f FileEntry,
    hash: Hash,
    rows: i64,
    next_offset: i64,
    filed: i64,
    min_ms: i64,
    max_ms: i64,
    other_days: u64,
}

impl<'f> Seen<'f> {
    fn new(file: &'f FileEntry, filed: i64) -> Self {
        Seen {
            file,
            hash: Hash::default(),
            rows: 0,
            next_offset: i64::MIN,
            filed,
            min_ms: i64::MAX,
            max_ms: i64::MIN,
            other_days: 0,
        }
    }

    fn take(&mut self, row: &Row, report: &mut Report) {
        let (file, key) = (self.file, &self.file.key);
        self.hash.add(row);
        self.rows += 1;
        self.min_ms = self.min_ms.min(row.recorded_ms());
        self.max_ms = self.max_ms.max(row.recorded_ms());
        self.other_days += u64::from(row.day() != file.day);
        if row.partition != file.partition || !file.claims(row.offset) {
            let text = format!("{key}: a row of partition {}, offset {}", row.partition, row.offset);
            report.find(Kind::MisFiled, text);
        }
        if row.offset < self.next_offset {
            report.find(
                Kind::Inconsistent,
                format!("{key}: offset {} after {}", row.offset, self.next_offset - 1),
            );
        }
        if row.offset < self.filed {
            report.find(Kind::Duplicate, format!("{key}: offset {} is in another file too", row.offset));
        }
        self.next_offset = self.next_offset.max(row.offset + 1);
    }

    fn end(&self, report: &mut Report) {
        let (file, key) = (self.file, &self.file.key);
        if self.rows != file.rows {
            report
                .find(Kind::Inconsistent, format!("{key}: {} rows, {} in the ledger", self.rows, file.rows));
        }
        if self.hash.hex() != file.row_hash {
            report.find(Kind::Inconsistent, format!("{key}: its rows have hash {}", self.hash.hex()));
        }
        if self.rows > 0 && self.next_offset != file.next_offset {
            let text =
                format!("{key}: ends before {}, in the ledger before {}", self.next_offset, file.next_offset);
            report.find(Kind::Inconsistent, text);
        }
        if self.other_days > 0 {
            let text =
                format!("{key}: holds {} rows of other days than {}", self.other_days, day_text(file.day));
            report.find(Kind::MisFiled, text);
        }
        if self.rows > 0 && (self.min_ms, self.max_ms) != (file.min_ms, file.max_ms) {
            report.find(Kind::Inconsistent, format!("{key}: its time bounds are not the ledger's"));
        }
    }
}
