//! Persisting: one connection, one transaction at a time.
//!
//! 1. Rows and frontiers move in one transaction, or not at all.
//! 2. The ledger's compare-and-set decides who may write. A partition that it does not return belongs
//!    to somebody else; the other partitions of the batch are written all the same.
//! 3. A COMMIT whose answer was lost is settled by asking the ledger, never by writing again.
//! 4. An error of the world is waited out; a row that Postgres refuses is found and handed back.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, Row};

use super::transaction::{EVICT, Failure, commit, write};
use crate::config::Config;
use crate::failpoint::failpoint;
use crate::reject_limit::RejectWindow;
use crate::retry::Backoff;
use crate::telemetry::metrics;

/// How long a lane waits for a lock that somebody else holds before it looks who that is. Longer delays
/// a takeover from a stopped owner; shorter sends batches again over every hiccup.
const LOCK_TIMEOUT_MS: &str = "1000";

/// A contiguous range of one partition: its rows, and where the ledger stands before and after.
#[derive(Debug, Default)]
pub struct PartitionBatch {
    pub partition: i32,
    pub epoch: i64,
    /// The frontier before, and the one after.
    pub first: i64,
    pub next: i64,
    /// The day reached before, and after (days since 1970).
    pub day_before: i32,
    pub day: i32,
    pub rows: u64,
    /// The rows as COPY-binary tuples, ascending by offset.
    pub tuples: Vec<u8>,
    /// Fingerprint of the record at `next - 1`.
    pub last_record_hash: Option<i64>,
    pub rejects: u64,
    /// The reject limit's counts after this batch.
    pub window: RejectWindow,
    /// Kafka's timestamp of the oldest record in it, ms.
    pub oldest_ms: i64,
}

/// What became of a partition's batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    /// Another owner, or an operator's stop: nothing was written.
    Fenced,
    /// A row of the range is in the table although the ledger says it is not: an operator must look.
    Disagrees,
    /// Postgres refuses this row; nothing of the batch was written.
    Refused {
        offset: i64,
        sqlstate: String,
    },
}

/// One job for a lane, and what comes back of it.
pub type Job = Vec<PartitionBatch>;
pub type JobResult = Vec<(PartitionBatch, Outcome)>;

/// A connection that persists, one job after the other.
pub struct Lane {
    topic: String,
    options: PgConnectOptions,
    statement_timeout_ms: i64,
    pub(super) deadline: Duration,
    pub(super) connection: Option<PgConnection>,
}

impl Lane {
    /// A lane connects when it is first used.
    pub fn new(config: &Config) -> Result<Self, sqlx::Error> {
        Ok(Lane {
            topic: config.kafka.topic.clone(),
            options: super::connect_options(config)?.options([("lock_timeout", LOCK_TIMEOUT_MS)]),
            statement_timeout_ms: config.postgres.statement_timeout_ms as i64,
            deadline: Duration::from_millis(config.postgres.deadline_ms),
            connection: None,
        })
    }

    /// Persists a job, however long the world takes. Every batch comes back with its outcome.
    pub async fn persist(&mut self, mut job: Job) -> JobResult {
        job.sort_by_key(|batch| batch.partition);
        let mut done = JobResult::new();
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        while !job.is_empty() {
            match self.attempt(&job).await {
                Ok(()) => {
                    done.extend(job.drain(..).map(|batch| (batch, Outcome::Committed)));
                }
                Err(Failure::Fenced(partitions)) => {
                    self.split_fenced(&mut job, &partitions, &mut done);
                }
                Err(Failure::Unknown(why)) => {
                    tracing::warn!(why, "the answer to a COMMIT was lost: asking the ledger");
                    self.settle(&mut job, &mut done).await;
                }
                Err(Failure::Duplicate) => {
                    let before = job.len();
                    match self.split_duplicates(&mut job, &mut done).await {
                        Ok(()) if job.len() < before => {}
                        Ok(()) => self.wait(&mut backoff, "a duplicate key that is in no batch").await,
                        Err(why) => self.wait(&mut backoff, &why).await,
                    }
                }
                Err(Failure::Refused) => {
                    let before = job.len();
                    match self.split_refused(&mut job, &mut done).await {
                        Ok(()) if job.len() < before => {}
                        Ok(()) => self.wait(&mut backoff, "a refusal that no row explains").await,
                        Err(why) => self.wait(&mut backoff, &why).await,
                    }
                }
                Err(Failure::Blocked(why)) => {
                    self.evict_stopped_owner().await;
                    self.wait(&mut backoff, &why).await;
                }
                Err(Failure::Transient(why)) => self.wait(&mut backoff, &why).await,
            }
        }
        done
    }

    /// Ends sessions of workers that were stopped in the middle of sending rows: no time-out of
    /// Postgres acts on a COPY that waits for its client, and its rows would block their successor's
    /// for as long as the worker is stopped. A COPY that is older than the statement time-out is one.
    async fn evict_stopped_owner(&mut self) {
        let (deadline, older_ms) = (self.deadline, self.statement_timeout_ms);
        self.connection = None;
        let Ok(connection) = self.connection().await else { return };
        let evict = sqlx::query_scalar::<_, i64>(EVICT).bind(older_ms).fetch_one(connection);
        match tokio::time::timeout(deadline, evict).await {
            Ok(Ok(0)) => {}
            Ok(Ok(evicted)) => {
                tracing::warn!(evicted, "sessions of stopped workers that held rows were ended");
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot look for sessions of stopped workers"),
            Err(_) => self.connection = None,
        }
    }

    async fn wait(&mut self, backoff: &mut Backoff, why: &str) {
        self.connection = None;
        metrics::retried("postgres");
        tracing::warn!(why, "postgres did not take a batch: connecting anew and trying again");
        backoff.wait().await;
    }

    fn split_fenced(&self, job: &mut Job, partitions: &[i32], done: &mut JobResult) {
        metrics::persist_conflicts(partitions.len() as u64);
        for batch in std::mem::take(job) {
            if partitions.contains(&batch.partition) {
                done.push((batch, Outcome::Fenced));
            } else {
                job.push(batch);
            }
        }
    }

    /// One transaction: COPY, compare-and-set, COMMIT.
    async fn attempt(&mut self, job: &Job) -> Result<(), Failure> {
        let deadline = self.deadline;
        let topic = self.topic.clone();
        let started = std::time::Instant::now();
        let connection = self.connection().await?;
        let written = tokio::time::timeout(deadline, write(connection, &topic, job)).await;
        match written {
            Err(_) => {
                self.connection = None;
                return Err(Failure::Transient(format!("no answer within {deadline:?}")));
            }
            Ok(Err(failure)) => {
                if !matches!(failure, Failure::Fenced(_)) {
                    self.connection = None;
                }
                return Err(failure);
            }
            Ok(Ok(())) => {}
        }
        let connection = self.connection().await?;
        match tokio::time::timeout(deadline, commit(connection)).await {
            Ok(Ok(())) => {
                metrics::transaction_took(started.elapsed().as_secs_f64() * 1e3);
                Ok(())
            }
            Ok(Err(error)) => {
                self.connection = None;
                Err(Failure::Unknown(error.to_string()))
            }
            Err(_) => {
                self.connection = None;
                Err(Failure::Unknown(format!("no answer within {deadline:?}")))
            }
        }
    }

    pub(super) async fn connection(&mut self) -> Result<&mut PgConnection, Failure> {
        if self.connection.is_none() {
            let connect = PgConnection::connect_with(&self.options);
            let connection = match tokio::time::timeout(self.deadline, connect).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => return Err(Failure::Transient(error.to_string())),
                Err(_) => return Err(Failure::Transient("no connection in time".to_owned())),
            };
            self.connection = Some(connection);
        }
        match self.connection.as_mut() {
            Some(connection) => Ok(connection),
            None => Err(Failure::Transient("no connection".to_owned())),
        }
    }

    /// Asks the ledger whether a transaction was committed; the row lock waits for its end.
    async fn settle(&mut self, job: &mut Job, done: &mut JobResult) {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        let stands = loop {
            match self.ledger_rows(job).await {
                Ok(rows) => break rows,
                Err(why) => self.wait(&mut backoff, &why).await,
            }
        };
        let at = |batch: &PartitionBatch| stands.iter().find(|(p, ..)| *p == batch.partition);
        let landed = |batch: &PartitionBatch| {
            at(batch).is_some_and(|(_, epoch, next)| *epoch == batch.epoch && *next == batch.next)
        };
        // One transaction: where one partition's frontier moved, all of them did. A partition that
        // has a new owner meanwhile is that owner's either way.
        let committed = job.iter().any(landed);
        if !committed {
            // Tried again: what has a new owner falls out at the compare-and-set.
            return;
        }
        for batch in job.drain(..) {
            let mine = at(&batch).is_some_and(|(_, epoch, _)| *epoch == batch.epoch);
            done.push((batch, if mine { Outcome::Committed } else { Outcome::Fenced }));
        }
    }

    /// (partition, epoch, frontier) of the job's partitions, locked one after the other.
    pub(super) async fn ledger_rows(&mut self, job: &Job) -> Result<Vec<(i32, i64, i64)>, String> {
        failpoint!("persist.in-settling");
        let deadline = self.deadline;
        let topic = self.topic.clone();
        let partitions: Vec<i32> = job.iter().map(|b| b.partition).collect();
        let connection = self.connection().await.map_err(|f| f.to_string())?;
        let ask = sqlx::query(
            "SELECT partition, epoch, persist_frontier FROM partition_ledger
             WHERE topic = $1 AND partition = ANY($2) ORDER BY partition FOR UPDATE",
        )
        .bind(topic)
        .bind(partitions)
        .fetch_all(connection);
        let rows = match tokio::time::timeout(deadline, ask).await {
            Ok(rows) => rows.map_err(|e| e.to_string())?,
            Err(_) => return Err(format!("no answer within {deadline:?}")),
        };
        Ok(rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect())
    }
}
