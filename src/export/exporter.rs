//! The export of one partition: which rows lie in which file, live or behind. No I/O.
//!
//! 1. Files tile the offsets: each begins where the one before ends, whatever made it roll.
//! 2. A file holds rows of one day.
//! 3. Live: rows that were just committed go into the open file. Behind: they are read back from the
//!    table, in order, until nothing is missing. Whatever goes wrong leads to the same place: drop the
//!    open file, be behind, catch up.

use std::collections::VecDeque;

use super::file::{FileError, FileIdentity, OpenFile, SealedFile};
use crate::row::{self, RawRow};

/// What makes a file roll.
#[derive(Clone, Copy, Debug)]
pub struct RollLimits {
    pub rows_max: u64,
    pub bytes_max: u64,
    pub age_ms_max: i64,
    pub row_group_rows: usize,
}

/// Why a file rolled; the name is a metric's tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roll {
    Rows,
    Bytes,
    Age,
    Day,
    Memory,
    Shutdown,
}

impl Roll {
    pub fn as_str(self) -> &'static str {
        match self {
            Roll::Rows => "rows",
            Roll::Bytes => "bytes",
            Roll::Age => "age",
            Roll::Day => "day",
            Roll::Memory => "memory",
            Roll::Shutdown => "shutdown",
        }
    }
}

/// A chunk that is being read back.
struct Reading {
    upto: i64,
    /// Rows committed meanwhile, kept because the chunk will reach to where they begin.
    tail: Option<Vec<u8>>,
}

/// What is known here about the oldest row that is in no object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldestRow {
    /// Every row is.
    None,
    /// It was recorded then, ms since 1970.
    At(i64),
    /// It has to be read back first; the table knows.
    Unknown,
}

/// One partition's export.
pub struct Exporter {
    topic: String,
    partition: i32,
    epoch: i64,
    limits: RollLimits,
    /// The ledger's export frontier.
    frontier: i64,
    /// Every row below it lies in a file, open or sealed; at or above it, none does.
    end: i64,
    live: bool,
    reading: Option<Reading>,
    open: Option<OpenFile>,
    sealed: VecDeque<(SealedFile, Roll)>,
    uploading: bool,
    halted: Option<String>,
}

impl Exporter {
    /// The export of a partition that was just taken over.
    pub fn new(
        topic: &str,
        partition: i32,
        epoch: i64,
        export_frontier: i64,
        persist_frontier: i64,
        limits: RollLimits,
    ) -> Self {
        Exporter {
            topic: topic.to_owned(),
            partition,
            epoch,
            limits,
            frontier: export_frontier,
            end: export_frontier,
            live: export_frontier == persist_frontier,
            reading: None,
            open: None,
            sealed: VecDeque::new(),
            uploading: false,
            halted: None,
        }
    }

    pub fn frontier(&self) -> i64 {
        self.frontier
    }

    pub fn is_live(&self) -> bool {
        self.live
    }

    pub fn halted(&self) -> Option<&str> {
        self.halted.as_deref()
    }

    /// Stops the export of this partition until another owner tries: an operator has to look.
    pub fn halt(&mut self, why: String) {
        self.drop_unsealed();
        self.sealed.clear();
        self.uploading = false;
        self.halted = Some(why);
    }

    /// The oldest row that is in no object.
    pub fn oldest_row(&self) -> OldestRow {
        let sealed = self.sealed.front().map(|(file, _)| file.recorded_at_min_ms);
        match sealed.or_else(|| self.open.as_ref().and_then(OpenFile::recorded_at_min_ms)) {
            Some(at_ms) => OldestRow::At(at_ms),
            None if self.live => OldestRow::None,
            None => OldestRow::Unknown,
        }
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let tail = self.reading.as_ref().and_then(|r| r.tail.as_ref()).map_or(0, Vec::len);
        self.open_bytes() + self.sealed_bytes() + tail
    }

    /// The open file's part of it, which sealing makes smaller.
    pub fn open_bytes(&self) -> usize {
        self.open.as_ref().map_or(0, OpenFile::memory_bytes)
    }

    /// The sealed files' part of it, which goes with their uploads.
    pub fn sealed_bytes(&self) -> usize {
        self.sealed.iter().map(|(file, _)| file.body.len()).sum()
    }

    /// What `shed` would give back: all but the file that is on its way.
    pub fn sheddable_bytes(&self) -> usize {
        let kept = self.sealed.front().filter(|_| self.uploading).map_or(0, |(f, _)| f.body.len());
        self.memory_bytes() - kept
    }

    pub fn open_rows(&self) -> u64 {
        self.open.as_ref().map_or(0, OpenFile::rows)
    }

    /// Whether every committed row of days before `day` lies in the bucket and is entered.
    pub fn has_exported_before(&self, day: i32) -> bool {
        self.live
            && self.halted.is_none()
            && self.sealed.is_empty()
            && self.open.as_ref().is_none_or(|file| file.day() >= day)
    }

    /// Whether files are sealed that are not entered yet.
    pub fn is_uploading(&self) -> bool {
        !self.sealed.is_empty() && self.halted.is_none()
    }

    /// Rows that were just committed, up to the frontier `next`.
    pub fn committed(&mut self, tuples: &[u8], next: i64) -> Result<(), FileError> {
        if self.halted.is_some() {
            return Ok(());
        }
        if self.live {
            self.append(tuples)?;
            self.end = next;
            return Ok(());
        }
        if let Some(tail) = self.reading.as_mut().and_then(|r| r.tail.as_mut()) {
            tail.extend_from_slice(tuples);
        }
        Ok(())
    }

    /// What to read next, if the export is behind: `[from, upto)`, and at most so many rows.
    pub fn next_read(&mut self, persist_frontier: i64, rows_max: u64) -> Option<(i64, i64)> {
        if self.live || self.reading.is_some() || self.halted.is_some() {
            return None;
        }
        if self.end >= persist_frontier {
            self.live = true;
            return None;
        }
        // A range this short comes back whole: what is committed meanwhile joins on to it.
        let whole = persist_frontier.abs_diff(self.end) < rows_max;
        let tail = whole.then(Vec::new);
        self.reading = Some(Reading { upto: persist_frontier, tail });
        Some((self.end, persist_frontier))
    }

    /// Rows that were read back. `persist_frontier` is where the tail ends.
    pub fn read(
        &mut self,
        tuples: &[u8],
        complete: bool,
        export_frontier: i64,
        persist_frontier: i64,
    ) -> Result<(), FileError> {
        let Some(reading) = self.reading.take() else { return Ok(()) };
        if export_frontier > self.end {
            // A file of mine was entered after all: go on from there.
            self.restart(export_frontier);
            return Ok(());
        }
        self.append(tuples)?;
        match (complete, reading.tail) {
            (true, Some(tail)) => {
                self.append(&tail)?;
                self.end = persist_frontier;
                self.live = true;
            }
            (true, None) => self.end = reading.upto,
            (false, _) => {
                if let Some(Ok(last)) = row::Rows::new(tuples).last() {
                    self.end = last.offset() + 1;
                }
            }
        }
        Ok(())
    }

    /// Reading failed: the same chunk is asked for again.
    pub fn read_failed(&mut self) {
        self.reading = None;
    }

    /// Appends rows, a new file for each day and whenever one is full.
    fn append(&mut self, tuples: &[u8]) -> Result<(), FileError> {
        let mut rest = tuples;
        while !rest.is_empty() {
            let day = row::day_of_ms(RawRow::first(rest)?.recorded_at_ms);
            if self.open.as_ref().is_some_and(|file| file.day() != day) {
                self.seal(Roll::Day)?;
            }
            let first_offset = self.next_first();
            let file = match &mut self.open {
                Some(file) => file,
                none => {
                    let identity = FileIdentity {
                        topic: self.topic.clone(),
                        partition: self.partition,
                        first_offset,
                        day,
                        epoch: self.epoch,
                    };
                    none.insert(OpenFile::new(identity, self.limits.row_group_rows)?)
                }
            };
            let appended = file.append_day(rest)?;
            rest = &rest[appended.bytes..];
            if file.rows() >= self.limits.rows_max {
                self.seal(Roll::Rows)?;
            } else if file.bytes_written() as u64 >= self.limits.bytes_max {
                self.seal(Roll::Bytes)?;
            }
        }
        Ok(())
    }

    /// The first offset of the next file: where the one before it ends.
    fn next_first(&self) -> i64 {
        self.sealed.back().map_or(self.frontier, |(file, _)| file.next_offset)
    }

    /// Closes the open file; it is uploaded when its turn comes.
    pub fn seal(&mut self, roll: Roll) -> Result<(), FileError> {
        if let Some(file) = self.open.take() {
            self.sealed.push_back((file.seal()?, roll));
        }
        Ok(())
    }

    /// Seals the open file if it is due: too old, or of a day that gets no more rows.
    pub fn seal_if_due(&mut self, now_ms: i64, partition_day: i32) -> Result<(), FileError> {
        let Some(file) = &self.open else { return Ok(()) };
        if self.live && file.day() < partition_day {
            return self.seal(Roll::Day);
        }
        let opened = file.first_ingested_at_ms().unwrap_or(now_ms);
        // Behind, rows are old when they come; rolling by age would cut a file from every chunk.
        // A clock that went back must not hold a file for as long as it went back.
        if self.live && (now_ms - opened).abs() >= self.limits.age_ms_max {
            return self.seal(Roll::Age);
        }
        Ok(())
    }

    /// The file whose turn it is, if none is on its way.
    pub fn next_upload(&mut self) -> Option<(SealedFile, Roll)> {
        if self.uploading || self.halted.is_some() {
            return None;
        }
        let (file, roll) = self.sealed.front()?;
        self.uploading = true;
        Some((file.clone(), *roll))
    }

    /// An upload ended: the export frontier is at `next`.
    pub fn uploaded(&mut self, next: i64) {
        self.uploading = false;
        let Some((file, _)) = self.sealed.pop_front() else { return };
        if file.next_offset == next {
            self.frontier = next;
        } else {
            // An object of other extent was adopted: begin again after it.
            self.restart(next);
        }
    }

    /// Drops everything and begins again, behind, at an export frontier.
    fn restart(&mut self, frontier: i64) {
        self.frontier = frontier;
        self.end = frontier;
        self.sealed.clear();
        self.uploading = false;
        self.drop_unsealed();
    }

    fn drop_unsealed(&mut self) {
        self.open = None;
        self.reading = None;
        self.live = false;
    }

    /// Gives memory back: all but a file that is on its way is dropped and read again later.
    pub fn shed(&mut self) {
        self.sealed.truncate(usize::from(self.uploading));
        self.drop_unsealed();
        self.end = self.next_first();
    }
}
