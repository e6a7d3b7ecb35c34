//! Catching up: rows that an export lacks, read back from the table a chunk at a time.
//!
//! One chunk at a time is on its way; partitions take turns.

use std::time::Duration;

use tokio::time::Instant;

use super::{Done, Pipeline, export_side};
use crate::postgres::reread::{Range, Reread};
use crate::telemetry::metrics;

/// Least time between two chunks that are read back while persisting has a backlog. Longer leaves the
/// export behind for longer; shorter takes more of Postgres from persisting.
const READ_YIELD: Duration = Duration::from_millis(500);

impl Pipeline {
    /// Starts reading one chunk back, if an export is behind and nothing speaks against it now.
    pub(super) fn start_read(&mut self) {
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

    pub(super) fn on_read(&mut self, id: i32, epoch: i64, result: Result<Reread, String>) {
        self.reading = None;
        let Some(partition) = self.partition_of(id, epoch) else { return };
        match result {
            Ok(Reread::Rows { tuples, rows, complete, export_frontier }) => {
                let frontier = partition.frontier;
                let read = partition.exporter.read(&tuples, complete, export_frontier, frontier);
                if let Err(error) = read {
                    export_side::halt(partition, &error);
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
}
