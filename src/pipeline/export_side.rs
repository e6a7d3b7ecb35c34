//! What follows a commit: files and days.

use std::time::Duration;

use tokio::time::Instant;

use super::{Done, Ended, Pipeline, day_reached};
use crate::export::exporter::Roll;
use crate::export::file::FileError;
use crate::export::upload::Uploaded;
use crate::kafka::probe::Found;
use crate::partition::{AbortOnDrop, Partition, Wait};
use crate::postgres::ledger::Stop;
use crate::telemetry::metrics;

/// How often a partition that looks empty after midnight is probed. Longer closes its day later;
/// shorter is a client a second for nothing.
const PROBE_AGAIN: Duration = Duration::from_secs(3);
/// How often finished days are looked for when nothing hints at one.
const FINISH_AGAIN: Duration = Duration::from_secs(5);
/// Files that are uploaded at once at shutdown. More are sealed beside the memory that the open ones still take, and
/// sealing holds up everything else; fewer leaves the line to the store idle.
const SHUTDOWN_UPLOADS: usize = 2;

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

    pub(super) fn partition_of(&mut self, id: i32, epoch: i64) -> Option<&mut Partition> {
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

    /// Closes partitions' days, moves days of partitions that are empty, finishes the topic's days.
    pub(super) fn look_after_days(&mut self) {
        self.close_partition_days();
        self.probe_empty();
        let due = self.finished_at.is_none_or(|at| at.elapsed() > FINISH_AGAIN);
        if due && !self.finishing && self.shutdown.is_none() {
            self.finishing = true;
            let finisher = self.finisher.clone();
            self.tasks.start(async move {
                let (success_day, result) = finisher.run().await;
                if let Err(error) = result {
                    tracing::warn!(error = format!("{error:#}"), "days are not finished yet: trying again");
                }
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

    /// SIGTERM: open files that are worth one go out, the largest first; the others are read back by the next owner.
    /// A partition's file has all its rows once what was taken of it is written: whoever still waits for a Postgres server
    /// that is away keeps nobody else's. Returns whether there are some whose turn has not come.
    pub(super) fn seal_for_shutdown(&mut self) -> bool {
        let worth = self.config.export.shutdown_rows_min.max(1);
        loop {
            let uploading = self.partitions.values().filter(|p| p.exporter.is_uploading()).count();
            let open = self.partitions.values_mut().filter(|p| p.is_written() && p.exporter.is_live());
            let largest = open.max_by_key(|p| p.exporter.open_rows());
            let Some(partition) = largest.filter(|p| p.exporter.open_rows() >= worth) else { return false };
            if uploading >= SHUTDOWN_UPLOADS {
                return true;
            }
            if let Err(error) = partition.exporter.seal(Roll::Shutdown) {
                tracing::warn!(partition = partition.id, %error, "a file was not sealed at shutdown");
            }
            self.start_uploads();
        }
    }
}

/// Rows that cannot be put into a file: the table holds what this worker did not write, or there is a
/// bug. The export of that partition stops; persisting goes on.
pub(super) fn halt(partition: &mut Partition, error: &FileError) {
    metrics::export_conflict();
    tracing::error!(partition = partition.id, %error, "rows cannot be exported: the export of this partition stops");
    partition.exporter.halt(error.to_string());
}
