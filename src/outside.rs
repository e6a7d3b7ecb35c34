//! The outside: one trait for each thing that the pipeline talks to, and nothing else reaches it.
//!
//! 1. A call is made once per batch, file or decision, never per record.
//! 2. What a call returns is all that the pipeline learns: an error says that nothing is known, the
//!    effect may have happened.
//! 3. The real things are in `postgres/`, `kafka/`, `export/object/` and `registry`; `tests/simulation/`
//!    has others, in memory, that fail as a seed says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;

use crate::export::manifest::{FileEntry, GapEntry};
use crate::export::object::ObjectStore;
use crate::kafka::dead_letters::DeadLetter;
use crate::kafka::probe::Found;
use crate::kafka::rebalance::Candidate;
use crate::postgres::lane::Job;
use crate::postgres::ledger::{Assigned, Entered, Identity, LedgerError, NewFile, NewestObject, Owned, Stop};
use crate::postgres::reread::{Range, Reread};
use crate::postgres::transaction::Failure;
use crate::record::Chunk;
use crate::registry::Answer;
use crate::reject_limit::RejectLimits;
use crate::telemetry::health::Health;

/// Everything outside that the pipeline uses.
#[derive(Clone)]
pub struct Outside {
    pub database: Arc<dyn Database>,
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn ObjectStore>,
    pub dead_letters: Arc<dyn DeadLetters>,
    pub schemas: Arc<dyn Schemas>,
    pub clock: WallClock,
    pub who: Identity,
    pub health: Health,
}

/// The worker's clock, ms since 1970. Only `ingested_at` and the age of a file are read from it.
pub type WallClock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The machine's clock.
pub fn wall_clock() -> WallClock {
    Arc::new(now_ms)
}

/// The machine's clock, ms since 1970.
pub fn now_ms() -> i64 {
    unix_ms(SystemTime::now())
}

/// Ms since 1970.
pub fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// What a call to the database returns.
pub type DatabaseFuture<'a, T> = BoxFuture<'a, Result<T, sqlx::Error>>;

/// Table and ledger of one topic. What each call promises is said where it is implemented: `ledger`,
/// `days` and `reread` in `crate::postgres`. Every call ends by itself, within a deadline; only `assign` has its
/// caller's.
pub trait Database: Send + Sync {
    /// A session for a lane of a server; it connects when it is first asked to.
    fn session(&self, server: usize) -> Box<dyn Session>;

    /// Which of these partitions cannot be asked for now, because their server is away, and why. None of them are where
    /// there is one server: nothing goes on without it.
    fn away<'a>(&'a self, _partitions: &'a [i32]) -> BoxFuture<'a, BTreeMap<i32, String>> {
        Box::pin(async { BTreeMap::new() })
    }

    fn topic_known(&self) -> DatabaseFuture<'_, (bool, i64)>;
    fn enter_topic<'a>(&'a self, who: &'a Identity, first_day: i32) -> DatabaseFuture<'a, ()>;
    /// At least what the servers of these partitions know.
    fn peek<'a>(&'a self, partitions: &'a [i32]) -> DatabaseFuture<'a, BTreeMap<i32, Owned>>;
    fn assign<'a>(
        &'a self,
        who: &'a Identity,
        candidates: &'a [Candidate],
        objects: &'a [NewestObject],
        limits: &'a RejectLimits,
    ) -> BoxFuture<'a, Result<Assigned, LedgerError>>;
    fn stop<'a>(
        &'a self,
        partition: i32,
        epoch: i64,
        stop: Stop,
        detail: &'a str,
    ) -> DatabaseFuture<'a, bool>;
    fn released<'a>(&'a self, partitions: &'a [i32]) -> DatabaseFuture<'a, Vec<i32>>;
    fn enter_file<'a>(&'a self, file: &'a NewFile) -> DatabaseFuture<'a, Entered>;

    fn read<'a>(&'a self, range: &'a Range) -> DatabaseFuture<'a, Reread>;

    /// When the first row at or above an offset was recorded, ms; it is of that day or a later one.
    fn oldest_row_ms(&self, _partition: i32, _from: i64, _first_day: i32) -> DatabaseFuture<'_, Option<i64>> {
        Box::pin(async { Ok(None) })
    }

    fn now_ms(&self) -> DatabaseFuture<'_, i64>;
    fn advance(&self, at: (i32, i64, i64), days: (i32, i32)) -> DatabaseFuture<'_, bool>;
    fn reached(&self, partition: i32, epoch: i64) -> DatabaseFuture<'_, Option<i32>>;
    fn close_partition(&self, partition: i32, epoch: i64, day: i32) -> DatabaseFuture<'_, Option<i32>>;
    fn topic_days(&self) -> DatabaseFuture<'_, Option<(i32, i32)>>;
    fn least_closed(&self) -> DatabaseFuture<'_, Option<i32>>;
    /// `partitions` is asked while the topic's row is held.
    fn close_topic<'a>(&'a self, partitions: BoxFuture<'a, Option<Vec<i32>>>) -> DatabaseFuture<'a, ()>;
    fn files(&self, from: i32, to: i32) -> DatabaseFuture<'_, Vec<FileEntry>>;
    fn partitions(&self, of: i32) -> DatabaseFuture<'_, Vec<i32>>;
    fn gaps(&self, of: i32) -> DatabaseFuture<'_, Vec<GapEntry>>;
    fn finished(&self, day: i32) -> DatabaseFuture<'_, ()>;
}

/// A database session that persists, one transaction at a time. A session that has failed, or was
/// given up in the middle of a call, is disconnected by the lane before it is used again.
pub trait Session: Send {
    /// Connects, unless it is connected.
    fn connect(&mut self) -> DatabaseFuture<'_, ()>;
    /// Whatever is on its way is left to the database: an open transaction is rolled back by it.
    fn disconnect(&mut self);
    /// One transaction up to its COMMIT: rows, in as many statements as they need, then the compare-and-set.
    /// Each statement has the deadline to itself.
    fn write<'a>(&'a mut self, job: &'a Job, deadline: Duration) -> BoxFuture<'a, Result<(), Failure>>;
    fn commit(&mut self) -> DatabaseFuture<'_, ()>;
    /// (partition, epoch, frontier), each under its row lock: a transaction that is on its way to its
    /// end is waited for.
    fn locked<'a>(&'a mut self, partitions: &'a [i32]) -> DatabaseFuture<'a, Vec<(i32, i64, i64)>>;
    /// Whether the table has a row of `[first, next)`.
    fn rows_exist(&mut self, partition: i32, first: i64, next: i64) -> DatabaseFuture<'_, bool>;
    /// Tries to write rows, as `write` does, and takes them back: the SQLSTATE if one of them is refused.
    fn trial<'a>(
        &'a mut self,
        tuples: &'a [u8],
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Option<String>, Failure>>;
    /// Ends the sessions of stopped workers that hold rows; how many there were.
    fn evict(&mut self) -> DatabaseFuture<'_, i64>;
}

/// What a question to the brokers returns.
pub type BrokerFuture<'a, T> = BoxFuture<'a, anyhow::Result<T>>;

/// The brokers, asked beside the group's consumer. What each call promises is said in
/// `crate::kafka::probe`.
pub trait Broker: Send + Sync {
    fn partitions(&self) -> BrokerFuture<'_, Vec<i32>>;
    fn bounds<'a>(&'a self, partitions: &'a [i32]) -> BrokerFuture<'a, Vec<(i32, i64, i64)>>;
    fn read_at<'a>(&'a self, wanted: &'a [(i32, i64)]) -> BrokerFuture<'a, BTreeMap<i32, Found>>;
    fn fingerprints_at<'a>(
        &'a self,
        wanted: &'a [(i32, i64)],
    ) -> BrokerFuture<'a, BTreeMap<i32, Option<i64>>>;
    /// Partitions that no member of the group has; none: the group rebalances just now.
    fn unowned(&self) -> BrokerFuture<'_, Option<Vec<i32>>> {
        Box::pin(async { Ok(None) })
    }
    /// How long the topic keeps a record; none: for ever.
    fn retention_ms(&self) -> BrokerFuture<'_, Option<u64>> {
        Box::pin(async { Ok(None) })
    }
    fn record_at(&self, partition: i32, offset: i64) -> BrokerFuture<'_, Option<Chunk>>;
}

/// Where rejected records go.
pub trait DeadLetters: Send + Sync {
    /// Returns once the letter is acknowledged, however long that takes. An error is final: nothing
    /// will ever be sent again.
    fn send(&self, letter: DeadLetter) -> BoxFuture<'_, anyhow::Result<()>>;
}

/// Writer schemas by their id.
pub trait Schemas: Send + Sync {
    /// Returns once there is a final answer, however long that takes.
    fn look_up(&self, id: u32) -> BoxFuture<'_, Answer>;
    /// The same of an id that was missing not long ago: if it still is, the first answer is final.
    fn look_again(&self, id: u32) -> BoxFuture<'_, Answer> {
        self.look_up(id)
    }
}
