//! The ledger: who owns a partition, how far it is, and what an operator has to decide.
//!
//! 1. An epoch is never used twice, not even after a restore: it is at least the time in ms.
//! 2. Every change of a frontier or a day is a compare-and-set under the owner's epoch.
//! 3. What the worker may not decide is written down as a stop, with its reason, and stays until an
//!    operator's command takes it away.

use std::collections::BTreeMap;

use sqlx::postgres::{PgPool, PgRow};
use sqlx::{PgConnection, Row};

use super::{day, places};
use crate::failpoint::failpoint;
use crate::kafka::rebalance::Candidate;
use crate::reject_limit::{RejectLimits, RejectWindow};

/// Why a partition waits for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The broker no longer has the records from the frontier on.
    Gap,
    /// The frontier is past the end of the partition: re-created topic, or lost records.
    Ahead,
    /// The record before the frontier is not the one that was persisted.
    Recreated,
    /// The bucket has what this ledger has not: Postgres was restored from a backup.
    Restored,
    /// Rows are in the table that the ledger does not know.
    Disagrees,
    /// Postgres refuses a record that the broker no longer has.
    Refused,
    /// The broker has records that cannot be read (a bad checksum).
    Unreadable,
}

impl Stop {
    pub fn as_str(self) -> &'static str {
        match self {
            Stop::Gap => "gap",
            Stop::Ahead => "ahead",
            Stop::Recreated => "recreated",
            Stop::Restored => "restored",
            Stop::Disagrees => "disagrees",
            Stop::Refused => "refused",
            Stop::Unreadable => "unreadable",
        }
    }
}

/// A partition as the ledger gives it to its new owner.
#[derive(Clone, Debug)]
pub struct Owned {
    pub partition: i32,
    pub epoch: i64,
    pub persist_frontier: i64,
    pub persist_day: i32,
    pub export_frontier: i64,
    pub closed_day: i32,
    pub last_record_hash: Option<i64>,
    pub window: RejectWindow,
}

/// What an assignment found.
#[derive(Debug, Default)]
pub struct Assigned {
    pub owned: Vec<Owned>,
    /// Partitions that wait for an operator.
    pub stopped: Vec<(i32, String)>,
    /// Partitions whose server is away, and why that is known: they are asked for again.
    pub away: BTreeMap<i32, String>,
    /// Where the owned ones stood before they were taken.
    pub before: BTreeMap<i32, Owned>,
    /// The bucket knows nothing about them that the ledger does not.
    pub is_bucket_asked: bool,
    /// Postgres's clock, ms since 1970.
    pub now_ms: i64,
}

/// Why this worker may not use the ledger at all.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error(
        "the ledger of topic {topic} belongs to cluster {cluster_id} and group {group_id}, not to this worker's; \
             point it at its own database, or take the ledger over by hand (docs/operations.md)"
    )]
    Foreign { topic: String, cluster_id: String, group_id: String },
    /// What is configured contradicts the ledgers.
    #[error("{0}")]
    Refused(String),
    #[error(
        "partition {partition} is over its reject limit: {why}; \
             look into the DLQ, then `feed-worker rejects accept` or raise the limit"
    )]
    Flood { partition: i32, why: String },
    /// Something that is asked before partitions are taken over did not answer.
    #[error("{0}")]
    World(String),
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Identity {
    pub topic: String,
    pub cluster_id: String,
    pub group_id: String,
    /// Name of this worker, for people who read the ledger.
    pub owner: String,
}

/// How far the partitions of a topic are, without becoming their owner.
pub async fn peek(pool: &PgPool, topic: &str) -> Result<BTreeMap<i32, Owned>, sqlx::Error> {
    let rows = sqlx::query(&format!("{SELECT_OWNED} WHERE topic = $1")).bind(topic).fetch_all(pool).await?;
    Ok(rows.iter().map(owned).map(|o| (o.partition, o)).collect())
}

/// Whether the topic has its row; and Postgres's clock in ms.
pub async fn topic_known(pool: &PgPool, topic: &str) -> Result<(bool, i64), sqlx::Error> {
    sqlx::query_as("SELECT EXISTS (SELECT FROM topic_ledger WHERE topic = $1), (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        .bind(topic)
        .fetch_one(pool)
        .await
}

/// Enters a topic whose first record is of `first_day`. Whoever comes second changes nothing.
pub async fn enter_topic(pool: &PgPool, who: &Identity, first_day: i32) -> Result<(), sqlx::Error> {
    failpoint!("topic.before-enter");
    sqlx::query(concat!(
        "INSERT INTO topic_ledger (topic, cluster_id, group_id, closed_day, success_day)
         VALUES ($1, $2, $3, ",
        day!(4),
        " - 1, ",
        day!(4),
        " - 1) ON CONFLICT (topic) DO NOTHING"
    ))
    .bind(&who.topic)
    .bind(&who.cluster_id)
    .bind(&who.group_id)
    .bind(first_day)
    .execute(pool)
    .await?;
    failpoint!("topic.after-enter");
    Ok(())
}

/// Refuses a ledger of another cluster or group.
pub async fn check_identity(connection: &mut PgConnection, who: &Identity) -> Result<(), LedgerError> {
    let row: Option<(String, String)> =
        sqlx::query_as("SELECT cluster_id, group_id FROM topic_ledger WHERE topic = $1")
            .bind(&who.topic)
            .fetch_optional(connection)
            .await?;
    match row {
        Some((cluster_id, group_id)) if cluster_id != who.cluster_id || group_id != who.group_id => {
            Err(LedgerError::Foreign { topic: who.topic.clone(), cluster_id, group_id })
        }
        _ => Ok(()),
    }
}

/// Takes partitions over: new epochs, their frontiers, and stops where the broker does not have what
/// comes next, or where the bucket knows more than the ledger.
pub async fn assign(
    pool: &PgPool,
    who: &Identity,
    candidates: &[Candidate],
    objects: &[NewestObject],
    limits: &RejectLimits,
) -> Result<Assigned, LedgerError> {
    let mut tx = pool.begin().await?;
    check_identity(&mut tx, who).await?;
    let partitions: Vec<i32> = candidates.iter().map(|c| c.partition).collect();
    let known = lock_rows(&mut tx, &who.topic, &partitions).await?;
    let new: Vec<&Candidate> = candidates.iter().filter(|c| !known.contains_key(&c.partition)).collect();
    if !new.is_empty() {
        insert_partitions(&mut tx, who, &new).await?;
        failpoint!("assign.first-row");
    }
    let stands = lock_rows(&mut tx, &who.topic, &partitions).await?;
    let mut stopped = Vec::new();
    for candidate in candidates {
        let Some((ledger, reason)) = stands.get(&candidate.partition) else { continue };
        if let Some(why) = ledger.window.exceeds(limits) {
            return Err(LedgerError::Flood { partition: candidate.partition, why });
        }
        if let Some(place) = reason.as_deref().and_then(places::place_of) {
            return Err(LedgerError::Refused(places::refusal(candidate.partition, "here", place)));
        }
        if let Some(reason) = reason {
            stopped.push((candidate.partition, reason.clone()));
            continue;
        }
        let object = objects.iter().find(|o| o.partition == candidate.partition);
        if let Some((stop, detail)) = bounds_stop(ledger.persist_frontier, candidate)
            .or_else(|| object.and_then(|object| object.proves_restore(ledger)))
        {
            write_stop(&mut tx, &who.topic, candidate.partition, None, stop, &detail).await?;
            stopped.push((candidate.partition, format!("{}: {detail}", stop.as_str())));
        }
    }
    failpoint!("assign.before-epoch");
    let taken: Vec<i32> =
        partitions.iter().copied().filter(|p| !stopped.iter().any(|(stopped, _)| stopped == p)).collect();
    let rows = sqlx::query(&format!(
        "WITH taken AS (
             UPDATE partition_ledger
             SET epoch = greatest(epoch + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint),
                 owner = $3, updated_at = now()
             WHERE topic = $1 AND partition = ANY($2) RETURNING *)
         {} ORDER BY partition",
        SELECT_OWNED.replace("partition_ledger", "taken")
    ))
    .bind(&who.topic)
    .bind(&taken)
    .bind(&who.owner)
    .fetch_all(&mut *tx)
    .await?;
    let now_ms = sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        .fetch_one(&mut *tx)
        .await?;
    failpoint!("assign.before-commit");
    tx.commit().await?;
    failpoint!("assign.after-commit");
    let before = stands.into_iter().filter(|(partition, _)| taken.contains(partition));
    let before = before.map(|(partition, (stood, _))| (partition, stood)).collect();
    let owned = rows.iter().map(owned).collect();
    Ok(Assigned { owned, stopped, before, now_ms, ..Assigned::default() })
}

/// An object in the bucket that the ledger has not entered.
#[derive(Clone, Debug)]
pub struct NewestObject {
    pub partition: i32,
    pub next_offset: i64,
    pub epoch: i64,
    pub key: String,
}

impl NewestObject {
    /// No ledger wrote a range that it had not persisted, or under an epoch that it never gave out:
    /// this one is older than the object.
    pub fn proves_restore(&self, ledger: &Owned) -> Option<(Stop, String)> {
        if self.next_offset <= ledger.persist_frontier && self.epoch <= ledger.epoch {
            return None;
        }
        let detail = format!(
            "{} reaches to offset {} under epoch {}, the ledger only to {} under epoch {}: Postgres was \
             restored; stop every worker, then `feed-worker ledger reconcile`",
            self.key, self.next_offset, self.epoch, ledger.persist_frontier, ledger.epoch
        );
        Some((Stop::Restored, detail))
    }
}

/// What the broker's bounds say about a frontier.
fn bounds_stop(frontier: i64, candidate: &Candidate) -> Option<(Stop, String)> {
    let Candidate { low, high, is_short, .. } = *candidate;
    if low > frontier {
        let detail = format!("offsets {frontier}..{low} were not read and are gone from the broker");
        return Some((Stop::Gap, detail));
    }
    // Not by `high` and the frontier of now: its present owner may have gone on since the end was asked for.
    if is_short {
        let detail = format!("the frontier is {frontier}, but the partition ends at {high}");
        return Some((Stop::Ahead, detail));
    }
    None
}

/// A partition's first row starts after the last closed day; the topic's row is held meanwhile, so
/// that no day is closed without it.
async fn insert_partitions(
    tx: &mut PgConnection,
    who: &Identity,
    new: &[&Candidate],
) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT FROM topic_ledger WHERE topic = $1 FOR UPDATE")
        .bind(&who.topic)
        .execute(&mut *tx)
        .await?;
    let partitions: Vec<i32> = new.iter().map(|c| c.partition).collect();
    let starts: Vec<i64> = new.iter().map(|c| c.committed.unwrap_or(c.low)).collect();
    sqlx::query(
        "INSERT INTO partition_ledger (topic, partition, epoch, owner, persist_frontier, persist_day,
             export_frontier, closed_day, first_day, cluster_id, group_id)
         SELECT t.topic, n.partition, 0, '', n.start, t.closed_day + 1, n.start, t.closed_day,
             t.closed_day + 1, $4, $5
         FROM unnest($2::int[], $3::bigint[]) AS n (partition, start), topic_ledger t
         WHERE t.topic = $1 ORDER BY n.partition ON CONFLICT (topic, partition) DO NOTHING",
    )
    .bind(&who.topic)
    .bind(partitions)
    .bind(starts)
    .bind(&who.cluster_id)
    .bind(&who.group_id)
    .execute(tx)
    .await
    .map(drop)
}

const SELECT_OWNED: &str = "
    SELECT partition, epoch, persist_frontier, persist_day - date '1970-01-01' AS persist_day,
           export_frontier, closed_day - date '1970-01-01' AS closed_day, last_record_hash,
           reject_run, window_records, window_rejects, previous_rejects, stopped, stopped_detail
    FROM partition_ledger";

fn owned(row: &PgRow) -> Owned {
    Owned {
        partition: row.get("partition"),
        epoch: row.get("epoch"),
        persist_frontier: row.get("persist_frontier"),
        persist_day: row.get("persist_day"),
        export_frontier: row.get("export_frontier"),
        closed_day: row.get("closed_day"),
        last_record_hash: row.get("last_record_hash"),
        window: RejectWindow {
            run: row.get("reject_run"),
            records: row.get("window_records"),
            rejects: row.get("window_rejects"),
            previous_rejects: row.get("previous_rejects"),
        },
    }
}

async fn lock_rows(
    tx: &mut PgConnection,
    topic: &str,
    partitions: &[i32],
) -> Result<BTreeMap<i32, (Owned, Option<String>)>, sqlx::Error> {
    let rows = sqlx::query(&format!(
        "{SELECT_OWNED} WHERE topic = $1 AND partition = ANY($2) ORDER BY partition FOR UPDATE"
    ))
    .bind(topic)
    .bind(partitions)
    .fetch_all(tx)
    .await?;
    let entry = |row: &PgRow| {
        let stopped: Option<String> = row.get("stopped");
        let detail: Option<String> = row.get("stopped_detail");
        (owned(row), stopped.map(|s| format!("{s}: {}", detail.unwrap_or_default())))
    };
    Ok(rows.iter().map(|row| (row.get("partition"), entry(row))).collect())
}

/// Writes a stop down, while that epoch owns the partition. False: another owner has it.
pub async fn stop(
    pool: &PgPool,
    topic: &str,
    partition: i32,
    epoch: i64,
    stop: Stop,
    detail: &str,
) -> Result<bool, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    write_stop(&mut connection, topic, partition, Some(epoch), stop, detail).await
}

async fn write_stop(
    connection: &mut PgConnection,
    topic: &str,
    partition: i32,
    epoch: Option<i64>,
    stop: Stop,
    detail: &str,
) -> Result<bool, sqlx::Error> {
    failpoint!("stop.before-write");
    // Written twice it says the same: a lost answer is no reason for doubt.
    let done = sqlx::query(
        "UPDATE partition_ledger SET stopped = coalesce(stopped, $3),
             stopped_detail = coalesce(stopped_detail, $4), updated_at = now()
         WHERE topic = $1 AND partition = $2 AND ($5::bigint IS NULL OR epoch = $5)",
    )
    .bind(topic)
    .bind(partition)
    .bind(stop.as_str())
    .bind(detail)
    .bind(epoch)
    .execute(connection)
    .await?;
    failpoint!("stop.after-write");
    Ok(done.rows_affected() == 1)
}

/// Which of these partitions no longer wait for an operator.
pub async fn released(pool: &PgPool, topic: &str, partitions: &[i32]) -> Result<Vec<i32>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT partition FROM partition_ledger
         WHERE topic = $1 AND partition = ANY($2) AND stopped IS NULL ORDER BY partition",
    )
    .bind(topic)
    .bind(partitions)
    .fetch_all(pool)
    .await
}

/// Which of these partitions wait for an operator.
pub async fn waiting(pool: &PgPool, topic: &str, partitions: &[i32]) -> Result<Vec<i32>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT partition FROM partition_ledger
         WHERE topic = $1 AND partition = ANY($2) AND stopped IS NOT NULL ORDER BY partition",
    )
    .bind(topic)
    .bind(partitions)
    .fetch_all(pool)
    .await
}

/// A file that lies in the bucket and is to be entered.
#[derive(Clone, Debug)]
pub struct NewFile {
    pub partition: i32,
    pub epoch: i64,
    pub first_offset: i64,
    pub next_offset: i64,
    pub day: i32,
    pub object_key: String,
    pub rows: i64,
    pub bytes: i64,
    pub row_hash: String,
    pub recorded_at_min_ms: i64,
    pub recorded_at_max_ms: i64,
    /// The epoch that wrote the object: another one's when it was adopted.
    pub written_by: i64,
}

/// Whether a file was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    Yes,
    /// Another owner has the partition.
    Fenced,
}

/// Moves the export frontier over a file and enters it, in one transaction.
pub async fn enter_file(pool: &PgPool, topic: &str, file: &NewFile) -> Result<Entered, sqlx::Error> {
    failpoint!("enter.before-frontier");
    let mut tx = pool.begin().await?;
    let moved = sqlx::query(
        "UPDATE partition_ledger SET export_frontier = $5, updated_at = now()
         WHERE topic = $1 AND partition = $2 AND epoch = $3 AND export_frontier = $4
           AND persist_frontier >= $5",
    )
    .bind(topic)
    .bind(file.partition)
    .bind(file.epoch)
    .bind(file.first_offset)
    .bind(file.next_offset)
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if moved == 0 {
        // My own earlier success, whose answer was lost, or another owner.
        let mine: Option<bool> = sqlx::query_scalar(
            "SELECT export_frontier = $4 FROM partition_ledger
             WHERE topic = $1 AND partition = $2 AND epoch = $3",
        )
        .bind(topic)
        .bind(file.partition)
        .bind(file.epoch)
        .bind(file.next_offset)
        .fetch_optional(&mut *tx)
        .await?;
        return Ok(if mine == Some(true) { Entered::Yes } else { Entered::Fenced });
    }
    failpoint!("enter.after-frontier");
    insert_file(&mut tx, topic, file).await?;
    failpoint!("enter.before-commit");
    tx.commit().await?;
    failpoint!("enter.after-commit");
    Ok(Entered::Yes)
}

/// Writes a file's entry, whoever moves the frontier.
pub async fn insert_file(
    connection: &mut PgConnection,
    topic: &str,
    file: &NewFile,
) -> Result<(), sqlx::Error> {
    sqlx::query(concat!(
        "INSERT INTO export_files (topic, partition, first_offset, next_offset, day, object_key, rows,
             bytes, row_hash, recorded_at_min, recorded_at_max, epoch)
         VALUES ($1, $2, $3, $4, ",
        day!(5),
        ", $6, $7, $8, $9,
             'epoch'::timestamptz + $10::bigint * interval '1 millisecond',
             'epoch'::timestamptz + $11::bigint * interval '1 millisecond', $12)"
    ))
    .bind(topic)
    .bind(file.partition)
    .bind(file.first_offset)
    .bind(file.next_offset)
    .bind(file.day)
    .bind(&file.object_key)
    .bind(file.rows)
    .bind(file.bytes)
    .bind(&file.row_hash)
    .bind(file.recorded_at_min_ms)
    .bind(file.recorded_at_max_ms)
    .bind(file.written_by)
    .execute(connection)
    .await
    .map(drop)
}
