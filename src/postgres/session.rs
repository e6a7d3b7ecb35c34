//! A lane's session: one connection to Postgres.

use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, Row};

use super::lane::Job;
use super::transaction::{EVICT, Failure, Pace, commit, failure, trial, write};
use crate::failpoint::failpoint;
use crate::outside::{DatabaseFuture, Session};

/// How long a lane waits for a lock that somebody else holds before it looks who that is. Longer delays
/// a takeover from a stopped owner; shorter sends batches again over every hiccup.
const LOCK_TIMEOUT_MS: &str = "1000";

/// Most statements that a transaction's rows are sent in. More hold a transaction, and its locks, open for so many
/// statement time-outs; fewer leave rows that never get through.
const STATEMENTS_MAX: u32 = 64;

/// Which part of the statement time-out the slowest statement must keep below for two to become one again. Larger
/// leaves rows in more parts than they need; smaller joins what is too slow together.
const FAST_PART: u32 = 4;

/// A connection, or none yet.
pub struct PgSession {
    topic: String,
    options: PgConnectOptions,
    statement_timeout: Duration,
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
            statement_timeout,
            connection: None,
            statements: 1,
            too_slow: 0,
        }
    }

    /// Rows that need longer than the statement time-out would be sent again for ever: the second time, and
    /// from then on, each statement has half as many. Once each is fast again, two become one: many statements
    /// may take long together and be needless.
    fn learn(&mut self, slowest: Result<Duration, &Failure>) {
        match slowest {
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
            Ok(slowest) => {
                self.too_slow = 0;
                if slowest * FAST_PART < self.statement_timeout {
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

    fn write<'a>(&'a mut self, job: &'a Job, deadline: Duration) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let (topic, pace) = (self.topic.clone(), Pace { statements: self.statements, deadline });
            let written = write(self.connection().map_err(failure)?, &topic, job, pace).await;
            self.learn(written.as_ref().copied());
            written.map(drop)
        })
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

    fn trial<'a>(
        &'a mut self,
        tuples: &'a [u8],
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Option<String>, Failure>> {
        Box::pin(async move {
            let pace = Pace { statements: self.statements, deadline };
            let tried = trial(self.connection().map_err(failure)?, tuples, pace).await;
            // Only what is too slow: fewer rows than the batch has say nothing about how fast the batch is.
            if let Err(failure) = &tried {
                self.learn(Err(failure));
            }
            tried.map(Result::err)
        })
    }

    fn evict(&mut self) -> DatabaseFuture<'_, i64> {
        Box::pin(async {
            let older_ms = i64::try_from(self.statement_timeout.as_millis()).unwrap_or(i64::MAX);
            sqlx::query_scalar(EVICT).bind(older_ms).fetch_one(self.connection()?).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(statements: u32) -> PgSession {
        let mut session =
            PgSession::new("topic", PgConnectOptions::new_without_pgpass(), Duration::from_secs(5));
        session.statements = statements;
        session
    }

    #[test]
    fn parts_that_are_fast_each_join_however_long_they_take_together() {
        let mut session = session(STATEMENTS_MAX);
        // 64 × 100 ms are longer than a statement may take, and one of them is not.
        (0..3).for_each(|_| session.learn(Ok(Duration::from_millis(100))));
        assert_eq!(session.statements, STATEMENTS_MAX / 8);
    }

    #[test]
    fn parts_that_would_be_slow_together_stay() {
        let mut session = session(8);
        session.learn(Ok(Duration::from_millis(1_500)));
        assert_eq!(session.statements, 8);
    }

    #[test]
    fn too_slow_twice_is_half_as_many_rows() {
        let mut session = session(1);
        let too_slow = Failure::TooSlow("statement timeout".to_owned());
        session.learn(Err(&too_slow));
        assert_eq!(session.statements, 1, "once may be a hiccup");
        (0..20).for_each(|_| session.learn(Err(&too_slow)));
        assert_eq!(session.statements, STATEMENTS_MAX);
    }
}
