//! The one transaction of persisting, and what its failures mean.

use std::time::Duration;

use sqlx::{Executor, PgConnection};
use tokio::time::{Instant, timeout};

use super::lane::{Job, PartitionBatch};
use super::sqlstate;
use crate::failpoint::failpoint;
use crate::row;

/// Why an attempt did not commit.
#[derive(Debug)]
pub enum Failure {
    /// These partitions did not pass the compare-and-set.
    Fenced(Vec<i32>),
    Duplicate,
    /// A row is at fault; the SQLSTATE says why.
    Refused(String),
    /// COMMIT was sent, and no answer came.
    Unknown(String),
    /// The world's fault.
    Transient(String),
    /// Somebody holds a lock.
    Blocked(String),
    /// A statement took longer than its time-out.
    TooSlow(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Fenced(partitions) => write!(f, "fenced: partitions {partitions:?}"),
            Failure::Duplicate => f.write_str("duplicate key"),
            Failure::Refused(code) => write!(f, "a row was refused: {code}"),
            Failure::Unknown(why)
            | Failure::Transient(why)
            | Failure::Blocked(why)
            | Failure::TooSlow(why) => f.write_str(why),
        }
    }
}

/// What says that the row is at fault: data exceptions, NOT NULL, CHECK. Nothing else does.
fn refuses_a_row(code: &str) -> bool {
    code.starts_with("22") || code == "23502" || code == "23514"
}

pub(super) fn failure(error: sqlx::Error) -> Failure {
    match sqlstate(&error).as_deref() {
        Some("23505") => Failure::Duplicate,
        Some(code) if refuses_a_row(code) => Failure::Refused(code.to_owned()),
        Some("55P03") => Failure::Blocked(error.to_string()),
        Some("57014") => Failure::TooSlow(error.to_string()),
        _ => Failure::Transient(error.to_string()),
    }
}

/// What is handed to the connection at once, which copies it. Larger and the copy is out of the processor's cache before
/// the kernel reads it, and stays as memory of the connection; smaller is a system call for each few rows.
const COPY_SLICE_BYTES: usize = 64 << 10;

/// In how many statements rows are sent, and how long any one statement may go without an answer.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub(super) statements: u32,
    pub(super) deadline: Duration,
}

impl Pace {
    async fn answer<T>(self, statement: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Failure> {
        match timeout(self.deadline, statement).await {
            Ok(answer) => answer.map_err(failure),
            Err(_) => Err(Failure::Transient(format!("no answer within {:?}", self.deadline))),
        }
    }
}

/// Everything before the COMMIT; says how long the slowest statement of rows took.
pub(super) async fn write(
    connection: &mut PgConnection,
    topic: &str,
    job: &Job,
    pace: Pace,
) -> Result<Duration, Failure> {
    pace.answer(connection.execute("BEGIN")).await?;
    let slowest = copy_all(connection, job.iter().map(|b| b.tuples.as_slice()), pace).await?;
    let moved = pace.answer(move_frontiers(connection, topic, job)).await?;
    let missing: Vec<i32> = job.iter().map(|b| b.partition).filter(|p| !moved.contains(p)).collect();
    if missing.is_empty() {
        return Ok(slowest);
    }
    pace.answer(connection.execute("ROLLBACK")).await?;
    Err(Failure::Fenced(missing))
}

/// Writes rows and takes them back: the SQLSTATE if one of them is refused, or how long the slowest statement took.
pub(super) async fn trial(
    connection: &mut PgConnection,
    tuples: &[u8],
    pace: Pace,
) -> Result<Result<Duration, String>, Failure> {
    pace.answer(connection.execute("BEGIN")).await?;
    let tried = match copy_all(connection, [tuples], pace).await {
        Ok(slowest) => Ok(slowest),
        Err(Failure::Refused(code)) => Err(code),
        Err(failure) => return Err(failure),
    };
    pace.answer(connection.execute("ROLLBACK")).await?;
    Ok(tried)
}

/// Sends rows in several statements, each with the statement time-out to itself; how long the slowest took.
async fn copy_all<'a>(
    connection: &mut PgConnection,
    tuples: impl IntoIterator<Item = &'a [u8]>,
    pace: Pace,
) -> Result<Duration, Failure> {
    let mut slowest = Duration::ZERO;
    for part in split(tuples, pace.statements)? {
        let begun_at = Instant::now();
        pace.answer(copy(connection, &part)).await?;
        slowest = slowest.max(begun_at.elapsed());
    }
    Ok(slowest)
}

/// Rows in so many parts of about the same number of rows; none if there are no rows.
fn split<'a>(tuples: impl IntoIterator<Item = &'a [u8]>, parts: u32) -> Result<Vec<Vec<&'a [u8]>>, Failure> {
    let whole: Vec<&[u8]> = tuples.into_iter().filter(|t| !t.is_empty()).collect();
    if parts == 1 || whole.is_empty() {
        return Ok(Some(whole).into_iter().filter(|whole| !whole.is_empty()).collect());
    }
    let rows = whole.iter().map(|tuples| row::Rows::new(tuples).count()).sum::<usize>();
    let rows_max = rows.div_ceil(parts as usize).max(1);
    let (mut found, mut part, mut taken) = (Vec::new(), Vec::new(), 0);
    for tuples in whole {
        let (mut start, mut at) = (0, 0);
        for tuple in row::Rows::new(tuples) {
            if taken == rows_max {
                part.push(&tuples[start..at]);
                found.push(std::mem::take(&mut part));
                (start, taken) = (at, 0);
            }
            at += tuple.map_err(|e| Failure::Transient(e.to_string()))?.bytes().len();
            taken += 1;
        }
        part.push(&tuples[start..at]);
    }
    found.push(part);
    Ok(found)
}

async fn copy(connection: &mut PgConnection, parts: &[&[u8]]) -> Result<(), sqlx::Error> {
    failpoint!("persist.before-copy");
    let mut copy = connection.copy_in_raw(&super::copy_in_statement()).await?;
    let sent: Result<(), sqlx::Error> = async {
        copy.send(row::COPY_HEADER).await?;
        for slice in parts.iter().flat_map(|part| part.chunks(COPY_SLICE_BYTES)) {
            copy.send(slice).await?;
        }
        failpoint!("persist.in-copy");
        copy.send(&row::COPY_TRAILER[..]).await?;
        Ok(())
    }
    .await;
    sent?;
    copy.finish().await?;
    failpoint!("persist.after-copy");
    Ok(())
}

/// COMMIT. An error says nothing about whether it happened.
pub(super) async fn commit(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    failpoint!("persist.before-commit");
    let commit = connection.execute("COMMIT");
    #[cfg(feature = "failpoints")]
    let commit = crate::failpoint::once_begun("persist.commit-sent", commit);
    commit.await?;
    failpoint!("persist.after-commit");
    Ok(())
}

/// The compare-and-set: returns the partitions whose frontier moved.
async fn move_frontiers(
    connection: &mut PgConnection,
    topic: &str,
    job: &Job,
) -> Result<Vec<i32>, sqlx::Error> {
    fn column<T>(job: &Job, of: impl Fn(&PartitionBatch) -> T) -> Vec<T> {
        job.iter().map(of).collect()
    }
    let moved = sqlx::query_scalar(MOVE_FRONTIERS)
        .bind(topic)
        .bind(column(job, |b| b.partition))
        .bind(column(job, |b| b.epoch))
        .bind(column(job, |b| b.first))
        .bind(column(job, |b| b.next))
        .bind(column(job, |b| b.day_before))
        .bind(column(job, |b| b.day))
        .bind(column(job, |b| b.last_record_hash))
        .bind(column(job, |b| b.rejects.cast_signed()))
        .bind(column(job, |b| b.window.run))
        .bind(column(job, |b| b.window.records))
        .bind(column(job, |b| b.window.rejects))
        .bind(column(job, |b| b.window.previous_rejects))
        .fetch_all(connection)
        .await?;
    failpoint!("persist.after-frontier");
    Ok(moved)
}

/// Another user's sessions, or another program's, are never looked at.
pub(super) const EVICT: &str = "
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE application_name = 'feed-worker' AND datname = current_database() AND usename = current_user
      AND pid <> pg_backend_pid() AND state = 'active' AND wait_event = 'ClientRead'
      AND query LIKE 'COPY user_interactions%'
      AND query_start < clock_timestamp() - $1 * interval '1 millisecond'";

/// Rows are locked in the order of their partitions, so that two workers cannot deadlock.
const MOVE_FRONTIERS: &str = "
    WITH want AS (
        SELECT * FROM unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::int[], $7::int[],
                             $8::bigint[], $9::bigint[], $10::bigint[], $11::int[], $12::int[], $13::int[])
            AS w (partition, epoch, first, next, day_before, day,
                  hash, rejects, run, window_records, window_rejects, previous_rejects)
    ), held AS (
        SELECT l.partition FROM partition_ledger l JOIN want w USING (partition)
        WHERE l.topic = $1 ORDER BY l.partition FOR UPDATE OF l
    )
    UPDATE partition_ledger l
    SET persist_frontier = w.next,
        persist_day      = date '1970-01-01' + w.day,
        last_record_hash = coalesce(w.hash, l.last_record_hash),
        rejects_total    = l.rejects_total + w.rejects,
        reject_run       = w.run,
        window_records   = w.window_records,
        window_rejects   = w.window_rejects,
        previous_rejects = w.previous_rejects,
        updated_at       = now()
    FROM want w JOIN held h USING (partition)
    WHERE l.topic = $1 AND l.partition = w.partition AND l.epoch = w.epoch
      AND l.persist_frontier = w.first AND l.persist_day = date '1970-01-01' + w.day_before
      AND l.stopped IS NULL
    RETURNING l.partition";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_statement_has_the_deadline_to_itself_however_many_there_are() {
        let pace = Pace { statements: 64, deadline: Duration::from_secs(10) };
        let begun_at = Instant::now();
        let answer = pace.answer(std::future::pending::<Result<(), sqlx::Error>>()).await;
        assert!(matches!(answer, Err(Failure::Transient(_))), "{answer:?}");
        assert_eq!(begun_at.elapsed(), pace.deadline);
    }
}
