//! Table and ledger of one topic, in Postgres. Every call ends within `postgres.deadline_ms`: a connection that has
//! gone silent gives no error of its own. Two have their caller's deadline instead: `assign`, within that of the
//! rebalance, and each statement of a lane's session.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgPool};

use super::ledger::{self, Assigned, Entered, Identity, LedgerError, NewFile, NewestObject, Owned, Stop};
use super::reread::{self, Range, Reread};
use super::session::PgSession;
use super::{connect_options, days, places, pool};
use crate::config::Config;
use crate::export::manifest::{FileEntry, GapEntry};
use crate::kafka::rebalance::Candidate;
use crate::outside::{Database, DatabaseFuture, Session};
use crate::placement::Placement;
use crate::reject_limit::RejectLimits;

/// Postgres, as the pipeline uses it.
pub struct Postgres {
    pub pool: PgPool,
    /// `host:port/database`, for people.
    pub location: String,
    topic: String,
    options: PgConnectOptions,
    statement_timeout: Duration,
    deadline: Duration,
}

impl Postgres {
    /// The first server. Connects when it is first used. Errors: an address that cannot be read.
    pub fn new(config: &Config) -> Result<Self, sqlx::Error> {
        Self::on(config, 0)
    }

    /// Every server of the configuration, by its number.
    pub fn all(config: &Config) -> Result<Vec<Self>, sqlx::Error> {
        (0..config.postgres.urls().count()).map(|server| Postgres::on(config, server)).collect()
    }

    /// The server of that number.
    pub fn on(config: &Config, server: usize) -> Result<Self, sqlx::Error> {
        Ok(Postgres {
            pool: pool(config, server)?,
            location: config.postgres.location(server),
            topic: config.kafka.topic.clone(),
            options: connect_options(config, server)?,
            statement_timeout: Duration::from_millis(config.postgres.statement_timeout_ms),
            deadline: Duration::from_millis(config.postgres.deadline_ms),
        })
    }

    /// Gives a call up that takes too long; the pool tries its connection before it is used again.
    pub(super) fn in_time<'a, T, F>(&self, call: F) -> DatabaseFuture<'a, T>
    where
        F: Future<Output = Result<T, sqlx::Error>> + Send + 'a,
    {
        let deadline = self.deadline;
        Box::pin(async move {
            tokio::time::timeout(deadline, call).await.unwrap_or_else(|_| {
                let why = format!("no answer within {deadline:?}");
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, why).into())
            })
        })
    }
}

impl Database for Postgres {
    fn session(&self, _: usize) -> Box<dyn Session> {
        Box::new(PgSession::new(&self.topic, self.options.clone(), self.statement_timeout))
    }

    fn topic_known(&self) -> DatabaseFuture<'_, (bool, i64)> {
        self.in_time(ledger::topic_known(&self.pool, &self.topic))
    }

    fn enter_topic<'a>(&'a self, who: &'a Identity, first_day: i32) -> DatabaseFuture<'a, ()> {
        self.in_time(ledger::enter_topic(&self.pool, who, first_day))
    }

    fn peek<'a>(&'a self, _: &'a [i32]) -> DatabaseFuture<'a, BTreeMap<i32, Owned>> {
        self.in_time(ledger::peek(&self.pool, &self.topic))
    }

    fn assign<'a>(
        &'a self,
        who: &'a Identity,
        candidates: &'a [Candidate],
        objects: &'a [NewestObject],
        limits: &'a RejectLimits,
    ) -> BoxFuture<'a, Result<Assigned, LedgerError>> {
        Box::pin(ledger::assign(&self.pool, who, candidates, objects, limits))
    }

    fn stop<'a>(
        &'a self,
        partition: i32,
        epoch: i64,
        stop: Stop,
        detail: &'a str,
    ) -> DatabaseFuture<'a, bool> {
        self.in_time(ledger::stop(&self.pool, &self.topic, partition, epoch, stop, detail))
    }

    fn released<'a>(&'a self, partitions: &'a [i32]) -> DatabaseFuture<'a, Vec<i32>> {
        self.in_time(ledger::released(&self.pool, &self.topic, partitions))
    }

    fn enter_file<'a>(&'a self, file: &'a NewFile) -> DatabaseFuture<'a, Entered> {
        self.in_time(ledger::enter_file(&self.pool, &self.topic, file))
    }

    fn read<'a>(&'a self, range: &'a Range) -> DatabaseFuture<'a, Reread> {
        self.in_time(reread::read(&self.pool, &self.topic, range))
    }

    fn oldest_row_ms(&self, partition: i32, from: i64, first_day: i32) -> DatabaseFuture<'_, Option<i64>> {
        self.in_time(reread::oldest_row_ms(&self.pool, partition, from, first_day))
    }

    fn now_ms(&self) -> DatabaseFuture<'_, i64> {
        self.in_time(days::now_ms(&self.pool))
    }

    fn advance(&self, at: (i32, i64, i64), days: (i32, i32)) -> DatabaseFuture<'_, bool> {
        self.in_time(days::advance(&self.pool, &self.topic, at, days))
    }

    fn reached(&self, partition: i32, epoch: i64) -> DatabaseFuture<'_, Option<i32>> {
        self.in_time(days::reached(&self.pool, &self.topic, partition, epoch))
    }

    fn close_partition(&self, partition: i32, epoch: i64, day: i32) -> DatabaseFuture<'_, Option<i32>> {
        self.in_time(days::close_partition(&self.pool, &self.topic, partition, epoch, day))
    }

    fn topic_days(&self) -> DatabaseFuture<'_, Option<(i32, i32)>> {
        self.in_time(days::topic_days(&self.pool, &self.topic))
    }

    fn least_closed(&self) -> DatabaseFuture<'_, Option<i32>> {
        self.in_time(days::least_closed(&self.pool, &self.topic))
    }

    fn close_topic<'a>(&'a self, partitions: BoxFuture<'a, Option<Vec<i32>>>) -> DatabaseFuture<'a, ()> {
        self.in_time(days::close_topic(&self.pool, &self.topic, partitions))
    }

    fn files(&self, from: i32, to: i32) -> DatabaseFuture<'_, Vec<FileEntry>> {
        self.in_time(days::files(&self.pool, &self.topic, from, to))
    }

    fn partitions(&self, of: i32) -> DatabaseFuture<'_, Vec<i32>> {
        self.in_time(async move {
            let found = places::places(&self.pool, &self.topic).await?;
            // Whoever does not know every server would finish the day with a part of its files.
            match places::misplaced(&found, 0, &Placement::default(), &[&self.location]) {
                Some(why) => Err(sqlx::Error::Protocol(why)),
                None => days::partitions(&self.pool, &self.topic, of).await,
            }
        })
    }

    fn gaps(&self, of: i32) -> DatabaseFuture<'_, Vec<GapEntry>> {
        self.in_time(days::gaps(&self.pool, &self.topic, of))
    }

    fn finished(&self, day: i32) -> DatabaseFuture<'_, ()> {
        self.in_time(days::finished(&self.pool, &self.topic, day))
    }
}
