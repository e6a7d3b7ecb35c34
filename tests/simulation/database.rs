//! The database that workers talk to: the ledger in memory, behind sessions, locks and a network.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use feed_worker::export::manifest::{FileEntry, GapEntry};
use feed_worker::kafka::rebalance::Candidate;
use feed_worker::outside::{self, Database, DatabaseFuture};
use feed_worker::postgres::lane::{Job, PartitionBatch};
use feed_worker::postgres::ledger::{
    Assigned, Entered, Identity, LedgerError, NewFile, NewestObject, Owned, Stop,
};
use feed_worker::postgres::reread::{Range, Reread};
use feed_worker::postgres::transaction::Failure;
use feed_worker::reject_limit::RejectLimits;
use futures::future::BoxFuture;
use rand::Rng;
use tokio::time::{Instant, sleep};

use crate::ledger::{Ledger, keyed};
use crate::plan::Protection;
use crate::world::{Doing, Lock, Me, Service, Session, Shared, World, of};

/// `statement_timeout`, which is also how old a COPY must be to be ended by somebody else.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// `lock_timeout` of a lane's session.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a statement that waits for a lock looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(17);

pub struct Db(pub Me);

fn world_error(why: String) -> sqlx::Error {
    sqlx::Error::Protocol(why)
}

/// Waits until `ready`; false when it takes longer than `most`.
async fn wait_until(world: &Shared, most: Duration, mut ready: impl FnMut(&mut World) -> bool) -> bool {
    let until = Instant::now() + most;
    loop {
        if ready(&mut of(world)) {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        of(world).count("waited for a lock");
        sleep(LOOK_AGAIN).await;
    }
}

impl Db {
    /// One statement of the pool, which waits for locks and then happens at one moment.
    fn statement<'a, T: Send + 'static>(
        &'a self,
        what: &'static str,
        locks: Vec<Lock>,
        apply: impl FnOnce(&mut World) -> T + Send + 'static,
    ) -> DatabaseFuture<'a, T> {
        Box::pin(async move {
            let run = async move |world: Shared| {
                let free = |w: &mut World| locks.iter().all(|lock| w.is_free(*lock, 0));
                wait_until(&world, STATEMENT_TIMEOUT, free).await.then(|| apply(&mut of(&world)))
            };
            let answer = self.0.call(Service::Postgres, what, run).await.map_err(world_error)?;
            answer.ok_or_else(|| world_error("statement timeout".to_owned()))
        })
    }

    fn ask<'a, T: Send + 'static>(
        &'a self,
        what: &'static str,
        ask: impl FnOnce(&Ledger) -> T + Send + 'static,
    ) -> DatabaseFuture<'a, T> {
        self.statement(what, Vec::new(), |world| ask(&world.ledger))
    }
}

impl Database for Db {
    fn session(&self, _: usize) -> Box<dyn outside::Session> {
        Box::new(LaneSession { me: self.0.clone(), id: None })
    }

    fn topic_known(&self) -> DatabaseFuture<'_, (bool, i64)> {
        self.statement("topic known?", Vec::new(), |world| (world.ledger.topic_known(), world.now_ms()))
    }

    fn enter_topic<'a>(&'a self, _: &'a Identity, first_day: i32) -> DatabaseFuture<'a, ()> {
        self.statement("enter topic", Vec::new(), move |world| world.ledger.enter_topic(first_day))
    }

    fn peek<'a>(&'a self, _: &'a [i32]) -> DatabaseFuture<'a, BTreeMap<i32, Owned>> {
        self.ask("peek", Ledger::peek)
    }

    fn assign<'a>(
        &'a self,
        _: &'a Identity,
        candidates: &'a [Candidate],
        objects: &'a [NewestObject],
        limits: &'a RejectLimits,
    ) -> BoxFuture<'a, Result<Assigned, LedgerError>> {
        let (candidates, objects, limits) = (candidates.to_vec(), objects.to_vec(), *limits);
        let mut locks: Vec<Lock> = candidates.iter().map(|c| Lock::Partition(c.partition)).collect();
        let known = of(&self.0.world).ledger.partitions.keys().copied().collect::<BTreeSet<_>>();
        if candidates.iter().any(|c| !known.contains(&c.partition)) {
            locks.push(Lock::Topic);
        }
        Box::pin(async move {
            let assign = move |world: &mut World| {
                let now_ms = world.now_ms();
                let assigned = world.ledger.assign(&candidates, &objects, &limits, now_ms);
                assigned.map(|(owned, stopped, before)| Assigned {
                    owned,
                    stopped,
                    before,
                    now_ms,
                    ..Assigned::default()
                })
            };
            let assigned = self.statement("assign", locks, assign).await?;
            assigned.map_err(|(partition, why)| LedgerError::Flood { partition, why })
        })
    }

    fn stop<'a>(
        &'a self,
        partition: i32,
        epoch: i64,
        stop: Stop,
        detail: &'a str,
    ) -> DatabaseFuture<'a, bool> {
        let detail = detail.to_owned();
        self.statement("stop", vec![Lock::Partition(partition)], move |world| {
            world.ledger.stop(partition, epoch, stop, &detail)
        })
    }

    fn released<'a>(&'a self, partitions: &'a [i32]) -> DatabaseFuture<'a, Vec<i32>> {
        let partitions = partitions.to_vec();
        self.ask("released?", move |ledger| ledger.released(&partitions))
    }

    fn enter_file<'a>(&'a self, file: &'a NewFile) -> DatabaseFuture<'a, Entered> {
        let file = file.clone();
        self.statement("enter file", vec![Lock::Partition(file.partition)], move |world| {
            let entered = world.ledger.enter_file(&file);
            world.told(|| format!("entered {}..{}: {entered:?}", file.first_offset, file.next_offset));
            entered
        })
    }

    /// Two statements: the rows, then what the ledger says.
    fn read<'a>(&'a self, range: &'a Range) -> DatabaseFuture<'a, Reread> {
        let range = range.clone();
        Box::pin(async move {
            let run = async move |world: Shared| {
                let (tuples, rows, complete) = {
                    let world = of(&world);
                    world.ledger.read(&range, world.ledger.commits)
                };
                let pause_ms = of(&world).rng.random_range(0..40);
                sleep(Duration::from_millis(pause_ms)).await;
                let fenceless = of(&world).ledger.lacks(Protection::FenceInRead);
                match of(&world).ledger.export_stand(range.partition) {
                    Some((epoch, export_frontier)) if epoch == range.epoch || fenceless => {
                        Reread::Rows { tuples, rows, complete, export_frontier }
                    }
                    _ => Reread::Fenced,
                }
            };
            self.0.call(Service::Postgres, "read back", run).await.map_err(world_error)
        })
    }

    fn now_ms(&self) -> DatabaseFuture<'_, i64> {
        self.statement("clock?", Vec::new(), |world| world.now_ms())
    }

    fn advance(&self, at: (i32, i64, i64), days: (i32, i32)) -> DatabaseFuture<'_, bool> {
        self.statement("advance", vec![Lock::Partition(at.0)], move |world| {
            let moved = world.ledger.advance(at, days);
            if moved {
                world.count("day moved on empty");
            }
            moved
        })
    }

    fn reached(&self, partition: i32, epoch: i64) -> DatabaseFuture<'_, Option<i32>> {
        self.ask("reached?", move |ledger| ledger.reached(partition, epoch))
    }

    /// The UPDATE sees rows as of its beginning, and the ledger's row as it is when its lock is had.
    fn close_partition(&self, partition: i32, epoch: i64, day: i32) -> DatabaseFuture<'_, Option<i32>> {
        Box::pin(async move {
            let run = async move |world: Shared| {
                let (began, passes) = {
                    let ledger = &of(&world).ledger;
                    (ledger.commits, ledger.may_close(partition, epoch, day, ledger.commits))
                };
                let lock = Lock::Partition(partition);
                if passes && !wait_until(&world, STATEMENT_TIMEOUT, |w| w.is_free(lock, 0)).await {
                    return Err(());
                }
                let mut world = of(&world);
                if passes && world.ledger.may_close(partition, epoch, day, began) {
                    world.ledger.close(partition, day);
                    world.count("partition closed a day");
                }
                Ok(world.ledger.closed(partition, epoch))
            };
            let closed = self.0.call(Service::Postgres, "close partition", run).await.map_err(world_error)?;
            closed.map_err(|()| world_error("statement timeout".to_owned()))
        })
    }

    fn topic_days(&self) -> DatabaseFuture<'_, Option<(i32, i32)>> {
        self.ask("topic's days?", Ledger::topic_days)
    }

    fn least_closed(&self) -> DatabaseFuture<'_, Option<i32>> {
        self.ask("least closed?", Ledger::least_closed)
    }

    fn close_topic<'a>(&'a self, partitions: BoxFuture<'a, Option<Vec<i32>>>) -> DatabaseFuture<'a, ()> {
        Box::pin(async move {
            let me = (self.0.slot, self.0.incarnation);
            let lock = async move |world: Shared| {
                let free = wait_until(&world, STATEMENT_TIMEOUT, |w| w.is_free(Lock::Topic, 0)).await;
                free.then(|| {
                    let mut world = of(&world);
                    let id = world.begin_session(me);
                    if let Some(session) = world.sessions.get_mut(&id) {
                        session.locks.insert(Lock::Topic);
                        session.doing = Doing::Idle(Instant::now());
                    }
                    id
                })
            };
            let locked = self.0.call(Service::Postgres, "lock topic", lock).await.map_err(world_error)?;
            let id = locked.ok_or_else(|| world_error("statement timeout".to_owned()))?;
            let close = match partitions.await {
                None => async move |world: Shared| of(&world).sessions.remove(&id).is_some(),
                Some(partitions) => {
                    let close = async move |world: Shared| {
                        let mut world = of(&world);
                        world.expire();
                        let still = world.sessions.remove(&id).is_some();
                        if still {
                            world.ledger.close_topic(&partitions);
                        }
                        still
                    };
                    let closed = self.0.call(Service::Postgres, "close topic", close).await;
                    let closed = closed.map_err(world_error)?;
                    return if closed { Ok(()) } else { Err(world_error("terminated".to_owned())) };
                }
            };
            self.0.call(Service::Postgres, "leave topic", close).await.map_err(world_error).map(drop)
        })
    }

    fn files(&self, from: i32, to: i32) -> DatabaseFuture<'_, Vec<FileEntry>> {
        self.ask("files?", move |ledger| ledger.day_files(from, to))
    }

    fn partitions(&self, of: i32) -> DatabaseFuture<'_, Vec<i32>> {
        self.ask("partitions?", move |ledger| ledger.day_partitions(of))
    }

    fn gaps(&self, of: i32) -> DatabaseFuture<'_, Vec<GapEntry>> {
        self.ask("gaps?", move |ledger| ledger.day_gaps(of))
    }

    fn finished(&self, day: i32) -> DatabaseFuture<'_, ()> {
        self.statement("finished", Vec::new(), move |world| world.ledger.finished(day))
    }
}

impl World {
    fn begin_session(&mut self, of: (usize, u64)) -> u64 {
        self.sessions_begun += 1;
        let session = Session {
            of,
            doing: Doing::Nothing,
            locks: BTreeSet::new(),
            staged: Vec::new(),
            moves: Vec::new(),
        };
        self.sessions.insert(self.sessions_begun, session);
        self.sessions_begun
    }

    /// Ends the transaction of a session, as ROLLBACK does.
    fn roll_back(&mut self, id: u64) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.doing = Doing::Nothing;
            session.locks.clear();
            session.staged.clear();
            session.moves.clear();
        }
    }
}

/// What a statement of a session answers within its deadline.
async fn in_time<T>(deadline: Duration, call: impl Future<Output = Result<T, String>>) -> Result<T, Failure> {
    let answer = tokio::time::timeout(deadline, call).await;
    answer.unwrap_or_else(|_| Err("no answer in time".to_owned())).map_err(Failure::Transient)
}

/// A lane's session.
struct LaneSession {
    me: Me,
    id: Option<u64>,
}

impl LaneSession {
    fn id(&self) -> Result<u64, sqlx::Error> {
        self.id.ok_or_else(|| world_error("no connection".to_owned()))
    }
}

impl Drop for LaneSession {
    fn drop(&mut self) {
        outside::Session::disconnect(self);
    }
}

/// What one step of a transaction came to, at the database.
enum Step {
    Done,
    Gone,
    Duplicate,
    Refused,
    Blocked,
    Fenced(Vec<i32>),
}

impl From<Step> for Result<(), Failure> {
    fn from(step: Step) -> Self {
        Err(match step {
            Step::Done => return Ok(()),
            Step::Gone => Failure::Transient("the session was terminated".to_owned()),
            Step::Duplicate => Failure::Duplicate,
            Step::Refused => Failure::Refused("22021".to_owned()),
            Step::Blocked => Failure::Blocked("lock timeout".to_owned()),
            Step::Fenced(partitions) => Failure::Fenced(partitions),
        })
    }
}

async fn copy(world: Shared, id: u64, tuples: Vec<u8>) -> Step {
    let rows = keyed(&tuples);
    match of(&world).sessions.get_mut(&id) {
        Some(session) => session.doing = Doing::Copying(Instant::now()),
        None => return Step::Gone,
    }
    if rows.iter().any(|((p, o, _), _)| of(&world).refused.contains(&(*p, *o))) {
        of(&world).roll_back(id);
        return Step::Refused;
    }
    // A key that an open transaction has inserted: wait for its end.
    let clash = |w: &mut World| {
        w.expire();
        let others = w.sessions.iter().filter(|(other, _)| **other != id);
        let taken: BTreeSet<_> = others.flat_map(|(_, s)| s.staged.iter().map(|(key, _)| *key)).collect();
        !rows.iter().any(|(key, _)| taken.contains(key))
    };
    if !wait_until(&world, LOCK_TIMEOUT, clash).await {
        of(&world).roll_back(id);
        of(&world).count("blocked");
        return Step::Blocked;
    }
    let mut world = of(&world);
    let unique = !world.ledger.lacks(Protection::PrimaryKey);
    if unique && rows.iter().any(|(key, _)| world.ledger.rows.contains_key(key)) {
        world.roll_back(id);
        world.count("duplicate key");
        return Step::Duplicate;
    }
    match world.sessions.get_mut(&id) {
        Some(session) => session.staged = rows,
        None => return Step::Gone,
    }
    Step::Done
}

async fn compare_and_set(world: Shared, id: u64, moves: Vec<PartitionBatch>) -> Step {
    match of(&world).sessions.get_mut(&id) {
        Some(session) => session.doing = Doing::Running,
        None => return Step::Gone,
    }
    for batch in &moves {
        let lock = Lock::Partition(batch.partition);
        if !wait_until(&world, LOCK_TIMEOUT, |w| w.is_free(lock, id)).await {
            of(&world).roll_back(id);
            of(&world).count("blocked");
            return Step::Blocked;
        }
        match of(&world).sessions.get_mut(&id) {
            Some(session) => session.locks.insert(lock),
            None => return Step::Gone,
        };
    }
    let mut world = of(&world);
    let missing: Vec<i32> = moves.iter().filter(|b| !world.ledger.passes(b)).map(|b| b.partition).collect();
    if !missing.is_empty() {
        world.roll_back(id);
        world.count("fenced");
        return Step::Fenced(missing);
    }
    let Some(session) = world.sessions.get_mut(&id) else { return Step::Gone };
    session.moves = moves;
    session.doing = Doing::Idle(Instant::now());
    Step::Done
}

fn commit(world: &mut World, id: u64) -> bool {
    world.expire();
    let Some(session) = world.sessions.get_mut(&id) else { return false };
    let (rows, moves) = (std::mem::take(&mut session.staged), std::mem::take(&mut session.moves));
    world.roll_back(id);
    world.count("committed");
    world.ledger.insert(rows);
    for batch in &moves {
        world.ledger.move_frontier(batch);
        world.told(|| {
            format!("committed {}: {}..{} day {}", batch.partition, batch.first, batch.next, batch.day)
        });
    }
    true
}

/// A batch without its rows: what the compare-and-set needs.
fn frontier_only(batch: &PartitionBatch) -> PartitionBatch {
    PartitionBatch {
        partition: batch.partition,
        epoch: batch.epoch,
        first: batch.first,
        next: batch.next,
        day_before: batch.day_before,
        day: batch.day,
        rows: batch.rows,
        tuples: Vec::new(),
        last_record_hash: batch.last_record_hash,
        rejects: batch.rejects,
        window: batch.window,
        oldest_ms: batch.oldest_ms,
        times: batch.times,
    }
}

impl outside::Session for LaneSession {
    fn connect(&mut self) -> DatabaseFuture<'_, ()> {
        Box::pin(async {
            if self.id.is_none() {
                let me = (self.me.slot, self.me.incarnation);
                let connect = async move |world: Shared| of(&world).begin_session(me);
                self.id =
                    Some(self.me.call(Service::Postgres, "connect", connect).await.map_err(world_error)?);
            }
            Ok(())
        })
    }

    fn disconnect(&mut self) {
        let Some(id) = self.id.take() else { return };
        let mut world = of(&self.me.world);
        let alive = world.workers[self.me.slot].alive
            && self.me.incarnation == world.workers[self.me.slot].incarnation;
        if alive && tokio::runtime::Handle::try_current().is_ok() {
            // What was sent before goes first: a COMMIT that is on its way is carried out. Sometimes the
            // end itself never arrives, and the database finds out by itself.
            let after_ms = if world.rng.random_bool(0.1) { 15_000 } else { world.rng.random_range(8..40) };
            world.end_session_later(id, after_ms, &self.me.world);
        }
    }

    fn write<'a>(&'a mut self, job: &'a Job, deadline: Duration) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let id = self.id().map_err(|e| Failure::Transient(e.to_string()))?;
            let tuples: Vec<u8> = job.iter().flat_map(|batch| batch.tuples.iter().copied()).collect();
            if !tuples.is_empty() {
                let run = async move |world: Shared| copy(world, id, tuples).await;
                Result::from(in_time(deadline, self.me.call(Service::Postgres, "copy", run)).await?)?;
            }
            let mut moves: Vec<PartitionBatch> = job.iter().map(frontier_only).collect();
            moves.sort_by_key(|batch| batch.partition);
            let run = async move |world: Shared| compare_and_set(world, id, moves).await;
            in_time(deadline, self.me.call(Service::Postgres, "move frontiers", run)).await?.into()
        })
    }

    fn commit(&mut self) -> DatabaseFuture<'_, ()> {
        Box::pin(async {
            let id = self.id()?;
            let run = async move |world: Shared| commit(&mut of(&world), id);
            let done = self.me.call(Service::Postgres, "COMMIT", run).await.map_err(world_error)?;
            if done { Ok(()) } else { Err(world_error("the session was terminated".to_owned())) }
        })
    }

    fn locked<'a>(&'a mut self, partitions: &'a [i32]) -> DatabaseFuture<'a, Vec<(i32, i64, i64)>> {
        let partitions = partitions.to_vec();
        Box::pin(async move {
            let id = self.id()?;
            let run = async move |world: Shared| {
                for partition in &partitions {
                    let lock = Lock::Partition(*partition);
                    if !wait_until(&world, LOCK_TIMEOUT, |w| w.is_free(lock, id)).await {
                        return None;
                    }
                }
                let ledger = &of(&world).ledger;
                let row = |p: &i32| ledger.partitions.get(p).map(|row| (*p, row.epoch, row.persist_frontier));
                Some(partitions.iter().filter_map(row).collect())
            };
            let rows = self.me.call(Service::Postgres, "settle", run).await.map_err(world_error)?;
            of(&self.me.world).count("settled");
            rows.ok_or_else(|| world_error("lock timeout".to_owned()))
        })
    }

    fn rows_exist(&mut self, partition: i32, first: i64, next: i64) -> DatabaseFuture<'_, bool> {
        Box::pin(async move {
            self.id()?;
            let run = async move |world: Shared| of(&world).ledger.rows_exist(partition, first, next);
            self.me.call(Service::Postgres, "rows exist?", run).await.map_err(world_error)
        })
    }

    fn trial<'a>(
        &'a mut self,
        tuples: &'a [u8],
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Option<String>, Failure>> {
        let rows = keyed(tuples);
        Box::pin(async move {
            self.id().map_err(|e| Failure::Transient(e.to_string()))?;
            let run = async move |world: Shared| {
                let world = of(&world);
                let refused = rows.iter().any(|((p, o, _), _)| world.refused.contains(&(*p, *o)));
                refused.then(|| "22021".to_owned())
            };
            in_time(deadline, self.me.call(Service::Postgres, "trial", run)).await
        })
    }

    fn evict(&mut self) -> DatabaseFuture<'_, i64> {
        Box::pin(async move {
            self.id()?;
            let run = async move |world: Shared| {
                let mut world = of(&world);
                let before = world.sessions.len();
                let now = Instant::now();
                let stuck =
                    |s: &Session| matches!(s.doing, Doing::Copying(since) if now - since > STATEMENT_TIMEOUT);
                world.sessions.retain(|_, session| !stuck(session));
                let evicted = before - world.sessions.len();
                (0..evicted).for_each(|_| world.count("evicted"));
                evicted as i64
            };
            self.me.call(Service::Postgres, "evict", run).await.map_err(world_error)
        })
    }
}
