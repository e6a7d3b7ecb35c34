//! The pipeline: the one place with control flow.
//!
//! ```text
//! poll thread ─▶ chunk ─▶ decode ─▶ batch ─▶ lane (COPY + ledger) ─▶ open file ─▶ upload ─▶ ledger
//!                           │ reject                 │
//!                           └─▶ dead letter          └─▶ commit to Kafka
//! ```
//!
//! 1. One task owns all state; what takes time runs elsewhere and comes back as a [`Done`].
//! 2. What is done is taken before what is new, so that memory falls before it grows.
//! 3. A batch is written only when every dead letter in its range is acknowledged; rows are exported
//!    only when they are committed; Kafka is told last.
//! 4. One partition that waits, stops or is lost does not hold up another.

mod export_side;
mod persist_side;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::assignment::Assigner;
use crate::config::Config;
use crate::event::{Decoder, InteractionTypes};
use crate::export::day::DayFinisher;
use crate::export::exporter::RollLimits;
use crate::export::object::ObjectStore;
use crate::export::upload::{Uploaded, Uploader};
use crate::kafka::dead_letters::DeadLetters;
use crate::kafka::rebalance::Candidate;
use crate::kafka::source::{Command, Source, SourceEvent, Start};
use crate::partition::{Brought, Partition, Rules, Taken, Wait};
use crate::postgres::lane::{Job, JobResult, Lane, PartitionBatch};
use crate::postgres::ledger::{Assigned, Identity, LedgerError, Stop};
use crate::postgres::reread::Reread;
use crate::record::Chunk;
use crate::registry::{Answer, Registry};
use crate::reject_limit::RejectLimits;
use crate::row;
use crate::telemetry::health::Health;
use crate::telemetry::metrics;

/// How often exports, days and metrics are looked after. Longer delays rolls and days; shorter is
/// work without use.
const HOUSEKEEPING: Duration = Duration::from_millis(100);

/// When a batch that is on its way counts as stuck. Longer lets one blocked partition hold up the
/// others for longer; shorter pauses fetching over every slow transaction.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// Something that was started is done.
pub enum Done {
    Assigned {
        assignment: u64,
        candidates: Vec<Candidate>,
        reply: Reply,
        result: Result<Assigned, LedgerError>,
    },
    Persisted { lane: usize, result: JobResult },
    DeadLettered { partition: i32, epoch: i64 },
    Schema { id: u32, answer: Answer },
    /// A row that Postgres refused was dead-lettered and taken out; none: its record is gone.
    Repaired { partition: i32, epoch: i64, batch: Option<PartitionBatch> },
    Read { partition: i32, epoch: i64, result: Result<Reread, String> },
    Uploaded { partition: i32, epoch: i64, ended: Uploaded },
    StoreIsAway(bool),
    /// Which partitions were seen empty at their frontier, and Postgres's clock when it was asked.
    Probed { now_ms: i64, at: Instant, empty: Vec<(i32, i64, i64)> },
    Advanced { partition: i32, epoch: i64, day: Option<i32> },
    ClosedDays { partition: i32, epoch: i64, day: Option<i32> },
    DaysFinished,
    Released(Vec<i32>),
    /// A stop is written down; false: another owner has the partition.
    StopWritten { partition: i32, ours: bool },
    Clock(i64, Instant),
    /// Something cannot go on.
    Failed(String),
}

/// What came from the poll thread and waits for its turn.
enum Incoming {
    Chunk(Chunk),
    OutOfRange { partition: i32, next: i64, low: i64, high: i64 },
    Unreadable,
}

/// A partition that waits for an operator.
struct Stopped {
    why: String,
    /// Whether the ledger says so too: only then its silence means that an operator decided.
    written: bool,
}

/// Who waits for an assignment.
pub enum Reply {
    /// The rebalance callback.
    Callback(Sender<Vec<(i32, Start)>>),
    /// Nobody: an operator released the partition, and the poll thread is told to begin it again.
    Restart,
}

/// Why the worker ended, other than because it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("{0}")]
    Flood(String),
    #[error("{0}")]
    Ledger(String),
    #[error("{0}")]
    Fatal(String),
}

/// Everything outside that the pipeline uses.
pub struct Outside {
    pub pool: PgPool,
    pub store: Arc<dyn ObjectStore>,
    pub registry: Registry,
    pub dead_letters: DeadLetters,
    pub who: Identity,
    pub health: Health,
}

struct LaneHandle {
    jobs: UnboundedSender<Job>,
    /// Since when a job is on its way.
    busy: Option<Instant>,
}

impl LaneHandle {
    /// Whether its job takes so long that its partitions must not hold up the others'.
    fn is_stuck(&self) -> bool {
        self.busy.is_some_and(|since| since.elapsed() > STUCK_AFTER)
    }
}

/// Partitions that are being given up, and who waits for it.
struct Leaving {
    partitions: Vec<i32>,
    reply: Sender<Vec<(i32, i64)>>,
    until: Instant,
}

struct Shutdown {
    until: Instant,
    sealed: bool,
}

/// All the state there is.
pub struct Pipeline {
    config: Config,
    rules: Rules,
    roll: RollLimits,
    outside: Outside,
    assigner: Assigner,
    uploader: Uploader,
    finisher: DayFinisher,
    source: Source,
    lanes: Vec<LaneHandle>,
    decoder: Decoder,
    partitions: BTreeMap<i32, Partition>,
    /// Partitions that wait for an operator, with the reason.
    stopped: BTreeMap<i32, Stopped>,
    /// Partitions that the group has given to this worker.
    given: BTreeSet<i32>,
    /// Partitions that were lost at the ledger and not yet taken back by the group.
    fenced: BTreeMap<i32, Instant>,
    backlog: VecDeque<Incoming>,
    looking_up: BTreeSet<u32>,
    missing: BTreeMap<u32, Instant>,
    leaving: Vec<Leaving>,
    done: UnboundedSender<Done>,
    clock: (i64, Instant),
    settled_at: Instant,
    housekept_at: Instant,
    reading: Option<i32>,
    read_after: i32,
    read_at: Instant,
    store_away_since: Option<Instant>,
    probing: bool,
    finishing: bool,
    finished_at: Option<Instant>,
    asked_released_at: Instant,
    asked_clock_at: Instant,
    reported_at: Instant,
    lag_asked_at: Option<Instant>,
    shutdown: Option<Shutdown>,
    joined: bool,
}

impl Pipeline {
    /// Builds the pipeline and starts the poll thread. Errors: configuration of a client.
    pub fn start(
        config: Config,
        outside: Outside,
    ) -> anyhow::Result<(Self, UnboundedReceiver<SourceEvent>, UnboundedReceiver<Done>)> {
        let (done, completions) = unbounded_channel();
        let (events, source_events) = unbounded_channel();
        let types = InteractionTypes::parse(&config.interactions.weights)
            .map_err(|why| anyhow::anyhow!("interactions.weights: {why}"))?;
        let limits = RejectLimits {
            run_max: config.rejects.run_max as i64,
            ratio_max: config.rejects.ratio_max,
            window: config.rejects.window as i32,
        };
        let kafka = crate::kafka::client_config(&config);
        let assigner = Assigner {
            pool: outside.pool.clone(),
            store: outside.store.clone(),
            kafka: kafka.clone(),
            who: outside.who.clone(),
            prefix: config.s3.prefix.clone(),
            limits,
        };
        let uploader = Uploader {
            store: outside.store.clone(),
            pool: outside.pool.clone(),
            topic: config.kafka.topic.clone(),
            prefix: config.s3.prefix.clone(),
            done: done.clone(),
        };
        let finisher = DayFinisher {
            store: outside.store.clone(),
            pool: outside.pool.clone(),
            kafka,
            topic: config.kafka.topic.clone(),
            prefix: config.s3.prefix.clone(),
        };
        let lanes = (0..config.postgres.lanes)
            .map(|lane| start_lane(&config, lane, done.clone()))
            .collect::<Result<_, _>>()?;
        let source = Source::start(&config, events)?;
        let now = Instant::now();
        let pipeline = Pipeline {
            rules: Rules {
                limits,
                types: types.clone(),
                allow_create_time: config.kafka.allow_create_time,
                now_ms: crate::partition::now_ms(),
            },
            roll: RollLimits {
                rows_max: config.roll.rows_max,
                bytes_max: config.roll.bytes_max,
                age_ms_max: config.roll.age_ms_max as i64,
                row_group_rows: config.export.row_group_rows,
            },
            decoder: Decoder::new(types),
            config,
            outside,
            assigner,
            uploader,
            finisher,
            source,
            lanes,
            partitions: BTreeMap::new(),
            stopped: BTreeMap::new(),
            given: BTreeSet::new(),
            fenced: BTreeMap::new(),
            backlog: VecDeque::new(),
            looking_up: BTreeSet::new(),
            missing: BTreeMap::new(),
            leaving: Vec::new(),
            done,
            clock: (crate::partition::now_ms(), now),
            settled_at: now,
            housekept_at: now,
            reading: None,
            read_after: -1,
            read_at: now,
            store_away_since: None,
            probing: false,
            finishing: false,
            finished_at: None,
            asked_released_at: now,
            asked_clock_at: now,
            reported_at: now,
            lag_asked_at: None,
            shutdown: None,
            joined: false,
        };
        Ok((pipeline, source_events, completions))
    }

    /// Runs until `stop` resolves and everything is put in order, or something ends the worker.
    pub async fn run(
        mut self,
        mut events: UnboundedReceiver<SourceEvent>,
        mut completions: UnboundedReceiver<Done>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Ended> {
        let mut stop = std::pin::pin!(stop);
        let ended = loop {
            let wake = tokio::time::Instant::from_std(self.next_wake());
            let step = tokio::select! {
                biased;
                () = &mut stop, if self.shutdown.is_none() => { self.begin_shutdown(); Ok(()) }
                Some(done) = completions.recv() => self.on_done(done),
                event = events.recv() => match event {
                    Some(event) => self.on_source(event),
                    None => Err(Ended::Fatal("the poll thread ended".to_owned())),
                },
                () = tokio::time::sleep_until(wake) => Ok(()),
                () = std::future::ready(()), if self.has_room() => self.take_chunk(),
            };
            let step = step.and_then(|()| self.after_step());
            match step {
                Err(ended) => break Err(ended),
                Ok(()) if self.is_shut_down() => break Ok(()),
                Ok(()) => {}
            }
        };
        self.end(events).await;
        ended
    }

    /// What follows every step, whatever it was.
    fn after_step(&mut self) -> Result<(), Ended> {
        self.flush();
        self.let_go();
        if self.housekept_at.elapsed() >= HOUSEKEEPING {
            self.housekept_at = Instant::now();
            self.outside.health.tick();
            self.look_after_exports();
            self.look_after_days();
            self.look_after_partitions();
            self.report();
        }
        self.flood_if_written()
    }

    /// When something is due although nothing happens.
    fn next_wake(&self) -> Instant {
        let age = Duration::from_millis(self.config.batch.age_ms_max);
        let is_free = |p: &&Partition| self.lane_of(p.id).busy.is_none() && p.is_ready();
        let due = self.partitions.values().filter(is_free).filter_map(|p| p.open_since);
        let batch = due.min().map(|since| since + age);
        let housekeeping = self.housekept_at + HOUSEKEEPING;
        batch.map_or(housekeeping, |batch| batch.min(housekeeping))
    }

    /// The lane that a partition always uses.
    fn lane_of(&self, id: i32) -> &LaneHandle {
        &self.lanes[id.unsigned_abs() as usize % self.lanes.len()]
    }

    fn on_source(&mut self, event: SourceEvent) -> Result<(), Ended> {
        match event {
            SourceEvent::Chunk(chunk) => self.backlog.push_back(Incoming::Chunk(chunk)),
            SourceEvent::Assign { assignment, candidates, until, reply } => {
                metrics::rebalanced("assign");
                self.given.extend(candidates.iter().map(|c| c.partition));
                self.assign(assignment, candidates, until, Reply::Callback(reply));
            }
            SourceEvent::Restarted { partition, assignment } => {
                if let Some(partition) = self.partitions.get_mut(&partition) {
                    partition.assignment = assignment;
                }
            }
            SourceEvent::Unreadable => self.backlog.push_back(Incoming::Unreadable),
            SourceEvent::Revoke { partitions, lost, reply } => {
                metrics::rebalanced(if lost { "lost" } else { "revoke" });
                self.revoke(partitions, lost, reply);
            }
            SourceEvent::OutOfRange { partition, next, low, high } => {
                // What was read before it is still good, and is written first.
                self.backlog.push_back(Incoming::OutOfRange { partition, next, low, high });
            }
            SourceEvent::Fatal(why) => return Err(Ended::Fatal(format!("kafka client: {why}"))),
        }
        Ok(())
    }

    /// Starts taking partitions over; the answer comes back as [`Done::Assigned`].
    fn assign(&mut self, assignment: u64, candidates: Vec<Candidate>, until: Instant, reply: Reply) {
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
        let (assigner, done) = (self.assigner.clone(), self.done.clone());
        tokio::spawn(async move {
            let result = assigner.assign(&candidates, until).await;
            let _ = done.send(Done::Assigned { assignment, candidates, reply, result });
        });
    }

    fn revoke(&mut self, partitions: Vec<i32>, lost: bool, reply: Sender<Vec<(i32, i64)>>) {
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
        let until =
            Instant::now() + Duration::from_millis(self.config.kafka.revoke_deadline_ms) * 3 / 4;
        self.leaving.push(Leaving { partitions, reply, until });
    }

    /// Lets partitions go whose open batch is written, or whose time is over.
    fn let_go(&mut self) {
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

    /// Whether another chunk may be decoded: the batches have room for it.
    fn has_room(&self) -> bool {
        if self.backlog.is_empty() {
            return false;
        }
        let (mut rows, mut bytes) = (0, 0);
        for partition in self.partitions.values().filter(|p| !self.is_stuck(p)) {
            rows += partition.open.rows + partition.open.rejects;
            bytes += partition.open.tuples.len();
        }
        rows < 2 * self.config.batch.rows_max as u64 && bytes < self.config.batch.bytes_max
    }

    /// Whether a partition's batches are not written for so long that it must not count for others.
    fn is_stuck(&self, partition: &Partition) -> bool {
        partition.unacknowledged > 0
            || partition.repairing
            || (partition.in_flight && self.lane_of(partition.id).is_stuck())
    }

    /// Decodes one chunk, run by run of the same partition.
    fn take_chunk(&mut self) -> Result<(), Ended> {
        let chunk = match self.backlog.pop_front() {
            Some(Incoming::Chunk(chunk)) => chunk,
            Some(Incoming::OutOfRange { partition, next, low, high }) => {
                self.stop_out_of_range(partition, next, low, high);
                return Ok(());
            }
            Some(Incoming::Unreadable) => {
                self.partitions.values_mut().for_each(|p| p.suspect = true);
                return Ok(());
            }
            None => return Ok(()),
        };
        self.source.release(chunk.size_bytes());
        if self.shutdown.is_some() {
            return Ok(());
        }
        metrics::records_received(chunk.records.len() as u64);
        self.rules.now_ms = self.clock_ms();
        let chunk = Arc::new(chunk);
        let mut start = 0;
        while let Some(first) = chunk.records.get(start) {
            let same = chunk.records[start..].iter().take_while(|r| r.partition == first.partition);
            let run = start..start + same.count();
            start = run.end;
            self.take_run(first.partition, &chunk, run)?;
        }
        Ok(())
    }

    fn take_run(&mut self, id: i32, chunk: &Arc<Chunk>, run: Range<usize>) -> Result<(), Ended> {
        let Some(partition) = self.partitions.get_mut(&id) else { return Ok(()) };
        if chunk.assignment < partition.assignment || partition.leaving || partition.flood.is_some() {
            return Ok(());
        }
        let full = partition.open.rows + partition.open.rejects >= self.config.batch.rows_max as u64;
        let late = full && partition.wait.is_none() && self.partitions.get(&id).is_some_and(|p| self.is_stuck(p));
        let Some(partition) = self.partitions.get_mut(&id) else { return Ok(()) };
        if late {
            let letters = partition.unacknowledged > 0;
            partition.wait = Some(if letters { Wait::DeadLetters } else { Wait::Persist });
        }
        if partition.wait.is_some() {
            partition.parked.push_back((chunk.clone(), run));
            self.hold(id, true);
            return Ok(());
        }
        let mut brought = Brought::default();
        let taken =
            partition.take(chunk, run.clone(), &mut self.decoder, &self.rules, &mut brought);
        let epoch = partition.epoch;
        let outcome = match taken {
            Taken::All => Ok(()),
            Taken::Waits(index, wait) => {
                partition.wait = Some(wait);
                partition.parked.push_front((chunk.clone(), index..run.end));
                if let Wait::Schema(schema) = wait {
                    self.look_up(schema);
                }
                self.hold(id, true);
                Ok(())
            }
            Taken::Flood(why) => {
                partition.flood = Some(why);
                Ok(())
            }
            Taken::CreateTime => Err(Ended::Fatal(format!(
                "topic {} carries the producers' timestamps: set message.timestamp.type=LogAppendTime \
                 (`feed-worker topics apply`), or allow it by kafka.allow_create_time=true, \
                 and days close late or never",
                self.config.kafka.topic
            ))),
            Taken::Recreated => {
                let detail = "the record before the frontier is not the one that was persisted: \
                              was the topic created anew?";
                self.stop(id, epoch, Stop::Recreated, detail.to_owned());
                return Ok(());
            }
            Taken::Unreadable => {
                self.begin_again(id);
                Ok(())
            }
        };
        self.dead_letter(epoch, brought);
        outcome
    }

    /// Sends rejected records to the DLQ.
    fn dead_letter(&self, epoch: i64, brought: Brought) {
        metrics::key_mismatched(brought.key_mismatches);
        metrics::offsets_jumped(brought.offset_jumps);
        for letter in brought.rejects {
            metrics::rejected(letter.reject.reason.as_str(), 1);
            let (letters, done, partition) =
                (self.outside.dead_letters.clone(), self.done.clone(), letter.partition);
            tokio::spawn(async move {
                let _ = done.send(match letters.send(letter).await {
                    Ok(()) => Done::DeadLettered { partition, epoch },
                    Err(error) => Done::Failed(format!("the producer of dead letters: {error}")),
                });
            });
        }
    }

    /// Goes on with records that waited, until one has to wait again.
    fn unpark(&mut self, id: i32) -> Result<(), Ended> {
        loop {
            let Some(partition) = self.partitions.get_mut(&id) else { return Ok(()) };
            if partition.wait.is_some() {
                return Ok(());
            }
            let Some((chunk, run)) = partition.parked.pop_front() else { break };
            // `take_run` parks at the front what has to wait again.
            let parked = std::mem::take(&mut partition.parked);
            let result = self.take_run(id, &chunk, run);
            if let Some(partition) = self.partitions.get_mut(&id) {
                partition.parked.extend(parked);
            }
            result?;
        }
        self.hold(id, false);
        Ok(())
    }

    /// Holds the fetching of one partition back, or lets it go on.
    fn hold(&mut self, id: i32, hold: bool) {
        if let Some(partition) = self.partitions.get_mut(&id)
            && partition.held != hold
        {
            partition.held = hold;
            self.source.send(Command::Hold(id, hold));
        }
    }

    fn look_up(&mut self, id: u32) {
        if !self.looking_up.insert(id) {
            return;
        }
        let (registry, done) = (self.outside.registry.clone(), self.done.clone());
        tokio::spawn(async move {
            let answer = registry.look_up(id).await;
            let _ = done.send(Done::Schema { id, answer });
        });
    }

    /// Postgres's clock, as far as it is known.
    fn clock_ms(&self) -> i64 {
        self.clock.0 + self.clock.1.elapsed().as_millis() as i64
    }

    /// SIGTERM: nothing new is taken; what was taken is written, and files that are worth it go out.
    fn begin_shutdown(&mut self) {
        tracing::info!("shutting down: writing what was taken");
        self.outside.health.set_ready(false);
        let deadline = Duration::from_millis(self.config.shutdown.deadline_ms);
        self.shutdown = Some(Shutdown { until: Instant::now() + deadline, sealed: false });
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
    fn is_shut_down(&mut self) -> bool {
        let Some(shutdown) = &mut self.shutdown else { return false };
        if Instant::now() >= shutdown.until {
            tracing::warn!("the shutdown deadline is over: the next owner goes on from the ledger");
            return true;
        }
        if !self.partitions.values().all(Partition::is_written) {
            return false;
        }
        if !std::mem::replace(&mut shutdown.sealed, true) {
            self.seal_for_shutdown();
            return false;
        }
        self.partitions.values().all(|p| !p.exporter.is_uploading())
    }

    /// Tells the poll thread to commit and leave, and waits a moment for it.
    async fn end(self, mut events: UnboundedReceiver<SourceEvent>) {
        let frontiers = self.partitions.values().map(|p| (p.id, p.frontier)).collect();
        self.source.send(Command::Shutdown(frontiers));
        // The callback that runs while the consumer closes finds nobody to ask, and goes on at once.
        events.close();
        while events.try_recv().is_ok() {}
        let until = Instant::now() + Duration::from_secs(5);
        while !self.source.is_finished() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The limits were exceeded: once the ledger has the counts, the worker ends.
    fn flood_if_written(&self) -> Result<(), Ended> {
        let flooded = self.partitions.values().find(|p| p.flood.is_some() && p.is_written());
        match flooded.and_then(|p| p.flood.as_ref().map(|why| (p.id, why))) {
            None => Ok(()),
            Some((partition, why)) => Err(Ended::Flood(
                LedgerError::Flood { partition, why: why.clone() }.to_string(),
            )),
        }
    }
}

fn start_lane(
    config: &Config,
    number: usize,
    done: UnboundedSender<Done>,
) -> Result<LaneHandle, sqlx::Error> {
    let mut lane = Lane::new(config)?;
    let (jobs, mut inbox) = unbounded_channel();
    tokio::spawn(async move {
        while let Some(job) = inbox.recv().await {
            let result = lane.persist(job).await;
            if done.send(Done::Persisted { lane: number, result }).is_err() {
                break;
            }
        }
    });
    Ok(LaneHandle { jobs, busy: None })
}

/// The day of a moment, `delay` after which the day before is taken to be over.
fn day_reached(now_ms: i64, delay_ms: u64) -> i32 {
    row::day_of_ms(now_ms - delay_ms as i64)
}
