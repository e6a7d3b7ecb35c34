//! Days: when a partition has reached one, when it is closed, when the topic's is finished.
//!
//! 1. A partition's day moves only under its owner's epoch and frontier, and never goes back.
//! 2. A partition closes a day when no row of it, or of an earlier one, is left to export.
//! 3. The topic closes a day when every partition that the broker has, asked while the topic's row is
//!    held, has closed it. Then nothing can be added to it any more.

use std::collections::BTreeMap;

use sqlx::postgres::PgPool;
use sqlx::{PgExecutor, Row};

use super::day;
use crate::export::manifest::{FileEntry, GapEntry};
use crate::failpoint::failpoint;
use crate::row;

/// Postgres's clock in ms since 1970.
pub async fn now_ms(pool: &PgPool) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint").fetch_one(pool).await
}

/// A partition that was seen empty reaches `to`. False: its frontier or owner is another by now.
pub async fn advance(
    pool: &PgPool,
    topic: &str,
    (partition, epoch, frontier): (i32, i64, i64),
    (from, to): (i32, i32),
) -> Result<bool, sqlx::Error> {
    failpoint!("day.before-advance");
    let moved = sqlx::query(concat!(
        "UPDATE partition_ledger SET persist_day = ",
        day!(6),
        ", updated_at = now()
         WHERE topic = $1 AND partition = $2 AND epoch = $3 AND persist_frontier = $4
           AND persist_day = ",
        day!(5),
        " AND persist_day < ",
        day!(6)
    ))
    .bind(topic)
    .bind(partition)
    .bind(epoch)
    .bind(frontier)
    .bind(from)
    .bind(to)
    .execute(pool)
    .await?;
    failpoint!("day.after-advance");
    Ok(moved.rows_affected() == 1)
}

/// The day that a partition has reached; none when another owner has it.
pub async fn reached(
    pool: &PgPool,
    topic: &str,
    partition: i32,
    epoch: i64,
) -> Result<Option<i32>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT persist_day - date '1970-01-01' FROM partition_ledger
         WHERE topic = $1 AND partition = $2 AND epoch = $3",
    )
    .bind(topic)
    .bind(partition)
    .bind(epoch)
    .fetch_optional(pool)
    .await
}

/// Closes every day before `day`, which the partition has reached, if no row of them is left to
/// export. The day is given: all rows before it were committed when the partition reached it, so
/// that the statement sees them even if it has to wait for a transaction that moves the day on.
/// Returns the closed day that now stands, none when the partition is another's.
pub async fn close_partition(
    pool: &PgPool,
    topic: &str,
    partition: i32,
    epoch: i64,
    day: i32,
) -> Result<Option<i32>, sqlx::Error> {
    failpoint!("day.before-close-partition");
    sqlx::query(concat!(
        "UPDATE partition_ledger l SET closed_day = ",
        day!(4),
        " - 1, updated_at = now()
         WHERE topic = $1 AND partition = $2 AND epoch = $3 AND persist_day = ",
        day!(4),
        "
           AND closed_day < ",
        day!(4),
        " - 1
           AND NOT EXISTS (
               SELECT FROM user_interactions u
               WHERE u.kafka_partition = l.partition AND u.kafka_offset >= l.export_frontier
                 AND u.recorded_at >= (l.closed_day + 1)::timestamp AT TIME ZONE 'UTC'
                 AND u.recorded_at < ",
        day!(4),
        "::timestamp AT TIME ZONE 'UTC')"
    ))
    .bind(topic)
    .bind(partition)
    .bind(epoch)
    .bind(day)
    .execute(pool)
    .await?;
    failpoint!("day.after-close-partition");
    sqlx::query_scalar(
        "SELECT closed_day - date '1970-01-01' FROM partition_ledger
         WHERE topic = $1 AND partition = $2 AND epoch = $3",
    )
    .bind(topic)
    .bind(partition)
    .bind(epoch)
    .fetch_optional(pool)
    .await
}

/// The topic's days: the last one closed, and the last one whose `_SUCCESS` is known.
pub async fn topic_days(pool: &PgPool, topic: &str) -> Result<Option<(i32, i32)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT closed_day - date '1970-01-01', success_day - date '1970-01-01'
         FROM topic_ledger WHERE topic = $1",
    )
    .bind(topic)
    .fetch_optional(pool)
    .await
}

/// The least closed day of the partitions that the ledger knows.
pub async fn least_closed(pool: &PgPool, topic: &str) -> Result<Option<i32>, sqlx::Error> {
    sqlx::query_scalar("SELECT min(closed_day) - date '1970-01-01' FROM partition_ledger WHERE topic = $1")
        .bind(topic)
        .fetch_one(pool)
        .await
}

/// Closes the topic's days up to the least closed day of its partitions. `partitions` asks the broker
/// while the topic's row is held: a partition that the ledger does not know keeps the day open.
pub async fn close_topic(
    pool: &PgPool,
    topic: &str,
    partitions: impl Future<Output = Option<Vec<i32>>>,
) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query("SELECT FROM topic_ledger WHERE topic = $1 FOR UPDATE").bind(topic).execute(&mut *tx).await?;
    let Some(partitions) = partitions.await else { return Ok(()) };
    sqlx::query(
        "UPDATE topic_ledger t SET closed_day = l.closed_day, updated_at = now()
         FROM (SELECT min(closed_day) AS closed_day, count(*) AS known
               FROM partition_ledger WHERE topic = $1 AND partition = ANY($2)) l
         WHERE t.topic = $1 AND l.known = cardinality($2) AND l.closed_day > t.closed_day",
    )
    .bind(topic)
    .bind(partitions)
    .execute(&mut *tx)
    .await?;
    failpoint!("day.before-close-topic");
    tx.commit().await?;
    failpoint!("day.after-close-topic");
    Ok(())
}

/// The files of the days from one to another, by partition and offset.
pub async fn files(
    executor: impl PgExecutor<'_>,
    topic: &str,
    from: i32,
    to: i32,
) -> Result<Vec<FileEntry>, sqlx::Error> {
    let rows = sqlx::query(concat!(
        "SELECT object_key, partition, first_offset, next_offset, rows, bytes, row_hash,
                (extract(epoch FROM recorded_at_min) * 1000)::bigint AS min_ms,
                (extract(epoch FROM recorded_at_max) * 1000)::bigint AS max_ms
         FROM export_files WHERE topic = $1 AND day BETWEEN ",
        day!(2),
        " AND ",
        day!(3),
        "
         ORDER BY partition, first_offset"
    ))
    .bind(topic)
    .bind(from)
    .bind(to)
    .fetch_all(executor)
    .await?;
    let entry = |row: &sqlx::postgres::PgRow| FileEntry {
        key: row.get("object_key"),
        partition: row.get("partition"),
        first_offset: row.get("first_offset"),
        last_offset: row.get::<i64, _>("next_offset") - 1,
        rows: row.get::<i64, _>("rows").cast_unsigned(),
        bytes: row.get::<i64, _>("bytes").cast_unsigned(),
        row_hash: row.get("row_hash"),
        recorded_at_min: row::timestamp_text(row.get("min_ms")),
        recorded_at_max: row::timestamp_text(row.get("max_ms")),
    };
    Ok(rows.iter().map(entry).collect())
}

/// The epochs under which a day's files were written, by key.
pub async fn epochs(
    executor: impl PgExecutor<'_>,
    topic: &str,
    of: i32,
) -> Result<BTreeMap<String, i64>, sqlx::Error> {
    let rows: Vec<(String, i64)> = sqlx::query_as(concat!(
        "SELECT object_key, epoch FROM export_files WHERE topic = $1 AND day = ",
        day!(2)
    ))
    .bind(topic)
    .bind(of)
    .fetch_all(executor)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Where the next file of each partition begins.
pub async fn export_frontiers(
    executor: impl PgExecutor<'_>,
    topic: &str,
) -> Result<BTreeMap<i32, i64>, sqlx::Error> {
    let rows: Vec<(i32, i64)> =
        sqlx::query_as("SELECT partition, export_frontier FROM partition_ledger WHERE topic = $1")
            .bind(topic)
            .fetch_all(executor)
            .await?;
    Ok(rows.into_iter().collect())
}

/// The partitions that the topic had on a day.
pub async fn partitions(
    executor: impl PgExecutor<'_>,
    topic: &str,
    of: i32,
) -> Result<Vec<i32>, sqlx::Error> {
    sqlx::query_scalar(concat!(
        "SELECT partition FROM partition_ledger WHERE topic = $1 AND first_day <= ",
        day!(2),
        "
         ORDER BY partition"
    ))
    .bind(topic)
    .bind(of)
    .fetch_all(executor)
    .await
}

/// The gaps that were accepted on a day.
pub async fn gaps(executor: impl PgExecutor<'_>, topic: &str, of: i32) -> Result<Vec<GapEntry>, sqlx::Error> {
    let rows = sqlx::query(concat!(
        "SELECT partition, from_offset, to_offset, reason FROM ingest_gaps
         WHERE topic = $1 AND day = ",
        day!(2),
        " ORDER BY partition, from_offset"
    ))
    .bind(topic)
    .bind(of)
    .fetch_all(executor)
    .await?;
    let entry = |row: &sqlx::postgres::PgRow| GapEntry {
        partition: row.get("partition"),
        from_offset: row.get("from_offset"),
        to_offset: row.get("to_offset"),
        reason: row.get("reason"),
    };
    Ok(rows.iter().map(entry).collect())
}

/// Notes that a day's `_SUCCESS` lies in the bucket.
pub async fn finished(pool: &PgPool, topic: &str, finished: i32) -> Result<(), sqlx::Error> {
    failpoint!("day.before-finished");
    sqlx::query(concat!(
        "UPDATE topic_ledger SET success_day = ",
        day!(2),
        ", updated_at = now()
         WHERE topic = $1 AND success_day < ",
        day!(2),
        " AND closed_day >= ",
        day!(2)
    ))
    .bind(topic)
    .bind(finished)
    .execute(pool)
    .await?;
    failpoint!("day.after-finished");
    Ok(())
}
