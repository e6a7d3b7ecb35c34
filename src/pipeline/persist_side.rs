//! What comes back from the ledger, the lanes, the registry and the DLQ.

use std::time::Duration;

use tokio::time::Instant;

use super::{Done, Ended, Pipeline, Reply, Stopped, export_side};
use crate::event::{Reject, RejectReason};
use crate::export::exporter::Exporter;
use crate::kafka::dead_letters::DeadLetter;
use crate::kafka::rebalance::Candidate;
use crate::kafka::source::{Command, Start};
use crate::partition::{Partition, Wait};
use crate::postgres::lane::{Job, JobResult, Outcome, PartitionBatch};
use crate::postgres::ledger::{Assigned, LedgerError, Stop};
use crate::registry::Answer;
use crate::retry::Backoff;
use crate::row;
use crate::telemetry::metrics;

/// How long "there is no such schema" is believed. Longer keeps rejecting events of a schema that was
/// registered late; shorter asks the registry about every bad id again and again.
const MISSING_FOR: Duration = Duration::from_secs(60);
/// How long the group may take to say that a partition is another's, after the ledger said so. A worker
/// that was stopped hears it within a heartbeat; longer leaves a partition without any owner.
const FENCED_PATIENCE: Duration = Duration::from_secs(5);
/// How often something unreadable is fetched again before an operator has to decide. More repeats what
/// did not help; fewer pages for one bad transfer.
const UNREADABLE_MAX: u32 = 3;
/// How many ids are remembered that the registry did not have. More is memory for ids that are noise; an id
/// beyond them holds up its partition each time as if it were new.
const WAS_MISSING_MAX: usize = 10_000;

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
            Done::DeadLettered { partition, epoch } => return self.on_dead_lettered(partition, epoch),
            Done::Schema { id, answer } => return self.on_schema(id, answer),
            Done::Repaired { partition, epoch, batch } => self.on_repaired(partition, epoch, batch),
            Done::Released(partitions) => self.on_released(partitions),
            Done::StopWritten { partition, ours } => self.on_stop_written(partition, ours),
            Done::Clock(now_ms, at) => self.clock = (now_ms, at),
            Done::Measured(measured) => self.on_measured(measured),
            Done::Listened { silent, found } => return self.on_listened(&silent, &found),
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
            Err(error @ LedgerError::Foreign { .. }) => return Err(Ended::Ledger(error.to_string())),
            // The callback's deadline is over too: nothing is taken, the group is joined again.
            Err(error @ (LedgerError::Sql(_) | LedgerError::World(_))) => {
                tracing::warn!(%error, "the partitions were not taken over");
                if matches!(reply, Reply::Restart) {
                    for candidate in candidates {
                        let why = "released, and not taken over yet".to_owned();
                        self.stopped.insert(candidate.partition, Stopped { why, written: true });
                    }
                }
                return Ok(());
            }
        };
        self.clock = (assigned.now_ms, Instant::now());
        let mut starts: Vec<(i32, Start)> = Vec::new();
        for (id, why) in &assigned.stopped {
            tracing::error!(
                partition = id,
                why,
                "the partition is stopped until an operator decides: `feed-worker ledger show`"
            );
            self.stopped.insert(*id, Stopped { why: why.clone(), written: true });
            starts.push((*id, Start::Stopped));
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
        let lanes = self.lanes.len();
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            if lane.busy.is_some() {
                continue;
            }
            let (mut rows, mut due, mut waited) = (0, false, Duration::ZERO);
            for partition in self.partitions.values() {
                if partition.id as usize % lanes != number || !partition.is_ready() {
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
                .filter(|p| p.id as usize % lanes == number && p.is_ready())
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
        for (batch, outcome) in result {
            let id = batch.partition;
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

    /// Stops a partition until an operator decides.
    pub(super) fn stop(&mut self, id: i32, epoch: i64, stop: Stop, detail: String) {
        tracing::error!(
            partition = id,
            reason = stop.as_str(),
            detail,
            "the partition is stopped until an operator decides: `feed-worker ledger show`"
        );
        metrics::partition_stopped(stop.as_str());
        self.partitions.remove(&id);
        self.source.send(Command::Hold(id, true));
        let why = format!("{}: {detail}", stop.as_str());
        self.stopped.insert(id, Stopped { why, written: false });
        let database = self.outside.database.clone();
        self.tasks.start(async move {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
            let ours = loop {
                match database.stop(id, epoch, stop, &detail).await {
                    Ok(ours) => break ours,
                    Err(error) => tracing::warn!(partition = id, %error, "the stop is not written down yet"),
                }
                backoff.wait().await;
            };
            Done::StopWritten { partition: id, ours }
        });
    }

    fn on_stop_written(&mut self, id: i32, ours: bool) {
        if ours {
            if let Some(stopped) = self.stopped.get_mut(&id) {
                stopped.written = true;
            }
        } else if self.stopped.remove(&id).is_some() {
            // Whoever owns it now will find out for itself.
            self.fenced.insert(id, Instant::now());
        }
    }

    /// Fetches again what was jumped over after something could not be read; in the end it is for an
    /// operator to decide.
    pub(super) fn begin_again(&mut self, id: i32) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        partition.unreadable += 1;
        partition.suspect = false;
        let expected = partition.expected();
        if partition.unreadable > UNREADABLE_MAX {
            let detail = format!("what stands at offset {expected} was fetched and cannot be read");
            partition.stopping = Some((Stop::Unreadable, detail));
            partition.leaving = true;
            return;
        }
        // Nothing is taken until the poll thread says that it begins again.
        partition.assignment = u64::MAX;
        self.source.send(Command::Restart(id, expected));
    }

    /// The broker lacks what comes next: the partition stops once what was read before is written.
    pub(super) fn stop_out_of_range(&mut self, id: i32, next: i64, low: i64, high: i64) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        if next < partition.expected() {
            return; // of an earlier assignment
        }
        if !partition.parked.is_empty() {
            partition.out_of_range = Some((next, low, high));
            return;
        }
        partition.leaving = true;
        partition.stopping = Some(if low > next {
            (Stop::Gap, format!("offsets {next}..{low} were not read and are gone from the broker"))
        } else {
            (Stop::Ahead, format!("the next offset is {next}, but the partition ends at {high}"))
        });
    }

    /// Stops partitions that were only waiting for their last batch.
    fn stop_what_is_written(&mut self) {
        let overtaken = |p: &mut Partition| {
            let (next, low, high) = p.out_of_range.take_if(|_| p.parked.is_empty())?;
            Some((p.id, next, low, high))
        };
        let overtaken: Vec<_> = self.partitions.values_mut().filter_map(overtaken).collect();
        for (id, next, low, high) in overtaken {
            self.stop_out_of_range(id, next, low, high);
        }
        let due = |p: &&mut Partition| p.stopping.is_some() && p.is_written();
        let stopping: Vec<_> = self
            .partitions
            .values_mut()
            .filter(due)
            .filter_map(|p| p.stopping.take().map(|(stop, detail)| (p.id, p.epoch, stop, detail)))
            .collect();
        for (id, epoch, stop, detail) in stopping {
            self.stop(id, epoch, stop, detail);
        }
    }

    /// Postgres refuses a row: its record is read again, dead-lettered, and the rest is written.
    fn repair(&mut self, batch: PartitionBatch, offset: i64, sqlstate: String) {
        let (broker, letters) = (self.outside.broker.clone(), self.outside.dead_letters.clone());
        let (partition, epoch) = (batch.partition, batch.epoch);
        metrics::rejected(RejectReason::RefusedByPostgres.as_str(), 1);
        if let Some(partition) = self.partitions.get_mut(&partition) {
            partition.repairing = true;
        }
        self.tasks.start(async move {
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
    }

    fn on_repaired(&mut self, id: i32, epoch: i64, batch: Option<PartitionBatch>) {
        let Some(partition) = self.partitions.get_mut(&id).filter(|p| p.epoch == epoch) else {
            return;
        };
        partition.repairing = false;
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

    fn on_dead_lettered(&mut self, id: i32, epoch: i64) -> Result<(), Ended> {
        let Some(partition) = self.partitions.get_mut(&id).filter(|p| p.epoch == epoch) else {
            return Ok(());
        };
        partition.unacknowledged = partition.unacknowledged.saturating_sub(1);
        if partition.unacknowledged == 0 && partition.wait == Some(Wait::DeadLetters) {
            partition.wait = None;
            return self.unpark(id);
        }
        Ok(())
    }

    fn on_schema(&mut self, id: u32, answer: Answer) -> Result<(), Ended> {
        self.looking_up.remove(&id);
        match answer {
            Answer::Schema(text) => match self.decoder.add_schema(id, &text) {
                Ok(()) => tracing::info!(schema_id = id, "a writer schema is known"),
                Err(error) => tracing::error!(
                    schema_id = id,
                    %error,
                    "a writer schema cannot be honoured: its events are dead-lettered"
                ),
            },
            Answer::Missing => {
                self.decoder.add_missing(id);
                self.missing.insert(id, Instant::now());
                if self.was_missing.len() < WAS_MISSING_MAX && self.was_missing.insert(id) {
                    tracing::error!(
                        schema_id = id,
                        "the registry has no such schema: its events are dead-lettered"
                    );
                }
            }
        }
        let waiting: Vec<i32> = self
            .partitions
            .values_mut()
            .filter(|p| p.wait == Some(Wait::Schema(id)))
            .map(|p| {
                p.wait = None;
                p.id
            })
            .collect();
        waiting.into_iter().try_for_each(|id| self.unpark(id))
    }

    /// Looks after what waits for somebody else: operators, the group, the registry.
    pub(super) fn look_after_partitions(&mut self) {
        let missing = std::mem::take(&mut self.missing);
        for (id, since) in missing {
            if since.elapsed() < MISSING_FOR {
                self.missing.insert(id, since);
            } else {
                self.decoder.forget(id);
            }
        }
        self.stop_what_is_written();
        if self.fenced.values().any(|since| since.elapsed() > FENCED_PATIENCE) {
            tracing::warn!("a lost partition was not taken back by the group: joining it again");
            self.fenced.clear();
            self.source.send(Command::Rejoin(Duration::from_secs(1)));
        }
        let ids: Vec<i32> = self.stopped.iter().filter(|(_, s)| s.written).map(|(id, _)| *id).collect();
        if !ids.is_empty() && self.asked_released_at.elapsed() > Duration::from_secs(2) {
            self.asked_released_at = Instant::now();
            let database = self.outside.database.clone();
            self.tasks.start(async move {
                let released = database.released(&ids).await.unwrap_or_default();
                (!released.is_empty()).then_some(Done::Released(released))
            });
        }
    }

    /// An operator decided: the partitions are taken over again, and begin anew.
    fn on_released(&mut self, partitions: Vec<i32>) {
        let partitions: Vec<i32> =
            partitions.into_iter().filter(|p| self.stopped.remove(p).is_some()).collect();
        if partitions.is_empty() || self.shutdown.is_some() {
            return;
        }
        let (assigner, broker) = (self.assigner.clone(), self.outside.broker.clone());
        let deadline = Duration::from_millis(self.config.kafka.assign_deadline_ms);
        self.tasks.start(async move {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
            let bounds = loop {
                match broker.bounds(&partitions).await {
                    Ok(bounds) => break bounds,
                    Err(error) => tracing::warn!(%error, "cannot ask for the offsets"),
                }
                backoff.wait().await;
            };
            let candidates: Vec<Candidate> = bounds
                .into_iter()
                .map(|(partition, low, high)| Candidate {
                    partition,
                    low,
                    high,
                    committed: None,
                    is_short: false,
                })
                .collect();
            let until = Instant::now() + deadline;
            let result = assigner.assign(&candidates, until).await;
            let reply = Reply::Restart;
            // Nothing is taken until the poll thread says that it begins again.
            Done::Assigned { assignment: u64::MAX, candidates, reply, result }
        });
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
