//! Which batch, and which row, Postgres said no to.

use tokio::time::timeout;

use super::lane::{Job, JobResult, Lane, Outcome, PartitionBatch};
use crate::row;

impl Lane {
    /// A duplicate key: either the compare-and-set would have failed (somebody else wrote the range),
    /// or table and ledger disagree.
    pub(super) async fn split_duplicates(
        &mut self,
        job: &mut Job,
        done: &mut JobResult,
    ) -> Result<(), String> {
        let stands = self.ledger_rows(job).await?;
        let mut rest = Job::new();
        let mut left = std::mem::take(job).into_iter();
        while let Some(batch) = left.next() {
            let stand = stands.iter().find(|(p, ..)| *p == batch.partition);
            let passes = stand.is_some_and(|(_, e, f)| *e == batch.epoch && *f == batch.first);
            if !passes {
                done.push((batch, Outcome::Fenced));
                continue;
            }
            match self.rows_exist(&batch).await {
                Ok(true) => done.push((batch, Outcome::Disagrees)),
                Ok(false) => rest.push(batch),
                Err(why) => {
                    rest.push(batch);
                    rest.extend(left);
                    *job = rest;
                    return Err(why);
                }
            }
        }
        *job = rest;
        Ok(())
    }

    async fn rows_exist(&mut self, batch: &PartitionBatch) -> Result<bool, String> {
        self.connect().await?;
        let exist = self.session.rows_exist(batch.partition, batch.first, batch.next);
        let answer = timeout(self.deadline, exist).await;
        self.heard(answer)
    }

    /// Finds, in each partition's batch, the first row that Postgres refuses: by trial transactions
    /// that are rolled back, log2(rows) of them.
    pub(super) async fn split_refused(&mut self, job: &mut Job, done: &mut JobResult) -> Result<(), String> {
        let mut rest = Job::new();
        let mut left = std::mem::take(job).into_iter();
        while let Some(batch) = left.next() {
            match self.first_refused(&batch).await {
                Ok(Some((offset, sqlstate))) => {
                    done.push((batch, Outcome::Refused { offset, sqlstate }));
                }
                Ok(None) => rest.push(batch),
                Err(why) => {
                    rest.push(batch);
                    rest.extend(left);
                    *job = rest;
                    return Err(why);
                }
            }
        }
        *job = rest;
        Ok(())
    }

    async fn first_refused(&mut self, batch: &PartitionBatch) -> Result<Option<(i64, String)>, String> {
        let mut starts = Vec::new();
        let mut offsets = Vec::new();
        let mut at = 0;
        for tuple in row::Rows::new(&batch.tuples) {
            let tuple = tuple.map_err(|e| e.to_string())?;
            starts.push(at);
            offsets.push(tuple.offset());
            at += tuple.bytes().len();
        }
        starts.push(at);
        let Some(mut code) = self.trial(&batch.tuples).await? else { return Ok(None) };
        // Invariant: the first `good` rows are taken, the first `bad` rows are not.
        let (mut good, mut bad) = (0, offsets.len());
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            match self.trial(&batch.tuples[..starts[middle]]).await? {
                Some(refused) => (bad, code) = (middle, refused),
                None => good = middle,
            }
        }
        Ok(offsets.get(good).map(|offset| (*offset, code)))
    }

    /// Tries to write these rows and takes them back: the SQLSTATE if Postgres refuses one of them.
    async fn trial(&mut self, tuples: &[u8]) -> Result<Option<String>, String> {
        self.connect().await?;
        let answer = self.session.trial(tuples, self.deadline).await;
        answer.map_err(|failure| {
            self.session.disconnect();
            failure.to_string()
        })
    }
}
