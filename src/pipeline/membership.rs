//! Partitions that come and go: assignments, revocations, and the end.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::{Done, Incoming, Leaving, Pipeline, Reply, Shutdown};
use crate::failpoint::failpoint;
use crate::kafka::rebalance::Candidate;
use crate::kafka::source::{Command, SourceEvent, Start};
use crate::partition::{AbortOnDrop, Partition};
use crate::postgres::ledger::{Assigned, Stop};
use crate::retry::Backoff;

/// How long clients may take to close, twice. Longer delays the end of a worker whose client hangs; shorter leaves
/// the group without a word, and its session has to run out.
const CLOSE_MAX: Duration = Duration::from_secs(5);

impl Pipeline {
    /// Starts taking partitions over; the answer comes back as [`Done::Assigned`].
    pub(super) fn assign(
        &mut self,
        assignment: u64,
        candidates: Vec<Candidate>,
        until: Instant,
        reply: Reply,
    ) {
        if self.shutdown.is_some() {
            let all = candidates.iter().map(|c| (c.partition, Start::Stopped)).collect();
            if let Reply::Callback(reply) = reply {
                let _ = reply.send(all);
            }
            return;
        }
        for candidate in &candidates {
            self.partitions.remove(&candidate.partition);
            self.fenced.remove(&candidate.partition);
        }
        let assigner = self.assigner.clone();
        self.tasks.start(async move {
            let result = assigner.assign(&candidates, until).await;
            Done::Assigned { assignment, candidates, reply, result }
        });
    }

    /// The group was joined, or everything that it gave was lost.
    pub(super) fn set_joined(&mut self, joined: bool) {
        self.joined = joined;
        self.tell_readiness();
        if !joined || self.ledger_reached || self.asking_ledger {
            return;
        }
        // The group has nothing for this worker now, so that no takeover shows whether it could take part.
        self.asking_ledger = true;
        let database = self.outside.database.clone();
        self.tasks.start(async move {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
            while let Err(error) = database.topic_known().await {
                tracing::warn!(%error, "joined, and the ledger is not reached yet");
                backoff.wait().await;
            }
            Done::LedgerReached
        });
    }

    /// Ready is who takes part: has joined the group and not lost everything that it had, and has reached the ledger.
    pub(super) fn tell_readiness(&self) {
        self.outside.health.set_ready(self.joined && self.ledger_reached && self.shutdown.is_none());
    }

    /// The bucket was away when these partitions were taken over: it is asked when it is back.
    pub(super) fn ask_bucket_later(&mut self, assigned: Assigned) {
        let (partitions, before) = (&self.partitions, assigned.before);
        let is_mine = |id: &i32, epoch: &i64| partitions.get(id).is_some_and(|p| p.epoch == *epoch);
        // Nobody needs the answer about partitions that are another's by now.
        self.asking_bucket.retain(|(epochs, _)| epochs.iter().any(|(id, epoch)| is_mine(id, epoch)));
        if assigned.is_bucket_asked || before.is_empty() {
            return;
        }
        let epochs: BTreeMap<i32, i64> = assigned.owned.iter().map(|o| (o.partition, o.epoch)).collect();
        let (assigner, asked) = (self.assigner.clone(), epochs.clone());
        let task = self.tasks.start(async move {
            let found = assigner.restored_before(&before, &asked).await;
            let found = found.into_iter().filter_map(|(id, why)| Some((id, *asked.get(&id)?, why)));
            Done::Restored(found.collect())
        });
        self.asking_bucket.push((epochs, AbortOnDrop(task)));
    }

    /// Nobody may go on where the bucket knows better; what was persisted meanwhile is for the operator to see.
    pub(super) fn on_restored(&mut self, found: Vec<(i32, i64, String)>) {
        for (id, epoch, why) in found {
            if self.partitions.get(&id).is_some_and(|partition| partition.epoch == epoch) {
                self.stop(id, epoch, Stop::Restored, why);
            }
        }
    }

    pub(super) fn revoke(&mut self, partitions: Vec<i32>, lost: bool, reply: Sender<Vec<(i32, i64)>>) {
        for id in &partitions {
            self.given.remove(id);
            self.stopped.remove(id);
            self.fenced.remove(id);
            if lost {
                self.partitions.remove(id);
            } else if let Some(partition) = self.partitions.get_mut(id) {
                partition.leaving = true;
                partition.parked.clear();
                partition.wait = None;
            }
        }
        if lost && self.given.is_empty() {
            self.set_joined(false);
        }
        let until = Instant::now() + Duration::from_millis(self.config.kafka.revoke_deadline_ms) * 3 / 4;
        self.leaving.push(Leaving { partitions, reply, until });
    }

    /// Lets partitions go whose open batch is written, or whose time is over.
    pub(super) fn let_go(&mut self) {
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain(|group| {
            let written = group
                .partitions
                .iter()
                .all(|id| self.partitions.get(id).is_none_or(|p| !p.leaving || p.is_written()));
            if !written && Instant::now() < group.until {
                return true;
            }
            let mut frontiers = Vec::new();
            for id in &group.partitions {
                // It may have been taken over anew meanwhile.
                if let Some(partition) = self.partitions.get(id).filter(|p| p.leaving) {
                    frontiers.push((*id, partition.frontier));
                    self.partitions.remove(id);
                }
            }
            let _ = group.reply.send(frontiers);
            false
        });
        self.leaving.append(&mut leaving);
    }

    /// SIGTERM: nothing new is taken; what was taken is written, and files that are worth it go out.
    pub(super) fn begin_shutdown(&mut self) {
        failpoint!(pause "shutdown.begun");
        tracing::info!("shutting down: writing what was taken");
        self.outside.health.set_ready(false);
        let deadline = Duration::from_millis(self.config.shutdown.deadline_ms);
        self.shutdown = Some(Shutdown { until: Instant::now() + deadline, sealing: false });
        for incoming in std::mem::take(&mut self.backlog) {
            if let Incoming::Chunk(chunk) = incoming {
                self.source.release(chunk.size_bytes());
            }
        }
        for partition in self.partitions.values_mut() {
            partition.leaving = true;
            partition.parked.clear();
            partition.wait = None;
        }
    }

    /// Whether everything is in order, or the time for it is over.
    pub(super) fn is_shut_down(&mut self) -> bool {
        let Some(shutdown) = &mut self.shutdown else { return false };
        if Instant::now() >= shutdown.until {
            tracing::warn!("the shutdown deadline is over: the next owner goes on from the ledger");
            return true;
        }
        let is_written = self.partitions.values().all(Partition::is_written);
        if is_written && !std::mem::replace(&mut shutdown.sealing, true) {
            failpoint!(pause "shutdown.before-sealing");
        }
        !self.seal_for_shutdown()
            && is_written
            && self.partitions.values().all(|p| !p.exporter.is_uploading())
    }

    /// Tells the poll thread to commit and leave, and waits a moment for it.
    pub(super) async fn end(&mut self, mut events: UnboundedReceiver<SourceEvent>) {
        let frontiers = self.partitions.values().map(|p| (p.id, p.frontier)).collect();
        self.source.send(Command::Shutdown(frontiers));
        // The callback that runs while the consumer closes finds nobody to ask, and goes on at once.
        events.close();
        while events.try_recv().is_ok() {}
        let until = Instant::now() + CLOSE_MAX;
        while !self.source.is_finished() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        failpoint!(pause "shutdown.after-leaving");
    }

    /// Closes the clients after the end. A client waits for its own threads when it is dropped: one that hangs must
    /// not keep the process.
    pub async fn close(self) {
        let dropped = tokio::task::spawn_blocking(move || drop(self));
        if tokio::time::timeout(CLOSE_MAX, dropped).await.is_err() {
            tracing::warn!("a client does not close: ending without it");
        }
    }
}
