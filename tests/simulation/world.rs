//! The world that simulated workers live in: one clock, one seed, and a network that does what it wants.
//!
//! 1. Whatever a worker asks travels as a request of its own: it may arrive late, be lost, or be applied
//!    without the worker ever hearing of it; and it goes on when the worker is dead or stopped.
//! 2. A dead worker never asks or hears again; a stopped one neither, until it goes on.
//! 3. All chance comes from the seed, in an order that only the seed decides.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};
use xxhash_rust::xxh3::Xxh3Default;

use crate::bucket::{Object, SCHEMA_ID};
use crate::kafka::Kafka;
use crate::ledger::Ledger;
use crate::plan::{Plan, Rates};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    Postgres,
    Store,
    Brokers,
    DeadLetters,
    Registry,
}

impl Service {
    pub const ALL: [Service; 5] =
        [Service::Postgres, Service::Store, Service::Brokers, Service::DeadLetters, Service::Registry];

    /// How long the client waits when nothing comes back at all.
    fn patience(self) -> Duration {
        Duration::from_millis(match self {
            Service::Postgres => 15_000,
            Service::Store => 8_000,
            Service::Brokers | Service::DeadLetters | Service::Registry => 5_000,
        })
    }
}

/// A lock in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lock {
    Topic,
    Partition(i32),
}

/// What a database session is doing, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    Nothing,
    /// COPY waits for rows from its client.
    Copying(Instant),
    /// A statement runs.
    Running,
    /// A transaction waits for its next statement.
    Idle(Instant),
}

/// A session, as the database sees it.
pub struct Session {
    pub of: (usize, u64),
    pub doing: Doing,
    pub locks: BTreeSet<Lock>,
    pub staged: Vec<(crate::ledger::Key, Vec<u8>)>,
    pub moves: Vec<feed_worker::postgres::lane::PartitionBatch>,
}

/// A worker, as the simulation sees it.
#[derive(Default)]
pub struct Worker {
    pub incarnation: u64,
    pub alive: bool,
    pub frozen_until: Option<Instant>,
    /// Its clock, against the world's.
    pub skew_ms: i64,
    /// It dies at this many calls from now; before the request is sent, or when it was applied.
    pub dies_in: Option<(u64, bool)>,
    pub tasks: Vec<AbortHandle>,
    pub stop: Option<oneshot::Sender<()>>,
}

pub struct World {
    pub rng: SmallRng,
    pub rates: Rates,
    pub started: Instant,
    pub wall_ms: i64,
    pub broker_skew_ms: i64,
    pub away: BTreeMap<Service, (Instant, bool)>,
    pub ledger: Ledger,
    pub sessions: BTreeMap<u64, Session>,
    pub sessions_begun: u64,
    pub bucket: BTreeMap<String, Object>,
    pub letters: Vec<(i32, i64)>,
    /// Whatever was tried to be sent to the DLQ.
    pub letters_tried: Vec<(i32, i64)>,
    /// What the registry has, and how often it still answers as if it had nothing.
    pub schemas: BTreeSet<u32>,
    pub stale_answers: u32,
    /// Records that the database refuses although the worker accepts them.
    pub refused: BTreeSet<(i32, i64)>,
    pub kafka: Kafka,
    pub workers: Vec<Worker>,
    pub counts: BTreeMap<&'static str, u64>,
    trace: Xxh3Default,
    pub log: Option<Vec<String>>,
}

pub type Shared = Arc<Mutex<World>>;

/// The world, for a moment. Nothing waits while it is held.
pub fn of(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().expect("no task panics while it holds the world")
}

impl World {
    pub fn new(plan: &Plan, verbose: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(plan.seed ^ 0x5eed);
        let workers = (0..plan.workers)
            .map(|_| Worker { skew_ms: rng.random_range(-60_000..60_000), ..Worker::default() })
            .collect();
        World {
            rng,
            rates: plan.rates,
            started: Instant::now(),
            wall_ms: plan.wall_ms,
            broker_skew_ms: 0,
            away: BTreeMap::new(),
            ledger: Ledger { without: plan.without, ..Ledger::default() },
            sessions: BTreeMap::new(),
            sessions_begun: 0,
            bucket: BTreeMap::new(),
            letters: Vec::new(),
            letters_tried: Vec::new(),
            schemas: BTreeSet::from([SCHEMA_ID]),
            stale_answers: 0,
            refused: BTreeSet::new(),
            kafka: Kafka::new(plan.partitions),
            workers,
            counts: BTreeMap::new(),
            trace: Xxh3Default::new(),
            log: verbose.then(Vec::new),
        }
    }

    /// The world's clock, which is Postgres's too.
    pub fn now_ms(&self) -> i64 {
        self.wall_ms + self.started.elapsed().as_millis() as i64
    }

    pub fn broker_ms(&self) -> i64 {
        self.now_ms() + self.broker_skew_ms
    }

    /// Writes down that something happened: the same seed makes the same trace.
    pub fn told(&mut self, what: impl FnOnce() -> String) {
        let line = format!("{:>7} {}", self.started.elapsed().as_millis(), what());
        self.trace.update(line.as_bytes());
        if let Some(log) = &mut self.log {
            log.push(line);
        }
    }

    pub fn trace(&self) -> u64 {
        self.trace.digest()
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn chance(&mut self, permille: u32) -> bool {
        permille > 0 && self.rng.random_range(0..1000) < permille
    }

    /// Ends a worker at once, as `kill -9` does. Its sessions end when the database notices.
    pub fn kill(&mut self, slot: usize, world: &Shared) {
        let worker = &mut self.workers[slot];
        if !worker.alive {
            return;
        }
        worker.alive = false;
        worker.stop = None;
        worker.dies_in = None;
        worker.frozen_until = None;
        worker.tasks.drain(..).for_each(|task| task.abort());
        let of = (slot, worker.incarnation);
        self.count("worker killed");
        self.told(|| format!("worker {slot} dies"));
        // Sometimes its host is gone with it, and nobody closes its connections.
        let after = if self.chance(200) { 15_000 } else { self.rng.random_range(0..30) };
        for id in self.sessions.iter().filter(|(_, s)| s.of == of).map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end_session_later(id, after, world);
        }
    }

    /// A session's client is gone: its transaction is rolled back when that is noticed.
    pub fn end_session_later(&mut self, id: u64, after_ms: u64, world: &Shared) {
        let world = world.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(after_ms)).await;
            of(&world).sessions.remove(&id);
        });
    }

    /// Whether a lock can be had by `session`; a transaction that idles for too long is ended.
    pub fn is_free(&mut self, lock: Lock, session: u64) -> bool {
        self.expire();
        !self.sessions.iter().any(|(id, s)| *id != session && s.locks.contains(&lock))
    }

    /// `idle_in_transaction_session_timeout`
    pub fn expire(&mut self) {
        let now = Instant::now();
        self.sessions.retain(|_, s| !matches!(s.doing, Doing::Idle(since) if now - since > IDLE_TIMEOUT));
    }
}

/// As the worker's sessions ask for it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// One life of one worker.
#[derive(Clone)]
pub struct Me {
    pub world: Shared,
    pub slot: usize,
    pub incarnation: u64,
}

impl Me {
    /// Returns when the worker may go on: at once, when it is no longer stopped, or never.
    pub async fn gate(&self) {
        loop {
            let wait = {
                let world = of(&self.world);
                let worker = &world.workers[self.slot];
                let alive = worker.alive && worker.incarnation == self.incarnation;
                alive.then_some(worker.frozen_until.filter(|until| *until > Instant::now()))
            };
            match wait {
                None => std::future::pending().await,
                Some(None) => return,
                Some(Some(until)) => sleep_until(until).await,
            }
        }
    }

    /// Asks a service something. `apply` is what the service does when the request reaches it.
    pub async fn call<T, F>(
        &self,
        service: Service,
        what: &'static str,
        apply: impl FnOnce(Shared) -> F + Send + 'static,
    ) -> Result<T, String>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.gate().await;
        if self.dies_now(true) {
            std::future::pending::<()>().await;
        }
        let (reply, answer) = oneshot::channel();
        let fate = of(&self.world).fate(service);
        let (world, slot) = (self.world.clone(), self.slot);
        let me = self.clone();
        tokio::spawn(async move {
            let mut reply = Some(reply);
            if let Some(early) = fate.error_after {
                // The worker hears of a failure before, or without, the request being applied.
                sleep(early.min(fate.request)).await;
                if let Some(reply) = reply.take() {
                    let _ = reply.send(Err("the connection is gone".to_owned()));
                }
                sleep(fate.request.saturating_sub(early)).await;
            } else {
                sleep(fate.request).await;
            }
            if !fate.arrives {
                of(&world).told(|| format!("{slot} {what}: lost on its way"));
                if fate.silent {
                    sleep(service.patience()).await;
                }
                if let Some(reply) = reply.take() {
                    let _ = reply.send(Err("no answer".to_owned()));
                }
                return;
            }
            let result = apply(world.clone()).await;
            of(&world).told(|| format!("{slot} {what}"));
            me.dies_now(false);
            sleep(fate.answer).await;
            let Some(reply) = reply.take() else { return };
            if fate.answered {
                let _ = reply.send(Ok(result));
            } else {
                if fate.silent {
                    sleep(service.patience()).await;
                }
                let _ = reply.send(Err("the answer was lost".to_owned()));
            }
        });
        let answer = answer.await.unwrap_or_else(|_| Err("nobody answers".to_owned()));
        self.gate().await;
        answer
    }

    /// Counts down to the call at which the worker dies.
    fn dies_now(&self, before: bool) -> bool {
        let mut world = of(&self.world);
        let worker = &mut world.workers[self.slot];
        if !worker.alive || worker.incarnation != self.incarnation {
            return true;
        }
        let dies = match &mut worker.dies_in {
            Some((0, at_request)) => *at_request == before,
            Some((calls, _)) if before => {
                *calls -= 1;
                false
            }
            _ => false,
        };
        if dies {
            world.count(if before { "died before a call" } else { "died before an answer" });
            world.kill(self.slot, &self.world);
        }
        dies
    }
}

/// What becomes of one request.
struct Fate {
    request: Duration,
    answer: Duration,
    arrives: bool,
    answered: bool,
    /// Nothing comes back until the client gives up.
    silent: bool,
    /// The worker is told of a failure after this long, whatever becomes of the request.
    error_after: Option<Duration>,
}

impl World {
    fn fate(&mut self, service: Service) -> Fate {
        let rates = self.rates;
        let slow = self.chance(rates.slow);
        let most = if slow { 1_500 } else { 8 };
        let mut fate = Fate {
            request: Duration::from_millis(self.rng.random_range(0..most)),
            answer: Duration::from_millis(self.rng.random_range(0..most)),
            arrives: true,
            answered: true,
            silent: false,
            error_after: None,
        };
        if let Some((_, silent)) = self.away.get(&service).filter(|(until, _)| *until > Instant::now()) {
            fate.arrives = false;
            fate.silent = *silent;
            self.count("call while away");
        } else if self.chance(rates.lost_request) {
            fate.arrives = false;
            fate.silent = self.chance(150);
            self.count("request lost");
        } else if self.chance(rates.lost_answer) {
            fate.answered = false;
            fate.silent = self.chance(150);
            self.count("answer lost");
        } else if self.chance(rates.late) {
            fate.error_after = Some(Duration::from_millis(self.rng.random_range(1..200)));
            fate.request = Duration::from_millis(self.rng.random_range(50..12_000));
            self.count("request late");
        }
        fate
    }
}
