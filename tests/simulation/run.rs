//! One run: workers, producers and faults for a while, then quiet until nothing is left to do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use feed_worker::config::Config;
use feed_worker::kafka::source::Source;
use feed_worker::outside::Outside;
use feed_worker::pipeline::{Ended, Pipeline};
use feed_worker::postgres::ledger::Identity;
use feed_worker::row;
use feed_worker::telemetry::health::Health;
use rand::Rng;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use crate::bucket::{Bucket, Letters, PREFIX, Registry, SCHEMA_ID};
use crate::checker;
use crate::database::Db;
use crate::kafka::{ASSIGN_DEADLINE, Brokers, Entry, Kind, Poller, REVOKE_DEADLINE, heartbeats};
use crate::plan::{Fault, Plan, Rates};
use crate::world::{Me, Shared, World, of};

pub const TOPIC: &str = "events";
/// Virtual time after the last fault in which everything must have come to rest.
const HEALS_WITHIN: Duration = Duration::from_secs(240);
const DAY_MS: i64 = 86_400_000;

/// How a run went.
pub struct Outcome {
    pub trace: u64,
    pub counts: BTreeMap<&'static str, u64>,
    /// What was wrong, if anything.
    pub wrong: Vec<String>,
    pub log: Vec<String>,
}

/// Runs a plan to its end.
pub fn run(plan: &Plan, verbose: bool) -> Outcome {
    feed_worker::retry::seed_jitter(plan.seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime needs nothing");
    runtime.block_on(simulate(plan, verbose))
}

async fn simulate(plan: &Plan, verbose: bool) -> Outcome {
    let world: Shared = Arc::new(Mutex::new(World::new(plan, verbose)));
    let producer = tokio::spawn(produce(world.clone(), plan.clone()));
    for slot in 0..plan.workers {
        start_worker(&world, plan, slot);
    }
    let started = of(&world).started;
    for (at_ms, fault) in &plan.faults {
        sleep_until(started + Duration::from_millis(*at_ms)).await;
        inject(&world, plan, fault);
    }
    sleep_until(started + Duration::from_millis(plan.for_ms)).await;
    producer.abort();
    let wrong = heal(&world, plan).await;
    for slot in 0..plan.workers {
        let clone = world.clone();
        of(&world).kill(slot, &clone);
    }
    // The requests that are still on their way arrive, and change nothing.
    sleep(Duration::from_secs(20)).await;
    let mut world = of(&world);
    let mut problems = wrong;
    problems.append(&mut world.ledger.violations.clone());
    problems.extend(checker::check(&world));
    let trace = world.trace();
    let log = world.log.take().unwrap_or_default();
    Outcome { trace, counts: world.counts.clone(), wrong: problems, log }
}

pub fn config(plan: &Plan) -> Config {
    let mut config = Config::default();
    config.kafka.topic = TOPIC.to_owned();
    config.kafka.assign_deadline_ms = ASSIGN_DEADLINE.as_millis() as u64;
    config.kafka.revoke_deadline_ms = REVOKE_DEADLINE.as_millis() as u64;
    config.kafka.queued_kbytes_max = 0;
    config.postgres.lanes = plan.lanes;
    config.s3.prefix = PREFIX.to_owned();
    config.batch.rows_max = plan.batch_rows;
    config.batch.age_ms_max = plan.batch_age_ms;
    config.roll.rows_max = plan.roll_rows;
    config.roll.age_ms_max = plan.roll_age_ms;
    config.export.catch_up_rows = plan.catch_up_rows;
    config.export.settle_ms = plan.settle_ms;
    config.export.memory_bytes_max = plan.memory_bytes;
    config.export.shutdown_rows_min = plan.shutdown_rows_min;
    config.rejects.ratio_max = 1.0;
    config.day.close_delay_ms = plan.close_delay_ms;
    config.shutdown.deadline_ms = 3_000;
    config
}

/// Starts a worker in its slot, unless it runs.
fn start_worker(world: &Shared, plan: &Plan, slot: usize) {
    let me = {
        let mut guard = of(world);
        let worker = &mut guard.workers[slot];
        if worker.alive {
            return;
        }
        worker.alive = true;
        worker.incarnation += 1;
        let incarnation = worker.incarnation;
        guard.told(|| format!("worker {slot} starts"));
        guard.count("worker started");
        Me { world: world.clone(), slot, incarnation }
    };
    let (source, events, end) = Source::pair();
    let (mut pipeline, completions) =
        Pipeline::start(config(plan), outside(&me), source).expect("the weights are ours");
    let (stop, stopped) = oneshot::channel::<()>();
    let stop_asked = async move {
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let (ender, plan) = (me.clone(), plan.clone());
    let frozen = me.clone();
    let pipeline = tokio::spawn(async move {
        let ended = Stoppable {
            me: frozen,
            inner: Box::pin(async move { pipeline.run(events, completions, stop_asked).await }),
            wake: None,
        }
        .await;
        over(&ender, &plan, ended);
    });
    let tasks = [
        pipeline.abort_handle(),
        tokio::spawn(Poller::new(me.clone(), end).run()).abort_handle(),
        tokio::spawn(heartbeats(me)).abort_handle(),
    ];
    let worker = &mut of(world).workers[slot];
    worker.tasks = tasks.to_vec();
    worker.stop = Some(stop);
}

/// What one life of a worker talks to.
pub fn outside(me: &Me) -> Outside {
    let clock = {
        let me = me.clone();
        Arc::new(move || {
            let world = of(&me.world);
            world.now_ms() + world.workers[me.slot].skew_ms
        })
    };
    Outside {
        database: Arc::new(Db(me.clone())),
        broker: Arc::new(Brokers(me.clone())),
        store: Arc::new(Bucket(me.clone())),
        dead_letters: Arc::new(Letters(me.clone())),
        schemas: Arc::new(Registry(me.clone())),
        clock,
        who: Identity {
            topic: TOPIC.to_owned(),
            cluster_id: "cluster".to_owned(),
            group_id: "group".to_owned(),
            owner: format!("{}/{}", me.slot, me.incarnation),
        },
        health: Health::new(Duration::from_secs(60)),
    }
}

/// A pipeline that does nothing while its worker is stopped.
struct Stoppable<F> {
    me: Me,
    inner: std::pin::Pin<Box<F>>,
    wake: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

impl<F: Future> Future for Stoppable<F> {
    type Output = F::Output;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let until = of(&self.me.world).workers[self.me.slot].frozen_until;
        if let Some(until) = until.filter(|until| *until > Instant::now()) {
            let mut wake = Box::pin(sleep_until(until));
            let _ = wake.as_mut().poll(context);
            self.wake = Some(wake);
            return std::task::Poll::Pending;
        }
        self.wake = None;
        self.inner.as_mut().poll(context)
    }
}

/// A worker's process ended by itself: it is started again, as a supervisor would.
fn over(me: &Me, plan: &Plan, ended: Result<(), Ended>) {
    {
        let mut world = of(&me.world);
        world.count(if ended.is_ok() { "worker shut down" } else { "worker ended" });
        world.told(|| format!("worker {} ends: {:?}", me.slot, ended.err().map(|e| e.to_string())));
    }
    let clone = me.world.clone();
    of(&me.world).kill(me.slot, &clone);
    restart_later(me, plan, 500);
}

fn restart_later(me: &Me, plan: &Plan, after_ms: u64) {
    let (me, plan) = (me.clone(), plan.clone());
    tokio::spawn(async move {
        sleep(Duration::from_millis(after_ms)).await;
        let same = of(&me.world).workers[me.slot].incarnation == me.incarnation;
        if same {
            start_worker(&me.world, &plan, me.slot);
        }
    });
}

/// The present life of a worker.
fn life(world: &Shared, slot: usize) -> Me {
    Me { world: world.clone(), slot, incarnation: of(world).workers[slot].incarnation }
}

fn inject(world: &Shared, plan: &Plan, fault: &Fault) {
    of(world).told(|| format!("fault: {fault:?}"));
    let now = Instant::now();
    let ms = Duration::from_millis;
    match *fault {
        Fault::Crash { slot, back_ms } => {
            of(world).kill(slot, world);
            restart_later(&life(world, slot), plan, back_ms);
        }
        Fault::CrashAtCall { slot, calls, before, back_ms } => {
            of(world).workers[slot].dies_in = Some((calls, before));
            // Whatever becomes of it, the worker comes back.
            restart_later(&life(world, slot), plan, back_ms + 2_000);
        }
        Fault::Freeze { slot, for_ms } => {
            let mut world = of(world);
            if world.workers[slot].alive {
                world.workers[slot].frozen_until = Some(now + ms(for_ms));
                world.count("worker stopped for a while");
            }
        }
        Fault::Shutdown { slot, back_ms } => {
            let stop = of(world).workers[slot].stop.take();
            if stop.is_some_and(|stop| stop.send(()).is_ok()) {
                restart_later(&life(world, slot), plan, back_ms + 4_000);
            }
        }
        Fault::Away { service, for_ms, silent } => {
            of(world).away.insert(service, (now + ms(for_ms), silent));
            of(world).count("service away");
        }
        Fault::Rebalance => of(world).rebalance(),
        Fault::Midnight { in_ms } => midnight(&mut of(world), in_ms),
        Fault::BrokerClock { skew_ms } => of(world).broker_skew_ms = skew_ms,
        Fault::Grow => {
            let mut world = of(world);
            let next = world.kafka.log.len() as i32;
            world.kafka.log.insert(next, Vec::new());
            world.count("partition added");
            world.rebalance();
        }
        Fault::Unreadable { slot } => drop(of(world).kafka.unreadable.insert(slot)),
        Fault::Idle { for_ms } => of(world).kafka.idle_until = Some(now + ms(for_ms)),
    }
}

/// Moves every clock on, so that the next midnight is so many ms away.
pub fn midnight(world: &mut World, in_ms: i64) {
    let now_ms = world.now_ms();
    world.wall_ms += DAY_MS - now_ms.rem_euclid(DAY_MS) - in_ms;
    world.count("midnight");
}

async fn produce(world: Shared, plan: Plan) {
    let mut left = plan.records;
    while left > 0 {
        let pause_ms = of(&world).rng.random_range(1..=(2 * plan.for_ms / plan.records).max(2));
        sleep(Duration::from_millis(pause_ms)).await;
        let mut world = of(&world);
        if world.kafka.idle_until.is_some_and(|until| until > Instant::now()) {
            continue;
        }
        let partitions = world.kafka.log.len() as i32;
        let partition = world.rng.random_range(0..partitions);
        for _ in 0..world.rng.random_range(1..5) {
            append(&mut world, &plan, partition);
            left = left.saturating_sub(1);
        }
    }
}

/// Appends a record. Its user's number says where it stands.
fn append(world: &mut World, plan: &Plan, partition: i32) {
    let draw = world.rng.random_range(0..1000);
    let avro = world.rng.random_range(0..1000) < plan.avro_permille;
    let (timestamp_ms, offset) = (world.broker_ms(), world.kafka.high(partition));
    let kind = match draw {
        _ if draw < plan.bad_permille => Kind::Bad,
        _ if draw < plan.bad_permille * 5 / 4 => Kind::Refused,
        _ if draw > 970 => Kind::Marker,
        _ => Kind::Good,
    };
    if kind == Kind::Refused {
        world.refused.insert((partition, offset));
    }
    let user = checker::user(partition, offset);
    let value = match (kind, avro) {
        (Kind::Bad, false) => b"{\"userId\":".to_vec(),
        // A schema that the registry does not have.
        (Kind::Bad, true) => vec![0, 0, 0, 0, 99, 1, 2, 3],
        (_, false) => format!(
            r#"{{"userId":"{user}","videoId":"{user}","interactionType":"view","timestamp":{timestamp_ms}}}"#
        )
        .into_bytes(),
        (_, true) => avro_value(SCHEMA_ID, &user.to_string(), timestamp_ms),
    };
    let entry = Entry { kind, timestamp_ms, value };
    world.kafka.log.entry(partition).or_default().push(entry);
    world.count(match kind {
        Kind::Good => "good record",
        Kind::Bad => "bad record",
        Kind::Refused => "refused record",
        Kind::Marker => "marker",
    });
}

/// An event in the one schema that there is, under an id.
pub fn avro_value(schema_id: u32, user: &str, timestamp_ms: i64) -> Vec<u8> {
    fn long(out: &mut Vec<u8>, value: i64) {
        let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
    let mut out = vec![0];
    out.extend_from_slice(&schema_id.to_be_bytes());
    for text in [user, user, "view"] {
        long(&mut out, text.len() as i64);
        out.extend_from_slice(text.as_bytes());
    }
    long(&mut out, timestamp_ms);
    out
}

/// No more faults: one worker, or two, and time until nothing is left to do.
async fn heal(world: &Shared, plan: &Plan) -> Vec<String> {
    {
        let mut guard = of(world);
        guard.told(|| "no more faults".to_owned());
        guard.rates = Rates::default();
        guard.away.clear();
        guard.broker_skew_ms = 0;
        guard.kafka.idle_until = None;
        guard.kafka.unreadable.clear();
        for worker in &mut guard.workers {
            worker.dies_in = None;
            worker.frozen_until =
                worker.frozen_until.map(|until| until.min(Instant::now() + Duration::from_secs(2)));
        }
        // A jump over what could not be read is only seen by what comes after it.
        let partitions: Vec<i32> = guard.kafka.log.keys().copied().collect();
        for partition in partitions {
            append(&mut guard, plan, partition);
        }
        midnight(&mut guard, 300);
        for slot in 1..plan.workers {
            if guard.rng.random_bool(0.6) {
                guard.kill(slot, world);
            }
        }
    }
    sleep(Duration::from_secs(1)).await;
    start_worker(world, plan, 0);
    let until = Instant::now() + HEALS_WITHIN;
    loop {
        sleep(Duration::from_millis(500)).await;
        let missing = checker::left_to_do(&of(world));
        if missing.is_empty() {
            return Vec::new();
        }
        if Instant::now() >= until {
            return missing.into_iter().map(|what| format!("not done in time: {what}")).collect();
        }
    }
}

/// The day that the world is in.
pub fn today(world: &World) -> i32 {
    row::day_of_ms(world.now_ms())
}
