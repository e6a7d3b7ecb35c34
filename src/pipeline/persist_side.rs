//! What comes back from the ledger, the lanes, the registry and the DLQ.

use std::time::Duration;

use tokio::time::Instant;

use super::{Done, Ended, Pipeline, Reply, Stopped, export_side};
use crate::event::{Reject, RejectReason};
use crate::export::exporter::Exporter;
use crate::kafka::dead_letters::DeadLetter;
use crate::kafka::rebalance::Candidate;
use crate::kafka::source::{Command, Start};
use crate::partition::{AbortOnDrop, Partition, Wait};
use crate::postgres::lane::{Job, JobResult, Outcome, PartitionBatch};
use crate::postgres::ledger::{Assigned, LedgerError, Stop};
use crate::retry::Backoff;
use crate::row;
use crate::telemetry::metrics;
use crate::telemetry::traces::{self, Range};

impl Pipeline {
    pub(super) fn on_done(&mut self, done: Done) -> Result<(), Ended> {
        match done {
            Done::Assigned { assignment, candidates, reply, result } => {
                return self.on_assigned(assignment, &candidates, reply, result);
            }
            Done::Persisted { lane, result } => {
                if let Some(lane) = self.lanes.get_mut(lane) {
                    lane.busy = None;
                }
                return self.on_persisted(result);
            }
            Done::Restored(found) => self.on_restored(found),
            Done::DeadLettered { partition, epoch, offset } => {
                return self.on_dead_lettered(partition, epoch, offset);
            }
            Done::Schema { id, answer } => return self.on_schema(id, answer),
            Done::Repaired { partition, epoch, batch } => self.on_repaired(partition, epoch, batch),
            Done::Released(partitions) => self.on_released(partitions),
            Done::StopWritten { partition, ours } => self.on_stop_written(partition, ours),
            Done::Clock(now_ms, at) => self.clock = (now_ms, at),
            Done::Measured(measured) => self.on_measured(measured),
            Done::LedgerReached => {
                self.ledger_reached = true;
                self.asking_ledger = false;
                self.tell_readiness();
            }
            Done::Listened { silent, found } => return self.on_listened(&silent, &found),
            Done::Anchored { asked, found } => self.on_anchored(&asked, &found),
            Done::Failed(why) => return Err(Ended::Fatal(why)),
            export => return self.on_exported(export),
        }
        Ok(())
    }

    fn on_assigned(
        &mut self,
        assignment: u64,
        candidates: &[Candidate],
        reply: Reply,
        result: Result<Assigned, LedgerError>,
    ) -> Result<(), Ended> {
        let assigned = match result {
            Ok(assigned) => assigned,
            Err(error @ LedgerError::Flood { .. }) => return Err(Ended::Flood(error.to_string())),
            Err(error @ (LedgerError::Foreign { .. } | LedgerError::Refused(_))) => {
                return Err(Ended::Ledger(error.to_string()));
            }
            // The callback's deadline is over too: nothing is taken, the group is joined again.
            Err(error @ (LedgerError::Sql(_) | LedgerError::World(_))) => {
                tracing::warn!(%error, "the partitions were not taken over");
                if matches!(reply, Reply::Restart) {
                    for candidate in candidates.iter().filter(|c| self.given.contains(&c.partition)) {
                        let why = "released, and not taken over yet".to_owned();
                        let stopped = Stopped { committed: candidate.committed, ..Stopped::new(why, true) };
                        self.stopped.insert(candidate.partition, stopped);
                    }
                } else if self.partitions.is_empty() {
                    self.ledger_reached = false;
                    self.tell_readiness();
                }
                return Ok(());
            }
        };
        let any_answered = assigned.away.len() < candidates.len();
        if any_answered {
            self.clock = (assigned.now_ms, Instant::now());
            self.ledger_reached = true;
        }
        let mut starts: Vec<(i32, Start)> = Vec::new();
        for (id, why) in assigned.stopped.iter().filter(|(id, _)| self.given.contains(id)) {
            tracing::error!(
                partition = id,
                why,
                "the partition is stopped until an operator decides: `feed-worker ledger show`"
            );
            self.stopped.insert(*id, Stopped::new(why.clone(), true));
            starts.push((*id, Start::Stopped));
        }
        for candidate in candidates.iter().filter(|c| self.given.contains(&c.partition)) {
            let Some(why) = assigned.away.get(&candidate.partition) else { continue };
            tracing::warn!(
                partition = candidate.partition,
                why,
                "its Postgres server is away: the partition begins when it is back"
            );
            let committed = candidate.committed;
            // As one that was released: it is asked about until its server answers.
            let waits = Stopped { away: true, committed, ..Stopped::new(why.clone(), true) };
            self.stopped.insert(candidate.partition, waits);
            starts.push((candidate.partition, Start::Stopped));
        }
        for owned in &assigned.owned {
            // Given to somebody else while an operator's release was being obeyed.
            if !self.given.contains(&owned.partition) {
                continue;
            }
            let Some(candidate) = candidates.iter().find(|c| c.partition == owned.partition) else {
                continue;
            };
            if candidate.committed != Some(owned.persist_frontier) {
                // Kafka is told at once: lag tools must not wait for the next record.
                self.source.send(Command::Commit(vec![(owned.partition, owned.persist_frontier)]));
            }
            if candidate.committed.is_some_and(|c| c != owned.persist_frontier) {
                metrics::commit_differed();
                tracing::info!(
                    partition = owned.partition,
                    committed = candidate.committed,
                    frontier = owned.persist_frontier,
                    "kafka's committed offset is not the ledger's frontier: the ledger's is taken"
                );
            }
            let exporter = Exporter::new(
                &self.config.kafka.topic,
                owned.partition,
                owned.epoch,
                owned.export_frontier,
                owned.persist_frontier,
                self.roll,
            );
            self.stopped.remove(&owned.partition);
            self.partitions.insert(owned.partition, Partition::new(owned, assignment, exporter));
            starts.push((owned.partition, Start::At(Partition::start(owned, candidate.low))));
        }
        tracing::info!(
            partitions = ?assigned.owned.iter().map(|o| o.partition).collect::<Vec<_>>(),
            stopped = assigned.stopped.len(),
            "partitions are assigned"
        );
        self.settled_at = Instant::now();
        self.anchors.assigned(&assigned);
        self.ask_bucket_later(assigned);
        self.give_starts(starts, reply);
        Ok(())
    }

    fn give_starts(&mut self, starts: Vec<(i32, Start)>, reply: Reply) {
        match reply {
            Reply::Callback(reply) => {
                let ids: Vec<i32> = starts.iter().map(|(id, _)| *id).collect();
                if reply.send(starts).is_err() {
                    // The callback gave up waiting: the group will be joined again.
                    ids.iter().for_each(|id| drop(self.partitions.remove(id)));
                    return;
                }
                self.set_joined(true);
            }
            Reply::Restart => {
                for (id, start) in starts {
                    if let Start::At(offset) = start {
                        self.source.send(Command::Restart(id, offset));
                    }
                }
            }
        }
    }

    /// Hands due batches to idle lanes.
    pub(super) fn flush(&mut self) {
        let age = Duration::from_millis(self.config.batch.age_ms_max);
        let rows_max = self.config.batch.rows_max as u64;
        let (placement, lanes) = (&self.placement, self.config.postgres.lanes);
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            if lane.busy.is_some() {
                continue;
            }
            let (mut rows, mut due, mut waited) = (0, false, Duration::ZERO);
            for partition in self.partitions.values() {
                if placement.lane_of(partition.id, lanes) != number || !partition.is_ready() {
                    continue;
                }
                rows += partition.open.rows + partition.open.rejects;
                waited = waited.max(partition.open_since.map_or(Duration::ZERO, |since| since.elapsed()));
                due |= partition.leaving
                    || partition.returned.is_some()
                    || partition.flood.is_some()
                    || partition.open_since.is_some_and(|since| since.elapsed() >= age);
            }
            if !due && rows < rows_max {
                continue;
            }
            let job: Job = self
                .partitions
                .values_mut()
                .filter(|p| placement.lane_of(p.id, lanes) == number && p.is_ready())
                .map(Partition::take_batch)
                .collect();
            if !job.is_empty() {
                metrics::stage("wait", waited);
                lane.busy = lane.jobs.send(job).is_ok().then(Instant::now);
            }
        }
    }

    fn on_persisted(&mut self, result: JobResult) -> Result<(), Ended> {
        let mut frontiers = Vec::new();
        let mut unpark = Vec::new();
        let (mut rows, mut oldest_ms) = (0, i64::MAX);
        let (now_ms, mut appended) = (self.clock_ms(), Duration::ZERO);
        let mut traced = Vec::new();
        for (batch, outcome) in result {
            let id = batch.partition;
            if matches!(outcome, Outcome::Committed) {
                self.anchors.persisted(&batch);
            }
            // A batch of an earlier epoch: whoever owns the partition now read what it left.
            let Some(partition) = self.partitions.get_mut(&id).filter(|p| p.epoch == batch.epoch) else {
                continue;
            };
            match outcome {
                Outcome::Committed => {
                    partition.in_flight = false;
                    if partition.wait == Some(Wait::Persist) {
                        partition.wait = None;
                        unpark.push(id);
                    }
                    partition.frontier = batch.next;
                    partition.day = batch.day;
                    frontiers.push((id, batch.next));
                    rows += batch.rows;
                    oldest_ms = oldest_ms.min(batch.oldest_ms);
                    let age_ms = (now_ms - batch.oldest_ms).max(0) as f64;
                    metrics::partition_committed(batch.rows, batch.rejects, age_ms);
                    if traces::is_on() {
                        traced.push(Range::of(&batch));
                    }
                    let appending = Instant::now();
                    if let Err(error) = partition.exporter.committed(&batch.tuples, batch.next) {
                        export_side::halt(partition, &error);
                    }
                    appended += appending.elapsed();
                }
                Outcome::Fenced => self.lose(id),
                Outcome::Disagrees => {
                    let detail = format!(
                        "rows of offsets {}..{} are in the table, but the ledger's frontier is {}",
                        batch.first, batch.next, batch.first
                    );
                    let epoch = batch.epoch;
                    self.stop(id, epoch, Stop::Disagrees, detail);
                }
                Outcome::Refused { offset, sqlstate } => self.repair(batch, offset, sqlstate),
            }
        }
        if !frontiers.is_empty() {
            metrics::batch_committed(rows, (now_ms - oldest_ms).max(0) as f64);
            metrics::stage("append", appended);
            traces::batch(&traced, appended);
            self.source.send(Command::Commit(frontiers));
        }
        unpark.into_iter().try_for_each(|id| self.unpark(id))
    }

    /// Another owner has the partition: forget it. The group will say so too.
    pub(super) fn lose(&mut self, id: i32) {
        if self.partitions.remove(&id).is_some() {
            tracing::warn!(partition = id, "another owner has the partition: nothing of it was written");
            self.fenced.insert(id, Instant::now());
            self.source.send(Command::Hold(id, true));
        }
    }

    /// Postgres refuses a row: its record is read again, dead-lettered, and the rest is written.
    fn repair(&mut self, batch: PartitionBatch, offset: i64, sqlstate: String) {
        let (broker, letters) = (self.outside.broker.clone(), self.outside.dead_letters.clone());
        let (partition, epoch) = (batch.partition, batch.epoch);
        metrics::rejected(RejectReason::RefusedByPostgres.as_str(), 1);
        let task = self.tasks.start(async move {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
            let chunk = loop {
                match broker.record_at(partition, offset).await {
                    Ok(chunk) => break chunk,
                    Err(error) => {
                        tracing::warn!(partition, offset, %error, "a refused record is not read yet");
                    }
                }
                backoff.wait().await;
            };
            let letter = chunk.as_ref().and_then(|chunk| {
                let reject =
                    Reject::new(RejectReason::RefusedByPostgres).detail(format!("SQLSTATE {sqlstate}"));
                chunk.records.first().map(|record| DeadLetter::new(chunk, record, reject))
            });
            let Some(letter) = letter else {
                return Done::Repaired { partition, epoch, batch: None };
            };
            let batch = Some(without(batch, offset));
            match letters.send(letter).await {
                Ok(()) => Done::Repaired { partition, epoch, batch },
                Err(error) => Done::Failed(format!("the producer of dead letters: {error:#}")),
            }
        });
        let task = AbortOnDrop(task);
        if let Some(partition) = self.partitions.get_mut(&partition) {
            partition.repair = Some(task);
        }
    }

    fn on_repaired(&mut self, id: i32, epoch: i64, batch: Option<PartitionBatch>) {
        let Some(partition) = self.partitions.get_mut(&id).filter(|p| p.epoch == epoch) else {
            return;
        };
        partition.repair = None;
        match batch {
            Some(batch) => {
                partition.in_flight = false;
                partition.returned = Some(batch);
            }
            None => {
                let detail = "postgres refuses a record that the broker no longer has".to_owned();
                self.stop(id, epoch, Stop::Refused, detail);
            }
        }
    }

    fn on_dead_lettered(&mut self, id: i32, epoch: i64, offset: i64) -> Result<(), Ended> {
        let Some(partition) = self.partitions.get_mut(&id).filter(|p| p.epoch == epoch) else {
            return Ok(());
        };
        partition.letters.acknowledged(offset);
        if partition.letters.is_empty() && partition.wait == Some(Wait::DeadLetters) {
            partition.wait = None;
            return self.unpark(id);
        }
        Ok(())
    }
}

/// The batch without one of its rows, which counts as rejected instead.
fn without(mut batch: PartitionBatch, offset: i64) -> PartitionBatch {
    let tuples = std::mem::take(&mut batch.tuples);
    for tuple in row::Rows::new(&tuples).flatten() {
        if tuple.offset() != offset {
            batch.tuples.extend_from_slice(tuple.bytes());
        }
    }
    batch.rows = batch.rows.saturating_sub(1);
    batch.rejects += 1;
    batch
}
