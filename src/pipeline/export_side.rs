//! What follows a commit: files, catching up, memory, days.

use std::time::Duration;

use tokio::time::Instant;

use super::{Done, Ended, Pipeline, day_reached};
use crate::export::exporter::Roll;
use crate::export::file::FileError;
use crate::export::upload::Uploaded;
use crate::kafka::probe::Found;
use crate::partition::{AbortOnDrop, Partition, Wait};
use crate::postgres::ledger::Stop;
use crate::postgres::reread::{Range, Reread};
use crate::telemetry::metrics;

/// How often a partition that looks empty after midnight is probed. Longer closes its day later;
/// shorter is a client a second for nothing.
const PROBE_AGAIN: Duration = Duration::from_secs(3);
/// How often finished days are looked for when nothing hints at one.
const FINISH_AGAIN: Duration = Duration::from_secs(5);
/// How long the store has to be away before memory is rather given back than filled with sealed files.
const STORE_AWAY: Duration = Duration::from_secs(1);
/// Least time between two chunks that are read back while persisting has a backlog. Longer leaves the
/// export behind for longer; shorter takes more of Postgres from persisting.
const READ_YIELD: Duration = Duration::from_millis(500);

/// A file that takes less than a partition's share of the memory budget divided by this is not worth an object of
/// its own when memory is full. Larger makes small objects of what waits for a slow store; smaller drops and reads
/// back what could have been uploaded.
const ROLL_SHARE: usize = 4;

impl Pipeline {
    pub(super) fn on_exported(&mut self, done: Done) -> Result<(), Ended> {
        match done {
            Done::Read { partition, epoch, result } => {
                self.on_read(partition, epoch, result);
                Ok(())
            }
            Done::Uploaded { partition, epoch, ended } => {
                self.on_uploaded(partition, epoch, ended);
                self.start_uploads();
                Ok(())
            }
            Done::StoreIsAway(away) => {
                self.store_away_since = away.then(|| self.store_away_since.unwrap_or_else(Instant::now));
                Ok(())
            }
            Done::Probed { now_ms, at, empty } => {
                self.probing = false;
                self.clock = (now_ms, at);
                self.advance_days(now_ms, &empty);
                Ok(())
            }
            Done::Advanced { partition, epoch, day } => self.on_advanced(partition, epoch, day),
            Done::ClosedDays { partition, epoch, day } => {
                self.on_closed_days(partition, epoch, day);
                Ok(())
            }
            Done::DaysFinished { success_day } => {
                self.figures.success_day = success_day.or(self.figures.success_day);
                self.finishing = false;
                self.finished_at = Some(Instant::now());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn partition_of(&mut self, id: i32, epoch: i64) -> Option<&mut Partition> {
        self.partitions.get_mut(&id).filter(|p| p.epoch == epoch)
    }

    /// Seals what is due, keeps memory in its bounds, starts uploads and reading back.
    pub(super) fn look_after_exports(&mut self) {
        let now_ms = (self.outside.clock)();
        for partition in self.partitions.values_mut() {
            if let Err(error) = partition.exporter.seal_if_due(now_ms, partition.day) {
                halt(partition, &error);
            }
        }
        self.keep_memory();
        self.start_uploads();
        self.start_read();
    }

    /// One byte budget. From three quarters of it on the largest files roll, and at its end also those whose turn to be
    /// uploaded is not yet; what is still above it is dropped and read back later, be the store away or only slow.
    fn keep_memory(&mut self) {
        let budget = self.memory_budget();
        let away = self.store_away_since.is_some_and(|since| since.elapsed() > STORE_AWAY);
        // A sealed file is smaller, and goes when it is uploaded: it does not count for rolling others.
        while !away && self.memory_bytes() - self.sealed_bytes() > budget / 4 * 3 {
            let open = self.partitions.values_mut().filter(|p| !p.exporter.is_uploading());
            let Some(partition) = open.max_by_key(|p| p.exporter.open_bytes()) else { break };
            if partition.exporter.open_bytes() == 0 {
                break;
            }
            seal(partition);
            self.start_uploads();
        }
        let worth = budget / (ROLL_SHARE * self.partitions.len().max(1));
        while self.memory_bytes() > budget {
            let open = self.partitions.values_mut().max_by_key(|p| p.exporter.open_bytes());
            if let Some(partition) = open.filter(|p| !away && p.exporter.open_bytes() >= worth) {
                seal(partition);
                self.start_uploads();
                continue;
            }
            let largest = self.partitions.values_mut().max_by_key(|p| p.exporter.sheddable_bytes());
            let Some(partition) = largest.filter(|p| p.exporter.sheddable_bytes() > 0) else { return };
            partition.exporter.shed();
            metrics::export_shed();
        }
    }

    /// What batches and files may take together; the client's prefetch has its own part.
    pub(super) fn memory_budget(&self) -> usize {
        let queue = self.config.kafka.queued_kbytes_max << 10;
        self.config.export.memory_bytes_max.saturating_sub(queue) as usize
    }

    /// Batches and files.
    pub(super) fn memory_bytes(&self) -> usize {
        self.partitions.values().map(|p| p.batch_bytes() + p.exporter.memory_bytes()).sum()
    }

    fn sealed_bytes(&self) -> usize {
        self.partitions.values().map(|p| p.exporter.sealed_bytes()).sum()
    }

    pub(super) fn start_uploads(&mut self) {
        for partition in self.partitions.values_mut() {
            let Some((file, roll)) = partition.exporter.next_upload() else { continue };
            let uploader = self.uploader.clone();
            let (id, epoch) = (partition.id, partition.epoch);
            let task = self.tasks.start(async move {
                let ended = uploader.upload(file, roll).await;
                Done::Uploaded { partition: id, epoch, ended }
            });
            partition.upload = Some(AbortOnDrop(task));
        }
    }

    fn on_uploaded(&mut self, id: i32, epoch: i64, ended: Uploaded) {
        let Some(partition) = self.partition_of(id, epoch) else { return };
        match ended {
            Uploaded::Entered { next_offset } => partition.exporter.uploaded(next_offset),
            Uploaded::Fenced => self.lose(id),
            Uploaded::Conflict(why) => {
                metrics::export_conflict();
                tracing::error!(
                    partition = id,
                    why,
                    "bucket and table disagree: the export of this partition stops, persisting goes on"
                );
                partition.exporter.halt(why);
            }
            Uploaded::Restored(why) => self.stop(id, epoch, Stop::Restored, why),
        }
    }

    /// Starts reading one chunk back, if an export is behind and nothing speaks against it now.
    fn start_read(&mut self) {
        let settled = Duration::from_millis(self.config.export.settle_ms);
        let busy = !self.backlog.is_empty() && self.lanes.iter().all(|lane| lane.busy.is_some());
        let yields = busy && self.read_at.elapsed() < READ_YIELD;
        if self.reading.is_some()
            || self.settled_at.elapsed() < settled
            || (self.store_away_since.is_some()
                && self.partitions.values().any(|p| p.exporter.is_uploading()))
            || self.shutdown.is_some()
            || yields
        {
            return;
        }
        let rows_max = self.config.export.catch_up_rows;
        let crowded = self.memory_bytes() > self.memory_budget() / 2;
        let after = self.read_after;
        let ids: Vec<i32> = self.partitions.keys().copied().collect();
        let turns = ids.iter().filter(|id| **id > after).chain(ids.iter().filter(|id| **id <= after));
        for id in turns {
            let Some(partition) = self.partitions.get_mut(id) else { continue };
            // Rows that were dropped for want of memory would only be dropped again.
            if crowded && partition.exporter.is_uploading() {
                continue;
            }
            let Some((from, upto)) = partition.exporter.next_read(partition.frontier, rows_max) else {
                continue;
            };
            let range = Range {
                partition: *id,
                epoch: partition.epoch,
                from,
                upto,
                first_day: partition.closed_day + 1,
                rows_max,
            };
            self.reading = Some(*id);
            self.read_after = *id;
            self.read_at = Instant::now();
            let database = self.outside.database.clone();
            self.tasks.start(async move {
                let started = Instant::now();
                let read = tokio::time::timeout(Duration::from_secs(10), database.read(&range));
                let result = match read.await {
                    Ok(result) => result.map_err(|e| e.to_string()),
                    Err(_) => Err("no answer in time".to_owned()),
                };
                metrics::stage("reread", started.elapsed());
                Done::Read { partition: range.partition, epoch: range.epoch, result }
            });
            return;
        }
    }

    fn on_read(&mut self, id: i32, epoch: i64, result: Result<Reread, String>) {
        self.reading = None;
        let Some(partition) = self.partition_of(id, epoch) else { return };
        match result {
            Ok(Reread::Rows { tuples, rows, complete, export_frontier }) => {
                let frontier = partition.frontier;
                let read = partition.exporter.read(&tuples, complete, export_frontier, frontier);
                if let Err(error) = read {
                    halt(partition, &error);
                }
                metrics::rows_reread(rows);
                self.keep_memory();
                self.start_uploads();
                self.start_read();
            }
            Ok(Reread::Fenced) => self.lose(id),
            Err(why) => {
                partition.exporter.read_failed();
                metrics::retried("postgres");
                tracing::warn!(partition = id, why, "rows were not read back: trying again");
            }
        }
    }

    /// Closes partitions' days, moves days of partitions that are empty, finishes the topic's days.
    pub(super) fn look_after_days(&mut self) {
        self.close_partition_days();
        self.probe_empty();
        let due = self.finished_at.is_none_or(|at| at.elapsed() > FINISH_AGAIN);
        if due && !self.finishing && self.shutdown.is_none() {
            self.finishing = true;
            let finisher = self.finisher.clone();
            self.tasks.start(async move {
                let success_day = finisher.run().await.unwrap_or_else(|error| {
                    tracing::warn!(error = format!("{error:#}"), "days are not finished yet: trying again");
                    None
                });
                Done::DaysFinished { success_day }
            });
        }
        if self.asked_clock_at.elapsed() > Duration::from_secs(30) {
            self.asked_clock_at = Instant::now();
            let database = self.outside.database.clone();
            self.tasks.start(async move {
                let now_ms = database.now_ms().await.ok()?;
                Some(Done::Clock(now_ms, Instant::now()))
            });
        }
    }

    fn close_partition_days(&mut self) {
        for partition in self.partitions.values_mut() {
            let behind = partition.closed_day < partition.day - 1;
            if !behind || partition.closing || !partition.exporter.has_exported_before(partition.day) {
                continue;
            }
            partition.closing = true;
            let (id, epoch, reached) = (partition.id, partition.epoch, partition.day);
            let database = self.outside.database.clone();
            self.tasks.start(async move {
                let day = loop {
                    match database.close_partition(id, epoch, reached).await {
                        Ok(day) => break day,
                        Err(error) => {
                            tracing::warn!(partition = id, %error, "a day is not closed yet: trying again");
                        }
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                };
                Done::ClosedDays { partition: id, epoch, day }
            });
        }
    }

    /// No day: the ledger has another owner, which this worker may not have heard of in any other way. A takeover whose
    /// answer was lost, or that came late, belongs to nobody who lives; without records this is where it is noticed.
    fn on_closed_days(&mut self, id: i32, epoch: i64, day: Option<i32>) {
        let Some(partition) = self.partition_of(id, epoch) else { return };
        partition.closing = false;
        match day {
            Some(day) => partition.closed_day = day,
            None => self.lose(id),
        }
        self.finished_at = None;
    }

    /// Partitions without records after midnight: is there really nothing at their frontier?
    fn probe_empty(&mut self) {
        let today = day_reached(self.clock_ms(), self.config.day.close_delay_ms);
        if self.probing || self.shutdown.is_some() {
            return;
        }
        let mut wanted = Vec::new();
        for partition in self.partitions.values_mut() {
            let recent = partition.probed_at.is_some_and(|at| at.elapsed() < PROBE_AGAIN);
            if partition.day < today && partition.is_idle() && !partition.leaving && !recent {
                partition.probed_at = Some(Instant::now());
                wanted.push((partition.id, partition.epoch, partition.frontier));
            }
        }
        if wanted.is_empty() {
            return;
        }
        self.probing = true;
        let (database, broker) = (self.outside.database.clone(), self.outside.broker.clone());
        let (fallback_ms, asked_at) = (self.clock_ms(), Instant::now());
        self.tasks.start(async move {
            // The clock is read before the fetch is issued: what the fetch does not see is later.
            let Ok(now_ms) = database.now_ms().await else {
                return Done::Probed { now_ms: fallback_ms, at: asked_at, empty: Vec::new() };
            };
            let read_at = Instant::now();
            let at: Vec<(i32, i64)> = wanted.iter().map(|(p, _, frontier)| (*p, *frontier)).collect();
            let found = broker.read_at(&at).await.unwrap_or_default();
            let is_empty = |id: &i32| found.get(id) == Some(&Found::End);
            let empty = wanted.into_iter().filter(|(id, ..)| is_empty(id)).collect();
            Done::Probed { now_ms, at: read_at, empty }
        });
    }

    fn advance_days(&mut self, now_ms: i64, empty: &[(i32, i64, i64)]) {
        let to = day_reached(now_ms, self.config.day.close_delay_ms);
        for (id, epoch, frontier) in empty {
            let Some(partition) = self.partition_of(*id, *epoch) else { continue };
            if partition.frontier != *frontier || !partition.is_idle() || partition.day >= to {
                continue;
            }
            // What arrives meanwhile belongs to the day after, and waits for it.
            partition.wait = Some(Wait::Day);
            let from = partition.day;
            let (id, epoch, frontier) = (*id, *epoch, *frontier);
            let database = self.outside.database.clone();
            self.tasks.start(async move {
                let mut backoff =
                    crate::retry::Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
                let day = loop {
                    match database.advance((id, epoch, frontier), (from, to)).await {
                        Ok(true) => break Some(to),
                        // Mine from a try whose answer was lost, or another owner's: the ledger says.
                        Ok(false) => match database.reached(id, epoch).await {
                            Ok(day) => break day,
                            Err(error) => tracing::warn!(partition = id, %error, "the day is not known yet"),
                        },
                        Err(error) => tracing::warn!(partition = id, %error, "the day is not moved yet"),
                    }
                    backoff.wait().await;
                };
                Done::Advanced { partition: id, epoch, day }
            });
        }
    }

    fn on_advanced(&mut self, id: i32, epoch: i64, day: Option<i32>) -> Result<(), Ended> {
        let Some(partition) = self.partition_of(id, epoch) else { return Ok(()) };
        let Some(day) = day else {
            self.lose(id);
            return Ok(());
        };
        partition.reach(day);
        partition.wait = None;
        self.unpark(id)
    }

    /// SIGTERM: open files that are worth one go out; the others are read back by the next owner.
    pub(super) fn seal_for_shutdown(&mut self) {
        let worth = self.config.export.shutdown_rows_min;
        for partition in self.partitions.values_mut() {
            if partition.exporter.is_live()
                && partition.exporter.open_rows() >= worth
                && let Err(error) = partition.exporter.seal(Roll::Shutdown)
            {
                tracing::warn!(partition = partition.id, %error, "a file was not sealed at shutdown");
            }
        }
        self.start_uploads();
    }
}

/// Closes the open file to give memory back.
fn seal(partition: &mut Partition) {
    if let Err(error) = partition.exporter.seal(Roll::Memory) {
        halt(partition, &error);
    }
}

/// Rows that cannot be put into a file: the table holds what this worker did not write, or there is a
/// bug. The export of that partition stops; persisting goes on.
pub(super) fn halt(partition: &mut Partition, error: &FileError) {
    metrics::export_conflict();
    tracing::error!(partition = partition.id, %error, "rows cannot be exported: the export of this partition stops");
    partition.exporter.halt(error.to_string());
}
