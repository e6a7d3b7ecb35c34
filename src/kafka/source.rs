//! The source: one thread polls Kafka and owns the consumer.
//!
//! 1. Records, assignments and revocations leave through one channel, in order.
//! 2. The thread never stops polling for long: when the pipeline is full, the partitions are paused
//!    and polling goes on, so that `max.poll.interval.ms` is never missed.
//! 3. Nothing else touches the consumer; commands reach it through a queue.

mod positions;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::rebalance::{Candidate, GroupContext};
use super::wake::wake_fetchers;
use crate::config::Config;
use crate::failpoint::failpoint;
use crate::record::Chunk;

/// Records in one chunk. More delays the first of them; fewer makes the channel cost show.
const CHUNK_RECORDS_MAX: usize = 1_000;
/// Bytes in one chunk. Larger makes the memory budget coarse; smaller cuts chunks of large records.
const CHUNK_BYTES_MAX: usize = 512 << 10;
/// Bytes handed over and not yet decoded. Larger is memory without use; smaller lets the pipeline idle.
const OUTSTANDING_BYTES_MAX: usize = 8 << 20;
/// How long the thread just waits for room before it pauses the partitions. Pausing throws away what
/// was prefetched, so shorter refetches on every hiccup; longer nears `max.poll.interval.ms`.
const PAUSE_AFTER: Duration = Duration::from_secs(2);
/// How long the thread sleeps for room. Longer could let the pipeline run out of what waits for it (tens of ms of work);
/// shorter wakes up for nothing.
const ROOM_WAIT: Duration = Duration::from_millis(4);
/// How long after a commit the group is asked what it has. Longer leaves a refused commit, and a lag that is none, for
/// longer; shorter asks while the client still tries by itself.
const COMPARE_AFTER: Duration = Duration::from_secs(10);
/// How long the answer may take: nothing is polled meanwhile. Longer delays records; shorter gives up a slow coordinator.
const COMPARE_WAIT: Duration = Duration::from_millis(500);
/// How long one poll waits. Longer delays commands; shorter burns CPU when idle.
const POLL_WAIT: Duration = Duration::from_millis(10);

/// What the poll thread tells the pipeline.
pub enum SourceEvent {
    Chunk(Chunk),
    /// Partitions were assigned; the callback waits for where to start each.
    Assign {
        assignment: u64,
        candidates: Vec<Candidate>,
        /// When the callback gives up: nothing may be taken over later than that.
        until: tokio::time::Instant,
        reply: Sender<Vec<(i32, Start)>>,
    },
    /// The group was joined, and has nothing new for this worker.
    Joined,
    /// A partition began again: its records are those of this assignment, or a later one.
    Restarted {
        partition: i32,
        assignment: u64,
    },
    /// The client could not read something it fetched: a jump of offsets may hide records now.
    Unreadable,
    /// Partitions are taken away; the callback waits for the offsets to commit.
    Revoke {
        partitions: Vec<i32>,
        lost: bool,
        reply: Sender<Vec<(i32, i64)>>,
    },
    /// The broker does not have the offset that comes next.
    OutOfRange {
        partition: i32,
        next: i64,
        low: i64,
        high: i64,
    },
    /// The client cannot go on; the process has to end.
    Fatal(String),
}

/// Where a partition begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    At(i64),
    /// It waits for an operator: assigned, but nothing of it is fetched.
    Stopped,
}

/// What the pipeline tells the poll thread.
pub enum Command {
    /// Stop or go on fetching one partition (its next record waits for the registry or the DLQ).
    Hold(i32, bool),
    /// Commit these frontiers soon; later ones replace earlier ones.
    Commit(Vec<(i32, i64)>),
    /// Begin a partition again at an offset (an operator decided).
    Restart(i32, i64),
    /// Leave the group, wait, join again: every partition gets a new epoch.
    Rejoin(Duration),
    /// Commit these frontiers, leave the group and end.
    Shutdown(Vec<(i32, i64)>),
}

/// The pipeline's end of the poll thread.
pub struct Source {
    commands: Sender<Command>,
    outstanding: Arc<AtomicUsize>,
}

/// What the poll thread holds of its pipeline; dropped when the thread ends.
pub struct PollEnd {
    pub events: UnboundedSender<SourceEvent>,
    pub commands: Receiver<Command>,
    /// Bytes handed over and not yet decoded.
    pub outstanding: Arc<AtomicUsize>,
}

impl Source {
    /// Creates the consumer and starts the thread. Errors: the client's configuration.
    pub fn start(config: &Config) -> KafkaResult<(Self, UnboundedReceiver<SourceEvent>)> {
        let (source, events, end) = Source::pair();
        let context = GroupContext::new(config, end.events.clone());
        let consumer: BaseConsumer<GroupContext> =
            super::consumer_config(config).create_with_context(context)?;
        consumer.subscribe(&[&config.kafka.topic])?;
        let poller = Poller {
            topic: config.kafka.topic.clone(),
            commit_interval: Duration::from_millis(config.kafka.commit_interval_ms),
            consumer,
            end,
            chunk: Chunk::new(0),
            next: BTreeMap::new(),
            held: BTreeSet::new(),
            commits: BTreeMap::new(),
            sent: BTreeMap::new(),
            committed_at: Instant::now(),
            compare_at: None,
            full_since: None,
            paused: false,
            noted: 0,
            unreadable_at: None,
            fetch_again_at: None,
        };
        std::thread::Builder::new()
            .name("kafka-poll".into())
            .spawn(move || poller.run())
            .map_err(|e| KafkaError::ClientCreation(format!("cannot start the poll thread: {e}")))?;
        Ok((source, events))
    }

    /// Both ends, without a thread in between.
    pub fn pair() -> (Self, UnboundedReceiver<SourceEvent>, PollEnd) {
        let (commands, inbox) = std::sync::mpsc::channel();
        let (events, source_events) = unbounded_channel();
        let outstanding = Arc::new(AtomicUsize::new(0));
        let end = PollEnd { events, commands: inbox, outstanding: outstanding.clone() };
        (Source { commands, outstanding }, source_events, end)
    }

    /// Sends a command. A thread that has ended needs none: its end shows as a closed channel.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Says that a chunk of this size has been decoded, which makes room for another.
    pub fn release(&self, bytes: usize) {
        self.outstanding.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether the poll thread has ended: it dropped its end of what both count.
    pub fn is_finished(&self) -> bool {
        Arc::strong_count(&self.outstanding) == 1
    }
}

struct Poller {
    topic: String,
    commit_interval: Duration,
    // Dropped before `end`: who sees the end may rely on the group having been left.
    consumer: BaseConsumer<GroupContext>,
    end: PollEnd,
    chunk: Chunk,
    /// The offset after the last one delivered, of each partition that delivered something.
    next: BTreeMap<i32, i64>,
    held: BTreeSet<i32>,
    commits: BTreeMap<i32, i64>,
    /// The last frontier that was sent for each partition.
    sent: BTreeMap<i32, i64>,
    committed_at: Instant,
    /// When what was sent is compared with what the group has.
    compare_at: Option<Instant>,
    full_since: Option<Instant>,
    paused: bool,
    /// The assignment that was last taken note of.
    noted: u64,
    /// When the client could not read something last.
    unreadable_at: Option<Instant>,
    /// When partitions whose position may be lost are fetched again.
    fetch_again_at: Option<Instant>,
}

impl Poller {
    fn run(mut self) {
        while let Flow::GoOn = self.obey() {
            if self.has_room() {
                self.fill_chunk();
            } else {
                // Paused: nothing is delivered, but rebalances and errors are served.
                if self.paused {
                    self.poll_once(POLL_WAIT);
                } else {
                    std::thread::sleep(ROOM_WAIT);
                }
            }
            if self.consumer.context().is_rejoin_asked() {
                self.rejoin(Duration::from_secs(1));
            }
            self.fetch_again_if_due();
            self.commit_if_due();
        }
        // Dropping the consumer leaves the group; its revoke callback finds nobody to ask.
    }

    /// Serves all waiting commands.
    fn obey(&mut self) -> Flow {
        loop {
            match self.end.commands.try_recv() {
                Ok(Command::Hold(partition, hold)) => self.hold(partition, hold),
                Ok(Command::Commit(frontiers)) => self.commits.extend(frontiers),
                Ok(Command::Restart(partition, offset)) => self.restart(partition, offset),
                Ok(Command::Rejoin(wait)) => self.rejoin(wait),
                Ok(Command::Shutdown(frontiers)) => {
                    self.commits.clear();
                    self.commit(&frontiers, CommitMode::Sync);
                    failpoint!(pause "shutdown.before-leaving");
                    return Flow::End;
                }
                Err(TryRecvError::Empty) => return Flow::GoOn,
                Err(TryRecvError::Disconnected) => return Flow::End,
            }
        }
    }

    /// Whether another chunk may be handed over; pauses when it stays full, resumes when it is not.
    fn has_room(&mut self) -> bool {
        if self.end.outstanding.load(Ordering::Relaxed) < OUTSTANDING_BYTES_MAX {
            self.full_since = None;
            if std::mem::take(&mut self.paused) {
                self.set_paused(false);
            }
            return true;
        }
        let since = *self.full_since.get_or_insert_with(Instant::now);
        if !self.paused && since.elapsed() > PAUSE_AFTER {
            self.paused = true;
            self.set_paused(true);
        }
        false
    }

    fn set_paused(&self, pause: bool) {
        let Ok(assigned) = self.consumer.assignment() else { return };
        let mut list = TopicPartitionList::new();
        for element in assigned.elements() {
            let stays_held = self.is_held(element.partition());
            if pause || !stays_held {
                list.add_partition(&self.topic, element.partition());
            }
        }
        let result = if pause { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
        if let Err(error) = result {
            tracing::warn!(%error, pause, "cannot pause or resume the partitions");
        } else if !pause {
            wake_fetchers(&self.consumer, list);
        }
    }

    fn is_held(&self, partition: i32) -> bool {
        self.held.contains(&partition) || self.consumer.context().is_stopped(partition)
    }

    fn hold(&mut self, partition: i32, hold: bool) {
        let changed = if hold { self.held.insert(partition) } else { self.held.remove(&partition) };
        if !changed || (self.paused && !hold) {
            return;
        }
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        // The partition may have been revoked meanwhile: then there is nothing to hold.
        if hold {
            let _ = self.consumer.pause(&list);
        } else if self.consumer.resume(&list).is_ok() {
            wake_fetchers(&self.consumer, list);
        }
    }

    /// Polls until the chunk is full or nothing more is there, and hands it over.
    fn fill_chunk(&mut self) {
        let mut wait = POLL_WAIT;
        while self.poll_once(wait) {
            wait = Duration::ZERO;
            if self.chunk.records.len() >= CHUNK_RECORDS_MAX || self.chunk.size_bytes() >= CHUNK_BYTES_MAX {
                break;
            }
        }
        self.hand_over();
    }

    fn hand_over(&mut self) {
        let assignment = self.consumer.context().assignment();
        if self.chunk.records.is_empty() {
            self.chunk.assignment = assignment;
            return;
        }
        let next = self.chunk.next(assignment);
        let chunk = std::mem::replace(&mut self.chunk, next);
        self.end.outstanding.fetch_add(chunk.size_bytes(), Ordering::Relaxed);
        let _ = self.end.events.send(SourceEvent::Chunk(chunk));
    }

    /// Takes one event from the client; true = a record was added to the chunk.
    fn poll_once(&mut self, wait: Duration) -> bool {
        let polled = match self.consumer.poll(wait) {
            None => Ok(false),
            Some(Ok(message)) => {
                let context = self.consumer.context();
                if self.noted != context.assignment() {
                    Self::note_starts(context, &mut self.held, &mut self.next);
                }
                Self::take(&mut self.chunk, &self.end, context.assignment(), &mut self.next, &message);
                Ok(true)
            }
            Some(Err(error)) => Err(error),
        };
        self.note_assignment();
        polled.unwrap_or_else(|error| {
            self.on_error(&error);
            false
        })
    }

    /// A rebalance may have run inside the poll, whatever else came of it: what was gathered before it belongs to the
    /// old assignment.
    fn note_assignment(&mut self) {
        let assignment = self.consumer.context().assignment();
        if self.noted == assignment {
            return;
        }
        self.noted = assignment;
        if self.chunk.assignment != assignment {
            self.hand_over();
            self.chunk.assignment = assignment;
        }
        Self::note_starts(self.consumer.context(), &mut self.held, &mut self.next);
        if self.paused {
            // New partitions come unpaused, and there is still no room.
            self.set_paused(true);
        }
    }

    /// Partitions that begin: what was held of them before belongs to an earlier ownership.
    fn note_starts(context: &GroupContext, held: &mut BTreeSet<i32>, next: &mut BTreeMap<i32, i64>) {
        let starts = context.take_starts();
        held.retain(|partition| !starts.contains_key(partition));
        next.extend(starts);
    }

    fn take(
        chunk: &mut Chunk,
        end: &PollEnd,
        assignment: u64,
        next: &mut BTreeMap<i32, i64>,
        message: &BorrowedMessage<'_>,
    ) {
        if chunk.assignment != assignment {
            let old = std::mem::replace(chunk, Chunk::new(assignment));
            if !old.records.is_empty() {
                end.outstanding.fetch_add(old.size_bytes(), Ordering::Relaxed);
                let _ = end.events.send(SourceEvent::Chunk(old));
            }
        }
        next.insert(message.partition(), message.offset() + 1);
        chunk.push(message);
    }

    fn on_error(&mut self, error: &KafkaError) {
        match error {
            KafkaError::MessageConsumptionFatal(code) => {
                let detail = self
                    .consumer
                    .client()
                    .fatal_error()
                    .map_or_else(|| code.to_string(), |(code, reason)| format!("{code}: {reason}"));
                let _ = self.end.events.send(SourceEvent::Fatal(detail));
            }
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange,
            ) => self.find_out_of_range(),
            KafkaError::MessageConsumption(
                code @ (RDKafkaErrorCode::BadMessage
                | RDKafkaErrorCode::BadCompression
                | RDKafkaErrorCode::InvalidMessage
                // A format that does not exist: what the client takes for records is none.
                | RDKafkaErrorCode::NotImplemented
                | RDKafkaErrorCode::Fail),
            ) => {
                crate::telemetry::metrics::source_error();
                tracing::error!(error = %code, "records were fetched that cannot be read");
                self.unreadable_at = Some(Instant::now());
                self.hand_over();
                let _ = self.end.events.send(SourceEvent::Unreadable);
            }
            KafkaError::MessageConsumption(code) => {
                crate::telemetry::metrics::source_error();
                tracing::warn!(error = %code, "kafka reports an error; the client goes on by itself");
            }
            other => tracing::warn!(error = %other, "kafka reports an error"),
        }
    }

    fn rejoin(&mut self, wait: Duration) {
        self.hand_over();
        // What is reported from here on is of positions that are given up.
        self.consumer.context().ask_rejoin();
        self.consumer.unsubscribe();
        let until = Instant::now() + wait;
        while Instant::now() < until {
            self.poll_once(POLL_WAIT);
        }
        self.held.clear();
        self.fetch_again_at = None;
        self.consumer.context().rejoined();
        if let Err(error) = self.consumer.subscribe(&[&self.topic]) {
            let _ = self.end.events.send(SourceEvent::Fatal(format!("cannot subscribe again: {error}")));
        }
    }

    fn commit_if_due(&mut self) {
        self.compare_if_due();
        if self.commits.is_empty() || self.committed_at.elapsed() < self.commit_interval {
            return;
        }
        let Ok(assigned) = self.consumer.assignment() else { return };
        let is_ours = |p: &i32| assigned.find_partition(&self.topic, *p).is_some();
        let frontiers: Vec<_> =
            std::mem::take(&mut self.commits).into_iter().filter(|(p, _)| is_ours(p)).collect();
        self.commit(&frontiers, CommitMode::Async);
    }

    /// The client says nothing of a commit that was refused in the end: what the group has is compared with what was
    /// sent, and sent again.
    fn compare_if_due(&mut self) {
        if self.compare_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        let Ok(assigned) = self.consumer.assignment() else { return };
        let mut list = TopicPartitionList::new();
        for partition in self.sent.keys().filter(|p| assigned.find_partition(&self.topic, **p).is_some()) {
            list.add_partition(&self.topic, *partition);
        }
        self.compare_at = None;
        if list.count() == 0 {
            return;
        }
        match self.consumer.committed_offsets(list, COMPARE_WAIT) {
            Ok(found) => {
                for element in found.elements() {
                    let partition = element.partition();
                    let Some(&sent) = self.sent.get(&partition) else { continue };
                    if element.offset().to_raw().is_none_or(|committed| committed < sent) {
                        tracing::info!(
                            partition,
                            frontier = sent,
                            "a commit to kafka was refused: it is sent again"
                        );
                        self.commits.entry(partition).or_insert(sent);
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot compare what the group has committed");
                self.compare_at = Some(Instant::now() + COMPARE_AFTER);
            }
        }
    }

    fn commit(&mut self, frontiers: &[(i32, i64)], mode: CommitMode) {
        self.committed_at = Instant::now();
        self.compare_at.get_or_insert(Instant::now() + COMPARE_AFTER);
        self.sent.extend(frontiers.iter().copied());
        let list = offsets(&self.topic, frontiers);
        if list.count() == 0 {
            return;
        }
        if let Err(error) = self.send_commit(&list, mode) {
            // The ledger is what counts; Kafka's copy is repaired by the next commit.
            tracing::warn!(%error, "cannot commit the frontiers to kafka");
        }
    }

    fn send_commit(&self, list: &TopicPartitionList, mode: CommitMode) -> KafkaResult<()> {
        failpoint!(blocking "offsets.before-commit");
        self.consumer.commit(list, mode)?;
        failpoint!(blocking "offsets.after-commit");
        Ok(())
    }
}

enum Flow {
    GoOn,
    End,
}

/// A list of partitions with their frontiers, as `commit` takes them (the next offset, verbatim).
pub(super) fn offsets(topic: &str, frontiers: &[(i32, i64)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(frontiers.len());
    for (partition, frontier) in frontiers {
        if let Err(error) = list.add_partition_offset(topic, *partition, Offset::Offset(*frontier)) {
            tracing::warn!(partition, frontier, %error, "a frontier is no offset");
        }
    }
    list
}

/// Waits for the pipeline's answer to a rebalance.
pub(super) fn wait_for<T>(answer: &Receiver<T>, deadline: Duration) -> Option<T> {
    answer.recv_timeout(deadline).ok()
}
