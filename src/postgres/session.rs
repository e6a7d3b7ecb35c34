//! A lane's session: one connection to Postgres.

use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection, Row};

use super::lane::Job;
use super::sqlstate;
use super::transaction::{EVICT, Failure, commit, copy, failure, refuses_a_row, write};
use crate::failpoint::failpoint;
use crate::outside::{DatabaseFuture, Session};

/// How long a lane waits for a lock that somebody else holds before it looks who that is. Longer delays
/// a takeover from a stopped owner; shorter sends batches again over every hiccup.
const LOCK_TIMEOUT_MS: &str = "1000";

/// Most statements that a transaction's rows are sent in. More hold a transaction, and its locks, open for so many
/// statement time-outs; fewer leave rows that never get through.
const STATEMENTS_MAX: u32 = 1024;

/// A connection, or none yet.
pub struct PgSession {
    topic: String,
    options: PgConnectOptions,
    statement_timeout_ms: i64,
    connection: Option<PgConnection>,
    /// How many statements a transaction's rows go in.
    statements: u32,
    /// How often in a row a statement took too long.
    too_slow: u32,
}

impl PgSession {
    pub fn new(topic: &str, options: PgConnectOptions, statement_timeout: Duration) -> Self {
        PgSession {
            topic: topic.to_owned(),
            options: options.options([("lock_timeout", LOCK_TIMEOUT_MS)]),
            statement_timeout_ms: i64::try_from(statement_timeout.as_millis()).unwrap_or(i64::MAX),
            connection: None,
            statements: 1,
            too_slow: 0,
        }
    }

    /// Rows that need longer than the statement time-out would be sent again for ever: the second time, and
    /// from then on, each statement has half as many. Once they are fast again they go together again.
    fn learn(&mut self, written: &Result<(), Failure>, took: Duration) {
        match written {
            Err(Failure::TooSlow(_)) => {
                self.too_slow += 1;
                if self.too_slow > 1 {
                    self.statements = (self.statements * 2).min(STATEMENTS_MAX);
                    tracing::warn!(
                        self.statements,
                        "rows need longer than the statement time-out: sent in parts"
                    );
                }
            }
            Err(_) => {}
            Ok(()) => {
                self.too_slow = 0;
                if took.as_millis() * 2 < self.statement_timeout_ms.unsigned_abs().into() {
                    self.statements = (self.statements / 2).max(1);
                }
            }
        }
    }

    fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        self.connection.as_mut().ok_or_else(|| sqlx::Error::Protocol("no connection".to_owned()))
    }
}

impl Session for PgSession {
    fn connect(&mut self) -> DatabaseFuture<'_, ()> {
        Box::pin(async {
            if self.connection.is_none() {
                self.connection = Some(PgConnection::connect_with(&self.options).await?);
            }
            Ok(())
        })
    }

    fn disconnect(&mut self) {
        self.connection = None;
    }

    fn write<'a>(&'a mut self, job: &'a Job) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async {
            let (topic, statements) = (self.topic.clone(), self.statements);
            let begun_at = Instant::now();
            let written = write(self.connection().map_err(failure)?, &topic, job, statements).await;
            self.learn(&written, begun_at.elapsed());
            written
        })
    }

    fn statements(&self) -> u32 {
        self.statements
    }

    fn commit(&mut self) -> DatabaseFuture<'_, ()> {
        Box::pin(async { commit(self.connection()?).await })
    }

    fn locked<'a>(&'a mut self, partitions: &'a [i32]) -> DatabaseFuture<'a, Vec<(i32, i64, i64)>> {
        Box::pin(async move {
            failpoint!("persist.in-settling");
            let topic = self.topic.clone();
            let rows = sqlx::query(
                "SELECT partition, epoch, persist_frontier FROM partition_ledger
                 WHERE topic = $1 AND partition = ANY($2) ORDER BY partition FOR UPDATE",
            )
            .bind(topic)
            .bind(partitions)
            .fetch_all(self.connection()?)
            .await?;
            Ok(rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect())
        })
    }

    fn rows_exist(&mut self, partition: i32, first: i64, next: i64) -> DatabaseFuture<'_, bool> {
        Box::pin(async move {
            sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM user_interactions
                 WHERE kafka_partition = $1 AND kafka_offset >= $2 AND kafka_offset < $3)",
            )
            .bind(partition)
            .bind(first)
            .bind(next)
            .fetch_one(self.connection()?)
            .await
        })
    }

    fn trial<'a>(&'a mut self, tuples: &'a [u8]) -> DatabaseFuture<'a, Option<String>> {
        Box::pin(async move {
            let connection = self.connection()?;
            connection.execute("BEGIN").await?;
            let copied = copy(connection, &[tuples]).await;
            connection.execute("ROLLBACK").await?;
            match copied {
                Ok(()) => Ok(None),
                Err(error) => match sqlstate(&error) {
                    Some(code) if refuses_a_row(&code) => Ok(Some(code)),
                    _ => Err(error),
                },
            }
        })
    }

    fn evict(&mut self) -> DatabaseFuture<'_, i64> {
        Box::pin(async {
            let older_ms = self.statement_timeout_ms;
            sqlx::query_scalar(EVICT).bind(older_ms).fetch_one(self.connection()?).await
        })
    }
}
