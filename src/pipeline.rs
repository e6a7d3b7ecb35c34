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

mod anchors;
mod catch_up;
mod export_side;
mod figures;
mod intake;
mod membership;
mod memory;
mod parts;
mod persist_side;
mod schemas;
mod silence;
mod stops;

use anchors::Anchors;
use catch_up::Reading;
use figures::Figures;
pub use figures::Measured;
pub use parts::{Done, Ended, Reply};
use parts::{Incoming, LaneHandle, Leaving, Shutdown, Stopped, Tasks};
use schemas::Schemas;
use silence::Silence;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use crate::assignment::Assigner;
use crate::config::Config;
use crate::event::{Decoder, InteractionTypes};
use crate::export::day::DayFinisher;
use crate::export::exporter::RollLimits;
use crate::export::upload::Uploader;
use crate::kafka::source::{Source, SourceEvent};
use crate::outside::{Database, Outside};
use crate::partition::{AbortOnDrop, Partition, Rules};
use crate::placement::Placement;
use crate::postgres::lane::Lane;
use crate::postgres::ledger::LedgerError;
use crate::reject_limit::RejectLimits;
use crate::row;
use crate::telemetry::metrics;

/// How often exports, days and metrics are looked after. Longer delays rolls and days; shorter is
/// work without use.
const HOUSEKEEPING: Duration = Duration::from_millis(100);

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
    /// Those of the first server, those of the second, and so on.
    lanes: Vec<LaneHandle>,
    placement: Placement,
    decoder: Decoder,
    partitions: BTreeMap<i32, Partition>,
    /// Partitions that wait for an operator, with the reason.
    stopped: BTreeMap<i32, Stopped>,
    /// Partitions that the group has given to this worker.
    given: BTreeSet<i32>,
    /// Partitions that were lost at the ledger and not yet taken back by the group.
    fenced: BTreeMap<i32, Instant>,
    backlog: VecDeque<Incoming>,
    schemas: Schemas,
    leaving: Vec<Leaving>,
    tasks: Tasks,
    clock: (i64, Instant),
    settled_at: Instant,
    housekept_at: Instant,
    /// Where reading back stands, for each server.
    reading: Vec<Reading>,
    /// What a row of the last chunk that was read back took; 0 before there was one.
    read_row_bytes: usize,
    store_away_since: Option<Instant>,
    probing: bool,
    /// Who asks the bucket about partitions that were taken over while it was away, and under which epochs.
    asking_bucket: Vec<(BTreeMap<i32, i64>, AbortOnDrop)>,
    anchors: Anchors,
    silences: BTreeMap<i32, Silence>,
    asking_silent: bool,
    finishing: bool,
    finished_at: Option<Instant>,
    asked_released_at: Instant,
    asked_clock_at: Instant,
    figures: Figures,
    shutdown: Option<Shutdown>,
    joined: bool,
    ledger_reached: bool,
    asking_ledger: bool,
}

impl Pipeline {
    /// Builds the pipeline and starts the lanes. Errors: the configured weights.
    pub fn start(
        config: Config,
        outside: Outside,
        source: Source,
    ) -> anyhow::Result<(Self, UnboundedReceiver<Done>)> {
        let (done, completions) = unbounded_channel();
        let types = InteractionTypes::parse(&config.interactions.weights)
            .map_err(|why| anyhow::anyhow!("interactions.weights: {why}"))?;
        let limits = RejectLimits {
            run_max: config.rejects.run_max as i64,
            ratio_max: config.rejects.ratio_max,
            window: config.rejects.window as i32,
        };
        let assigner = Assigner {
            database: outside.database.clone(),
            store: outside.store.clone(),
            broker: outside.broker.clone(),
            who: outside.who.clone(),
            prefix: config.s3.prefix.clone(),
            limits,
        };
        let uploader = Uploader {
            store: outside.store.clone(),
            database: outside.database.clone(),
            prefix: config.s3.prefix.clone(),
            done: done.clone(),
        };
        let finisher = DayFinisher {
            store: outside.store.clone(),
            database: outside.database.clone(),
            broker: outside.broker.clone(),
            topic: config.kafka.topic.clone(),
            prefix: config.s3.prefix.clone(),
        };
        let servers = config.postgres.urls().count();
        let lanes = (0..servers * config.postgres.lanes)
            .map(|lane| start_lane(&config, outside.database.as_ref(), lane, done.clone()))
            .collect();
        let (now, now_ms) = (Instant::now(), (outside.clock)());
        let pipeline = Pipeline {
            rules: Rules {
                limits,
                types: types.clone(),
                allow_create_time: config.kafka.allow_create_time,
                now_ms,
                ingested_at_ms: now_ms,
            },
            roll: RollLimits {
                rows_max: config.roll.rows_max,
                bytes_max: config.roll.bytes_max,
                age_ms_max: config.roll.age_ms_max as i64,
                row_group_rows: config.export.row_group_rows,
            },
            decoder: Decoder::new(types),
            placement: config.postgres.placed(),
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
            schemas: Schemas::default(),
            leaving: Vec::new(),
            tasks: Tasks(done),
            clock: (now_ms, now),
            settled_at: now,
            housekept_at: now,
            reading: vec![Reading::new(now); servers],
            read_row_bytes: 0,
            store_away_since: None,
            probing: false,
            asking_bucket: Vec::new(),
            anchors: Anchors::new(now),
            silences: BTreeMap::new(),
            asking_silent: false,
            finishing: false,
            finished_at: None,
            asked_released_at: now,
            asked_clock_at: now,
            figures: Figures::new(now),
            shutdown: None,
            joined: false,
            ledger_reached: false,
            asking_ledger: false,
        };
        Ok((pipeline, completions))
    }

    /// Runs until `stop` resolves and everything is put in order, or something ends the worker.
    pub async fn run(
        &mut self,
        mut events: UnboundedReceiver<SourceEvent>,
        mut completions: UnboundedReceiver<Done>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Ended> {
        let mut stop = std::pin::pin!(stop);
        let ended = loop {
            let wake = self.next_wake();
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
            self.look_after_silence();
            self.look_after_anchors();
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
        &self.lanes[self.placement.lane_of(id, self.config.postgres.lanes)]
    }

    fn on_source(&mut self, event: SourceEvent) -> Result<(), Ended> {
        match event {
            SourceEvent::Chunk(chunk) => self.backlog.push_back(Incoming::Chunk(chunk)),
            SourceEvent::Assign { assignment, candidates, until, reply } => {
                metrics::rebalanced("assign");
                self.given.extend(candidates.iter().map(|c| c.partition));
                self.assign(assignment, candidates, until, Reply::Callback(reply));
            }
            SourceEvent::Joined => self.set_joined(true),
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
                self.anchors.ask_soon();
                // What was read before it is still good, and is written first.
                self.backlog.push_back(Incoming::OutOfRange { partition, next, low, high });
            }
            SourceEvent::Fatal(why) => return Err(Ended::Fatal(format!("kafka client: {why}"))),
        }
        Ok(())
    }

    /// Postgres's clock, as far as it is known.
    fn clock_ms(&self) -> i64 {
        self.clock.0 + self.clock.1.elapsed().as_millis() as i64
    }

    /// The limits were exceeded: once the ledger has the counts, the worker ends.
    fn flood_if_written(&self) -> Result<(), Ended> {
        let flooded = self.partitions.values().find(|p| p.flood.is_some() && p.is_written());
        match flooded.and_then(|p| p.flood.as_ref().map(|why| (p.id, why))) {
            None => Ok(()),
            Some((partition, why)) => {
                Err(Ended::Flood(LedgerError::Flood { partition, why: why.clone() }.to_string()))
            }
        }
    }
}

fn start_lane(
    config: &Config,
    database: &dyn Database,
    number: usize,
    done: UnboundedSender<Done>,
) -> LaneHandle {
    let deadline = Duration::from_millis(config.postgres.deadline_ms);
    let mut lane = Lane::new(database.session(number / config.postgres.lanes), deadline);
    let (jobs, mut inbox) = unbounded_channel();
    tokio::spawn(async move {
        while let Some(job) = inbox.recv().await {
            let result = lane.persist(job).await;
            if done.send(Done::Persisted { lane: number, result }).is_err() {
                break;
            }
        }
    });
    LaneHandle { jobs, busy: None }
}

/// The day of a moment, `delay` after which the day before is taken to be over.
fn day_reached(now_ms: i64, delay_ms: u64) -> i32 {
    row::day_of_ms(now_ms - delay_ms as i64)
}
