//! The rebalance callback: where partitions are taken and given up.
//!
//! 1. A partition starts where the ledger says, whatever Kafka's committed offset says.
//! 2. The callback waits for the pipeline a bounded time; without an answer nothing new is taken and
//!    the worker joins again.
//! 3. Callbacks only tell: what keeps a former owner from writing is the ledger's epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::source::{SourceEvent, Start, offsets, wait_for};
use super::wake::wake_fetchers;
use crate::config::Config;
use crate::failpoint::failpoint;

/// A partition that the group gives to this worker, with what the broker says of it.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub partition: i32,
    /// The first offset that the broker still has, and the one after the last.
    pub low: i64,
    pub high: i64,
    /// The group's committed offset, if there is one.
    pub committed: Option<i64>,
    /// The partition ends before the frontier that the ledger had when its end was asked for.
    pub is_short: bool,
}

/// State that the callback (run by the client inside `poll`) shares with the poll thread. Both run on
/// that one thread, so the mutex is never contended; the client's trait merely asks for `Sync`.
pub struct GroupContext {
    topic: String,
    assign_deadline: Duration,
    revoke_deadline: Duration,
    events: UnboundedSender<SourceEvent>,
    assignment: AtomicU64,
    rejoin: AtomicBool,
    starts: Mutex<BTreeMap<i32, i64>>,
    stopped: Mutex<BTreeSet<i32>>,
}

impl GroupContext {
    pub fn new(config: &Config, events: UnboundedSender<SourceEvent>) -> Self {
        GroupContext {
            topic: config.kafka.topic.clone(),
            assign_deadline: Duration::from_millis(config.kafka.assign_deadline_ms),
            revoke_deadline: Duration::from_millis(config.kafka.revoke_deadline_ms),
            events,
            assignment: AtomicU64::new(0),
            rejoin: AtomicBool::new(false),
            starts: Mutex::default(),
            stopped: Mutex::default(),
        }
    }

    /// Number of the present assignment.
    pub fn assignment(&self) -> u64 {
        self.assignment.load(Ordering::Relaxed)
    }

    /// Begins a new assignment without the group: a partition begins again.
    pub fn next_assignment(&self) -> u64 {
        self.assignment.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Asks for the group to be joined anew.
    pub fn ask_rejoin(&self) {
        self.rejoin.store(true, Ordering::Relaxed);
    }

    /// Whether the group has to be joined anew, or just is.
    pub fn is_rejoin_asked(&self) -> bool {
        self.rejoin.load(Ordering::Relaxed)
    }

    /// What was asked for until now is done.
    pub fn rejoined(&self) {
        self.rejoin.store(false, Ordering::Relaxed);
    }

    /// Where partitions began, or began again, since the last call.
    pub fn take_starts(&self) -> BTreeMap<i32, i64> {
        self.starts.lock().map(|mut s| std::mem::take(&mut *s)).unwrap_or_default()
    }

    pub fn begin(&self, partition: i32, offset: i64) {
        if let Ok(mut starts) = self.starts.lock() {
            starts.insert(partition, offset);
        }
    }

    pub fn is_stopped(&self, partition: i32) -> bool {
        self.stopped.lock().is_ok_and(|s| s.contains(&partition))
    }

    pub fn set_stopped(&self, partition: i32, stopped: bool) {
        if let Ok(mut set) = self.stopped.lock() {
            if stopped {
                set.insert(partition)
            } else {
                set.remove(&partition)
            };
        }
    }

    fn on_assign(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> KafkaResult<()> {
        if list.count() == 0 {
            // Comes at every rebalance in which nothing is gained, and wants an answer.
            let _ = self.events.send(SourceEvent::Joined);
            return consumer.incremental_assign(list);
        }
        failpoint!(blocking "assign.in-callback");
        let assignment = self.next_assignment();
        let until = Instant::now() + self.assign_deadline;
        let starts = self.candidates(consumer, list, until).and_then(|candidates| {
            let (reply, answer) = std::sync::mpsc::channel();
            let event = SourceEvent::Assign { assignment, candidates, until, reply };
            self.events.send(event).ok()?;
            wait_for(&answer, until.saturating_duration_since(Instant::now()))
        });
        let Some(starts) = starts else {
            let all: Vec<_> = list.elements().iter().map(|e| (e.partition(), Start::Stopped)).collect();
            if self.events.is_closed() {
                return self.take(consumer, &all);
            }
            tracing::warn!(
                partitions = list.count(),
                deadline_ms = self.assign_deadline.as_millis() as u64,
                "no answer from the ledger in time: taking no partition, joining the group again"
            );
            self.ask_rejoin();
            return self.take(consumer, &all);
        };
        self.take(consumer, &starts)
    }

    /// Assigns the partitions where they begin; stopped ones are assigned too (the group has given
    /// them to this worker), but paused before anything of them can be delivered.
    fn take(&self, consumer: &BaseConsumer<Self>, starts: &[(i32, Start)]) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        let mut stopped = TopicPartitionList::new();
        for (partition, start) in starts {
            self.set_stopped(*partition, *start == Start::Stopped);
            match start {
                Start::At(offset) => {
                    list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset))?;
                    self.begin(*partition, *offset);
                }
                Start::Stopped => {
                    list.add_partition_offset(&self.topic, *partition, Offset::End)?;
                    stopped.add_partition(&self.topic, *partition);
                }
            }
        }
        failpoint!(blocking "assign.before-taking");
        consumer.incremental_assign(&list)?;
        failpoint!(pause "assign.after-taking");
        // The client keeps a pause over a revocation: what was held when it went comes back held.
        consumer.resume(&list)?;
        if stopped.count() > 0 { consumer.pause(&stopped) } else { Ok(()) }
    }

    /// Asks the brokers for the bounds of each partition and the group for its offsets.
    fn candidates(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
        until: Instant,
    ) -> Option<Vec<Candidate>> {
        let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut wanted = TopicPartitionList::new();
        for element in list.elements() {
            wanted.add_partition(&self.topic, element.partition());
        }
        let committed = consumer
            .committed_offsets(wanted, left())
            .inspect_err(|error| tracing::warn!(%error, "cannot read the group's offsets"))
            .ok()?;
        let mut candidates = Vec::new();
        for element in list.elements() {
            let partition = element.partition();
            let (low, high) = consumer
                .fetch_watermarks(&self.topic, partition, left())
                .inspect_err(|error| tracing::warn!(partition, %error, "cannot ask for the offsets"))
                .ok()?;
            let committed = committed
                .find_partition(&self.topic, partition)
                .and_then(|e| e.offset().to_raw())
                .filter(|offset| *offset >= 0);
            candidates.push(Candidate { partition, low, high, committed, is_short: false });
        }
        Some(candidates)
    }

    fn on_revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> KafkaResult<()> {
        let partitions: Vec<i32> = list.elements().iter().map(TopicPartitionListElem::partition).collect();
        failpoint!(pause "revoke.in-callback");
        let lost = consumer.assignment_lost();
        let (reply, answer) = std::sync::mpsc::channel();
        let event = SourceEvent::Revoke { partitions: partitions.clone(), lost, reply };
        if self.events.send(event).is_ok() {
            let frontiers = wait_for(&answer, self.revoke_deadline);
            if let Some(frontiers) = frontiers.filter(|f| !lost && !f.is_empty()) {
                failpoint!(pause "revoke.before-commit");
                // May be refused while the group is between two generations; the ledger stands.
                if let Err(error) = consumer.commit(&offsets(&self.topic, &frontiers), CommitMode::Sync) {
                    tracing::info!(%error, "frontiers of revoked partitions were not committed");
                }
            }
        }
        for partition in partitions {
            self.set_stopped(partition, false);
        }
        failpoint!(blocking "revoke.before-letting-go");
        self.let_go(consumer, list)?;
        failpoint!(pause "revoke.after-letting-go");
        Ok(())
    }

    /// The client paused all partitions before it called, and has resumed those that stay.
    fn wake(&self, consumer: &BaseConsumer<Self>) {
        // A consumer that is closing needs nothing more.
        if !self.events.is_closed()
            && let Ok(assigned) = consumer.assignment()
        {
            wake_fetchers(consumer, assigned);
        }
    }

    /// Gives up what is assigned of a list. What is not, because taking it had failed, the client would
    /// refuse, and the rest with it.
    fn let_go(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> KafkaResult<()> {
        let assigned = consumer.assignment()?;
        let mut held = TopicPartitionList::new();
        for element in list.elements() {
            if assigned.find_partition(&self.topic, element.partition()).is_some() {
                held.add_partition(&self.topic, element.partition());
            }
        }
        consumer.incremental_unassign(&held)
    }
}

impl ClientContext for GroupContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn error(&self, error: KafkaError, reason: &str) {
        // The client goes on by itself: it connects again, or finds the coordinator.
        super::security::tell(&error, reason);
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        super::tokens::current()
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let assigns = matches!(error, RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS);
        let result = if assigns { self.on_assign(consumer, list) } else { self.on_revoke(consumer, list) };
        let Err(error) = result else { return self.wake(consumer) };
        tracing::error!(%error, "the rebalance failed: joining the group again");
        self.ask_rejoin();
        // The client waits for an assignment, or for its end, before it does anything else, even leave.
        let answered = if assigns {
            consumer.incremental_assign(&TopicPartitionList::new())
        } else {
            self.let_go(consumer, list)
        };
        if let Err(error) = answered {
            let _ = self.events.send(SourceEvent::Fatal(format!("the rebalance cannot be ended: {error}")));
        }
    }
}
