//! Partitions that cannot go on: begun again, stopped until an operator decides, and released.
//!
//! 1. A partition stops only when everything that was taken of it is written; at once if that may be wrong.
//! 2. A stop is asked about only once it stands in the ledger: until then its absence there says nothing.
//! 3. What becomes of a partition that was given away meanwhile is not this worker's matter.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Done, Pipeline, Reply, Stopped};
use crate::kafka::rebalance::Candidate;
use crate::kafka::source::Command;
use crate::partition::Partition;
use crate::postgres::ledger::Stop;
use crate::retry::Backoff;
use crate::telemetry::metrics;

/// How long the group may take to say that a partition is another's, after the ledger said so. A worker
/// that was stopped hears it within a heartbeat; longer leaves a partition without any owner.
const FENCED_PATIENCE: Duration = Duration::from_secs(5);
/// How often something unreadable is fetched again before an operator has to decide. More repeats what
/// did not help; fewer pages for one bad transfer.
const UNREADABLE_MAX: u32 = 3;

impl Pipeline {
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
        self.anchors.stopped(id);
        self.source.send(Command::Hold(id, true));
        // One that is being given away is the next owner's to look after.
        if self.given.contains(&id) {
            let why = format!("{}: {detail}", stop.as_str());
            self.stopped.insert(id, Stopped::new(why, false));
        }
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

    pub(super) fn on_stop_written(&mut self, id: i32, ours: bool) {
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
        self.fetch_again(id);
    }

    /// Fetches a partition again from the offset that comes next.
    fn fetch_again(&mut self, id: i32) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        // Nothing is taken until the poll thread says that it begins again.
        partition.assignment = u64::MAX;
        self.source.send(Command::Restart(id, partition.expected()));
    }

    /// The broker lacks what comes next: the partition stops once what was read before is written.
    pub(super) fn stop_out_of_range(&mut self, id: i32, next: i64, low: i64, high: i64) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        let expected = partition.expected();
        // The record before the frontier was to be compared, and the broker has it no more.
        let is_check = partition.awaits_check() && next == expected - 1;
        if next < expected && !is_check {
            return; // of an earlier assignment
        }
        if is_check && low == expected {
            tracing::info!(
                partition = id,
                offset = next,
                "the record before the frontier is gone: not compared"
            );
            partition.give_check_up();
            self.fetch_again(id);
            return;
        }
        let next = next.max(expected);
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

    /// Looks after what waits for somebody else: operators, the group, the registry.
    pub(super) fn look_after_partitions(&mut self) {
        self.look_after_schemas();
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
    pub(super) fn on_released(&mut self, partitions: Vec<i32>) {
        let committed: BTreeMap<i32, Option<i64>> = partitions
            .into_iter()
            .filter_map(|p| self.stopped.remove(&p).map(|stopped| (p, stopped.committed)))
            .collect();
        let partitions: Vec<i32> = committed.keys().copied().collect();
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
                    committed: committed.get(&partition).copied().flatten(),
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
