//! Table and ledger of one topic, in Postgres.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgPool};

use super::ledger::{self, Assigned, Entered, Identity, LedgerError, NewFile, NewestObject, Owned, Stop};
use super::reread::{self, Range, Reread};
use super::session::PgSession;
use super::{connect_options, days, pool};
use crate::config::Config;
use crate::export::manifest::{FileEntry, GapEntry};
use crate::kafka::rebalance::Candidate;
use crate::outside::{Database, DatabaseFuture, Session};
use crate::reject_limit::RejectLimits;

/// Postgres, as the pipeline uses it.
pub struct Postgres {
    pub pool: PgPool,
    topic: String,
    options: PgConnectOptions,
    statement_timeout: Duration,
}

impl Postgres {
    /// Connects when it is first used. Errors: an address that cannot be read.
    pub fn new(config: &Config) -> Result<Self, sqlx::Error> {
        Ok(Postgres {
            pool: pool(config)?,
            topic: config.kafka.topic.clone(),
            options: connect_options(config)?,
            statement_timeout: Duration::from_millis(config.postgres.statement_timeout_ms),
        })
    }
}

impl Database for Postgres {
    fn session(&self) -> Box<dyn Session> {
        Box::new(PgSession::new(&self.topic, self.options.clone(), self.statement_timeout))
    }

    fn topic_known(&self) -> DatabaseFuture<'_, (bool, i64)> {
        Box::pin(ledger::topic_known(&self.pool, &self.topic))
    }

    fn enter_topic<'a>(&'a self, who: &'a Identity, first_day: i32) -> DatabaseFuture<'a, ()> {
        Box::pin(ledger::enter_topic(&self.pool, who, first_day))
    }

    fn peek(&self) -> DatabaseFuture<'_, BTreeMap<i32, Owned>> {
        Box::pin(ledger::peek(&self.pool, &self.topic))
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
        Box::pin(ledger::stop(&self.pool, &self.topic, partition, epoch, stop, detail))
    }

    fn released<'a>(&'a self, partitions: &'a [i32]) -> DatabaseFuture<'a, Vec<i32>> {
        Box::pin(ledger::released(&self.pool, &self.topic, partitions))
    }

    fn enter_file<'a>(&'a self, file: &'a NewFile) -> DatabaseFuture<'a, Entered> {
        Box::pin(ledger::enter_file(&self.pool, &self.topic, file))
    }

    fn read<'a>(&'a self, range: &'a Range) -> DatabaseFuture<'a, Reread> {
        Box::pin(reread::read(&self.pool, &self.topic, range))
    }

    fn now_ms(&self) -> DatabaseFuture<'_, i64> {
        Box::pin(days::now_ms(&self.pool))
    }

    fn advance(&self, at: (i32, i64, i64), days: (i32, i32)) -> DatabaseFuture<'_, bool> {
        Box::pin(days::advance(&self.pool, &self.topic, at, days))
    }

    fn reached(&self, partition: i32, epoch: i64) -> DatabaseFuture<'_, Option<i32>> {
        Box::pin(days::reached(&self.pool, &self.topic, partition, epoch))
    }

    fn close_partition(&self, partition: i32, epoch: i64, day: i32) -> DatabaseFuture<'_, Option<i32>> {
        Box::pin(days::close_partition(&self.pool, &self.topic, partition, epoch, day))
    }

    fn topic_days(&self) -> DatabaseFuture<'_, Option<(i32, i32)>> {
        Box::pin(days::topic_days(&self.pool, &self.topic))
    }

    fn least_closed(&self) -> DatabaseFuture<'_, Option<i32>> {
        Box::pin(days::least_closed(&self.pool, &self.topic))
    }

    fn close_topic<'a>(&'a self, partitions: BoxFuture<'a, Option<Vec<i32>>>) -> DatabaseFuture<'a, ()> {
        Box::pin(days::close_topic(&self.pool, &self.topic, partitions))
    }

    fn files(&self, from: i32, to: i32) -> DatabaseFuture<'_, Vec<FileEntry>> {
        Box::pin(days::files(&self.pool, &self.topic, from, to))
    }

    fn partitions(&self, of: i32) -> DatabaseFuture<'_, Vec<i32>> {
        Box::pin(days::partitions(&self.pool, &self.topic, of))
    }

    fn gaps(&self, of: i32) -> DatabaseFuture<'_, Vec<GapEntry>> {
        Box::pin(days::gaps(&self.pool, &self.topic, of))
    }

    fn finished(&self, day: i32) -> DatabaseFuture<'_, ()> {
        Box::pin(days::finished(&self.pool, &self.topic, day))
    }
}
