//! The source: one thread polls Kafka and owns the consumer.
//!
//! 1. Records, assignments and revocations leave through one channel, in order.
//! 2. The thread never stops polling for long: when the pipeline is full, the partitions are paused
//!    and polling goes on, so that `max.poll.interval.ms` is never missed.
//! 3. Nothing else touches the consumer; commands reach it through a queue.

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
            full_since: None,
            paused: false,
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
    full_since: Option<Instant>,
    paused: bool,
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
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            if self.consumer.context().take_rejoin() {
                self.rejoin(Duration::from_secs(1));
            }
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
        let _ = if hold { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
    }

    fn restart(&mut self, partition: i32, offset: i64) {
        self.hand_over();
        self.held.remove(&partition);
        let context = self.consumer.context().clone();
        context.set_stopped(partition, false);
        let mut list = TopicPartitionList::new();
        if list.add_partition_offset(&self.topic, partition, Offset::Offset(offset)).is_err() {
            return;
        }
        match self.begin_again(&list) {
            Ok(()) => {
                self.next.insert(partition, offset);
                let assignment = context.next_assignment();
                self.chunk.assignment = assignment;
                let _ = self.end.events.send(SourceEvent::Restarted { partition, assignment });
                if self.paused {
                    self.set_paused(true);
                }
            }
            Err(error) => {
                tracing::warn!(partition, %error, "cannot begin the partition again: joining the group again");
                context.ask_rejoin();
            }
        }
    }

    fn begin_again(&self, list: &TopicPartitionList) -> KafkaResult<()> {
        self.consumer.incremental_unassign(list)?;
        failpoint!(blocking "restart.in-poll-thread");
        self.consumer.incremental_assign(list)?;
        self.consumer.resume(list)
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
        let chunk = std::mem::replace(&mut self.chunk, Chunk::new(assignment));
        if chunk.records.is_empty() {
            return;
        }
        self.end.outstanding.fetch_add(chunk.size_bytes(), Ordering::Relaxed);
        let _ = self.end.events.send(SourceEvent::Chunk(chunk));
    }

    /// Takes one event from the client; true = a record was added to the chunk.
    fn poll_once(&mut self, wait: Duration) -> bool {
        let error = match self.consumer.poll(wait) {
            None => return self.close_chunk_of_old_assignment(),
            Some(Ok(message)) => {
                Self::take(
                    &mut self.chunk,
                    &self.end,
                    self.consumer.context().assignment(),
                    &mut self.next,
                    &message,
                );
                return true;
            }
            Some(Err(error)) => error,
        };
        self.on_error(&error);
        false
    }

    /// A rebalance ran inside the poll: what was gathered before it belongs to the old assignment.
    fn close_chunk_of_old_assignment(&mut self) -> bool {
        if self.chunk.assignment != self.consumer.context().assignment() {
            self.hand_over();
            let assignment = self.consumer.context().assignment();
            self.chunk.assignment = assignment;
            let starts = self.consumer.context().take_starts();
            // What was held before belongs to an earlier ownership.
            self.held.retain(|partition| !starts.contains_key(partition));
            self.next.extend(starts);
            if self.paused {
                // New partitions come unpaused, and there is still no room.
                self.set_paused(true);
            }
        }
        false
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
                | RDKafkaErrorCode::Fail),
            ) => {
                crate::telemetry::metrics::source_error();
                tracing::error!(error = %code, "records were fetched that cannot be read");
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

    /// The client does not say which partition is out of range: compare each with its broker.
    fn find_out_of_range(&mut self) {
        let context = self.consumer.context().clone();
        self.next.extend(context.take_starts());
        let Ok(assigned) = self.consumer.assignment() else { return };
        let mut found = false;
        for element in assigned.elements() {
            let partition = element.partition();
            let Some(&at) = self.next.get(&partition) else { continue };
            if context.is_stopped(partition) {
                continue;
            }
            match self.consumer.fetch_watermarks(&self.topic, partition, Duration::from_secs(5)) {
                Ok((low, high)) if low > at || high < at => {
                    found = true;
                    context.set_stopped(partition, true);
                    self.hold(partition, true);
                    self.held.remove(&partition);
                    self.hand_over();
                    let event = SourceEvent::OutOfRange { partition, next: at, low, high };
                    let _ = self.end.events.send(event);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(partition, %error, "cannot ask for the offsets"),
            }
        }
        if !found {
            // The fetch position is lost and its partition unknown: a new assignment restores it.
            tracing::warn!("an offset was out of range, but no partition is: joining the group again");
            self.rejoin(Duration::from_secs(1));
        }
    }

    fn rejoin(&mut self, wait: Duration) {
        self.hand_over();
        self.consumer.unsubscribe();
        let until = Instant::now() + wait;
        while Instant::now() < until {
            self.poll_once(POLL_WAIT);
        }
        self.held.clear();
        if let Err(error) = self.consumer.subscribe(&[&self.topic]) {
            let _ = self.end.events.send(SourceEvent::Fatal(format!("cannot subscribe again: {error}")));
        }
    }

    fn commit_if_due(&mut self) {
        for (partition, frontier) in self.consumer.context().take_refused() {
            // A newer one may have been sent meanwhile: an older one must not come after it.
            if self.sent.get(&partition).is_none_or(|sent| *sent <= frontier) {
                self.commits.entry(partition).or_insert(frontier);
            }
        }
        if self.commits.is_empty() || self.committed_at.elapsed() < self.commit_interval {
            return;
        }
        let Ok(assigned) = self.consumer.assignment() else { return };
        let is_ours = |p: &i32| assigned.find_partition(&self.topic, *p).is_some();
        let frontiers: Vec<_> =
            std::mem::take(&mut self.commits).into_iter().filter(|(p, _)| is_ours(p)).collect();
        self.commit(&frontiers, CommitMode::Async);
    }

    fn commit(&mut self, frontiers: &[(i32, i64)], mode: CommitMode) {
        self.committed_at = Instant::now();
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
