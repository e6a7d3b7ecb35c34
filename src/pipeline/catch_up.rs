//! Catching up: rows that an export lacks, read back from the table a chunk at a time.
//!
//! 1. One chunk at a time is on its way from each server; its partitions take turns.
//! 2. A chunk is bounded in rows and in bytes, and is read only while memory has room for it: what was read is
//!    not dropped for want of room, only to be read again.

use std::time::Duration;

use tokio::time::Instant;

use super::{Done, Pipeline, export_side};
use crate::postgres::reread::{Range, Reread};
use crate::telemetry::metrics;

/// Least time between two chunks that are read back while persisting has a backlog. Longer leaves the
/// export behind for longer; shorter takes more of Postgres from persisting.
const READ_YIELD: Duration = Duration::from_millis(500);
/// The memory budget divided by this is what a chunk is meant to take; reading ends at twice as much. Larger reads
/// large rows in smaller chunks than it need; smaller keeps less room for files.
const CHUNK_SHARE: usize = 8;
/// Rows of the first chunk, read when nobody knows yet how large rows are. More may be cut off at the limit of bytes,
/// which costs a connection; fewer is a short statement for nothing.
const FIRST_CHUNK_ROWS: u64 = 1_000;

/// Where reading back from one server stands.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    /// The partition whose chunk is on its way.
    of: Option<i32>,
    /// Whose turn was last.
    after: i32,
    at: Instant,
}

impl Reading {
    pub(super) fn new(now: Instant) -> Self {
        Reading { of: None, after: -1, at: now }
    }
}

impl Pipeline {
    /// Starts reading one chunk back from each server, if an export is behind and nothing speaks against it now.
    pub(super) fn start_read(&mut self) {
        for server in 0..self.reading.len() {
            self.start_read_from(server);
        }
    }

    fn start_read_from(&mut self, server: usize) {
        if self.reading_waits(server) {
            return;
        }
        let (rows_max, bytes_max) = (self.chunk_rows(), 2 * self.chunk_bytes());
        let crowded = self.memory_bytes() > self.memory_budget() / 2;
        let after = self.reading[server].after;
        let placement = &self.placement;
        let ids: Vec<i32> =
            self.partitions.keys().copied().filter(|id| placement.server_of(*id) == server).collect();
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
                bytes_max,
            };
            self.reading[server] = Reading { of: Some(*id), after: *id, at: Instant::now() };
            let database = self.outside.database.clone();
            self.tasks.start(async move {
                let started = Instant::now();
                let result = database.read(&range).await.map_err(|error| error.to_string());
                metrics::stage("reread", started.elapsed());
                Done::Read { partition: range.partition, epoch: range.epoch, result }
            });
            return;
        }
    }

    fn reading_waits(&self, server: usize) -> bool {
        let settled = Duration::from_millis(self.config.export.settle_ms);
        let lanes = self.config.postgres.lanes;
        let mut lanes = self.lanes.iter().skip(server * lanes).take(lanes);
        let busy = !self.backlog.is_empty() && lanes.all(|lane| lane.busy.is_some());
        let reading = &self.reading[server];
        let yields = busy && reading.at.elapsed() < READ_YIELD;
        let chunks = 1 + self.reading.iter().filter(|reading| reading.of.is_some()).count();
        let uploading = self.partitions.values().any(|p| p.exporter.is_uploading());
        reading.of.is_some()
            || self.settled_at.elapsed() < settled
            || (self.store_away_since.is_some() && uploading)
            || self.shutdown.is_some()
            || yields
            || self.memory_bytes() + chunks * self.chunk_bytes() > self.memory_budget()
    }

    /// What a chunk is meant to take.
    fn chunk_bytes(&self) -> usize {
        self.memory_budget() / CHUNK_SHARE
    }

    /// As many rows as that is, by what the last chunk's rows took.
    fn chunk_rows(&self) -> u64 {
        let most = self.config.export.catch_up_rows;
        match self.read_row_bytes {
            0 => most.min(FIRST_CHUNK_ROWS),
            bytes => most.min((self.chunk_bytes() / bytes).max(1) as u64),
        }
    }

    pub(super) fn on_read(&mut self, id: i32, epoch: i64, result: Result<Reread, String>) {
        self.reading[self.placement.server_of(id)].of = None;
        if let Ok(Reread::Rows { tuples, rows: rows @ 1.., .. }) = &result {
            self.read_row_bytes = tuples.len() / *rows as usize;
        }
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
