//! Persisting: one connection, one transaction at a time.
//!
//! 1. Rows and frontiers move in one transaction, or not at all.
//! 2. The ledger's compare-and-set decides who may write. A partition that it does not return belongs
//!    to somebody else; the other partitions of the batch are written all the same.
//! 3. A COMMIT whose answer was lost is settled by asking the ledger, never by writing again.
//! 4. An error of the world is waited out; a row that Postgres refuses is found and handed back.

use std::time::Duration;

use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};

use super::transaction::Failure;
use crate::outside::Session;
use crate::reject_limit::RejectWindow;
use crate::retry::Backoff;
use crate::telemetry::metrics;
use crate::telemetry::traces::Times;

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
    /// For its trace.
    pub times: Times,
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

/// A session that persists, one job after the other.
pub struct Lane {
    pub(super) session: Box<dyn Session>,
    /// How long any one answer may take.
    pub(super) deadline: Duration,
}

impl Lane {
    pub fn new(session: Box<dyn Session>, deadline: Duration) -> Self {
        Lane { session, deadline }
    }

    /// Persists a job, however long the world takes. Every batch comes back with its outcome.
    pub async fn persist(&mut self, mut job: Job) -> JobResult {
        job.sort_by_key(|batch| batch.partition);
        let mut done = JobResult::new();
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        while !job.is_empty() {
            let began = Instant::now();
            match self.attempt(&job).await {
                Ok(()) => {
                    let now = Instant::now();
                    for batch in &mut job {
                        batch.times.began_at = Some(began);
                        batch.times.committed_at = Some(now);
                    }
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
                Err(Failure::Refused(_)) => {
                    let before = job.len();
                    match self.split_refused(&mut job, &mut done).await {
                        Ok(()) if job.len() < before => {}
                        Ok(()) => self.wait(&mut backoff, "a refusal that no row explains").await,
                        Err(why) => self.wait(&mut backoff, &why).await,
                    }
                }
                Err(Failure::Blocked(why) | Failure::TooSlow(why)) => {
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
        self.session.disconnect();
        let evicted = match self.connect().await {
            Ok(()) => {
                let answer = timeout(self.deadline, self.session.evict()).await;
                self.heard(answer)
            }
            Err(why) => Err(why),
        };
        match evicted {
            Ok(0) => {}
            Ok(evicted) => tracing::warn!(evicted, "sessions of stopped workers that held rows were ended"),
            Err(why) => tracing::warn!(why, "cannot look for sessions of stopped workers"),
        }
    }

    async fn wait(&mut self, backoff: &mut Backoff, why: &str) {
        self.session.disconnect();
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
        let started = Instant::now();
        self.connect().await.map_err(Failure::Transient)?;
        if let Err(failure) = self.session.write(job, deadline).await {
            if !matches!(failure, Failure::Fenced(_)) {
                self.session.disconnect();
            }
            return Err(failure);
        }
        let why = match timeout(deadline, self.session.commit()).await {
            Ok(Ok(())) => {
                metrics::transaction_took(started.elapsed().as_secs_f64() * 1e3);
                return Ok(());
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {deadline:?}"),
        };
        self.session.disconnect();
        Err(Failure::Unknown(why))
    }

    pub(super) async fn connect(&mut self) -> Result<(), String> {
        match timeout(self.deadline, self.session.connect()).await {
            Ok(connected) => connected.map_err(|e| e.to_string()),
            Err(_) => Err("no connection in time".to_owned()),
        }
    }

    /// An answer to a question beside the transaction. A session that gave none is not used again.
    pub(super) fn heard<T>(&mut self, answer: Result<Result<T, sqlx::Error>, Elapsed>) -> Result<T, String> {
        let answer = match answer {
            Ok(answer) => answer.map_err(|e| e.to_string()),
            Err(_) => Err(format!("no answer within {:?}", self.deadline)),
        };
        if answer.is_err() {
            self.session.disconnect();
        }
        answer
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
        let partitions: Vec<i32> = job.iter().map(|b| b.partition).collect();
        self.connect().await?;
        let answer = timeout(self.deadline, self.session.locked(&partitions)).await;
        self.heard(answer)
    }
}
