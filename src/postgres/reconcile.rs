//! Putting a restored ledger level with the bucket: the statements of it.
//!
//! 1. Everything happens in one transaction of each server that holds the topic's row and every partition's row: a
//!    worker that starts meanwhile waits, and then finds the ledger as it is to be.
//! 2. Rows are added, never changed: a row that is there and is another one is for an operator.

use std::time::Duration;

use futures::StreamExt;
use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::{Executor, Postgres, Row, Transaction};

use super::{connect_options, day};
use crate::config::Config;
use crate::export::manifest::GapEntry;
use crate::row::{self, CopyOutParser};

/// What workers call themselves, so that they can be told from this command.
const WORKERS: &str = "feed-worker";
/// Who owns a partition from this command until a worker takes it: nobody who could have a PUT on its way.
pub const OWNER: &str = "ledger reconcile";

/// The topic's row.
#[derive(Clone, Copy, Debug)]
pub struct TopicStand {
    pub closed_day: i32,
    pub success_day: i32,
}

/// A partition's row, as far as it matters here.
#[derive(Clone, Debug)]
pub struct PartitionStand {
    pub partition: i32,
    pub epoch: i64,
    pub persist_frontier: i64,
    pub persist_day: i32,
    pub export_frontier: i64,
    pub closed_day: i32,
    pub stopped: Option<String>,
}

/// Begins a server's transaction. Objects are fetched between its statements, and much may be loaded, so the
/// workers' short limits do not apply.
pub async fn begin(config: &Config, server: usize) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let options = connect_options(config, server)?
        .application_name("feed-worker-reconcile")
        .options([("statement_timeout", "600000"), ("idle_in_transaction_session_timeout", "600000")]);
    let timeout = Duration::from_millis(config.postgres.connect_timeout_ms);
    PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(timeout)
        .connect_with(options)
        .await?
        .begin()
        .await
}

/// Whose the topic is here (cluster and group), and its closed day; without taking its row.
pub async fn topic_of(
    tx: &mut PgConnection,
    topic: &str,
) -> Result<Option<(String, String, i32)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT cluster_id, group_id, closed_day - date '1970-01-01' FROM topic_ledger WHERE topic = $1",
    )
    .bind(topic)
    .fetch_optional(tx)
    .await
}

/// Takes the topic's row, which also keeps a second run of this command waiting. None: it has no row.
///
/// Not `FOR UPDATE`: rows that refer to it can be inserted beside this transaction (the entries of partitions that are
/// elsewhere, which are committed first). Whoever takes it before he begins a partition or closes a day waits all the same.
pub async fn lock_topic(tx: &mut PgConnection, topic: &str) -> Result<Option<TopicStand>, sqlx::Error> {
    let row: Option<(i32, i32)> = sqlx::query_as(
        "SELECT closed_day - date '1970-01-01', success_day - date '1970-01-01'
         FROM topic_ledger WHERE topic = $1 FOR NO KEY UPDATE",
    )
    .bind(topic)
    .fetch_optional(tx)
    .await?;
    Ok(row.map(|(closed_day, success_day)| TopicStand { closed_day, success_day }))
}

/// Takes every partition's row, in the order in which workers take them.
pub async fn lock_partitions(tx: &mut PgConnection, topic: &str) -> Result<Vec<PartitionStand>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT partition, epoch, persist_frontier, persist_day - date '1970-01-01' AS persist_day,
                export_frontier, closed_day - date '1970-01-01' AS closed_day, stopped
         FROM partition_ledger WHERE topic = $1 ORDER BY partition FOR UPDATE",
    )
    .bind(topic)
    .fetch_all(tx)
    .await?;
    let stand = |row: &sqlx::postgres::PgRow| PartitionStand {
        partition: row.get("partition"),
        epoch: row.get("epoch"),
        persist_frontier: row.get("persist_frontier"),
        persist_day: row.get("persist_day"),
        export_frontier: row.get("export_frontier"),
        closed_day: row.get("closed_day"),
        stopped: row.get("stopped"),
    };
    Ok(rows.iter().map(stand).collect())
}

/// Signs of life of workers: sessions on this database, and seconds since the ledger was last updated.
pub async fn signs_of_life(tx: &mut PgConnection, topic: &str) -> Result<(i64, Option<f64>), sqlx::Error> {
    // The age by the clock, not by now(): waiting for the rows above may have taken a while.
    sqlx::query_as(
        "SELECT (SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = $2
                   AND pid <> pg_backend_pid()),
                (SELECT extract(epoch FROM clock_timestamp() - max(updated_at))::float8
                 FROM partition_ledger WHERE topic = $1 AND owner <> $3)",
    )
    .bind(topic)
    .bind(WORKERS)
    .bind(OWNER)
    .fetch_one(tx)
    .await
}

/// Where a partition begins that the backup did not have yet.
#[derive(Clone, Copy, Debug)]
pub struct Beginning {
    pub partition: i32,
    /// Its first offset.
    pub start: i64,
    /// No row of it is of this day or an earlier one.
    pub closed_day: i32,
    /// The first day whose manifest names it.
    pub first_day: i32,
}

/// Enters a partition that the backup did not have yet, as empty; one that was entered since, but never owned by
/// anybody, begins there too.
pub async fn begin_partition(tx: &mut PgConnection, topic: &str, at: &Beginning) -> Result<(), sqlx::Error> {
    sqlx::query(concat!(
        "INSERT INTO partition_ledger AS l (topic, partition, epoch, owner, persist_frontier, persist_day,
             export_frontier, closed_day, first_day, cluster_id, group_id)
         SELECT topic, $2, 0, $6, $3, ",
        day!(5),
        " + 1, $3, ",
        day!(5),
        ", ",
        day!(4),
        ", cluster_id, group_id
         FROM topic_ledger WHERE topic = $1
         ON CONFLICT (topic, partition) DO UPDATE
         SET persist_frontier = excluded.persist_frontier, export_frontier = excluded.export_frontier,
             first_day = excluded.first_day
         WHERE l.epoch = 0"
    ))
    .bind(topic)
    .bind(at.partition)
    .bind(at.start)
    .bind(at.first_day)
    .bind(at.closed_day)
    .bind(OWNER)
    .execute(tx)
    .await
    .map(drop)
}

/// The table's rows of `[from, upto)`, in canonical form. Whatever their day: a row that is dated
/// otherwise than in its file must be seen.
pub async fn table_rows(
    tx: &mut PgConnection,
    partition: i32,
    from: i64,
    upto: i64,
) -> Result<Vec<u8>, sqlx::Error> {
    let statement = format!(
        "COPY (SELECT {} FROM user_interactions
               WHERE kafka_partition = {partition} AND kafka_offset >= {from} AND kafka_offset < {upto}
               ORDER BY kafka_offset) TO STDOUT (FORMAT binary)",
        row::COLUMNS.join(", "),
    );
    let mut tuples = Vec::new();
    let mut parser = CopyOutParser::new();
    {
        let mut stream = tx.copy_out_raw(&statement).await?;
        while let Some(bytes) = stream.next().await {
            parser.push(&bytes?, &mut tuples).map_err(|e| sqlx::Error::Decode(e.into()))?;
        }
    }
    parser.finish().map_err(|e| sqlx::Error::Decode(e.into()))?;
    Ok(tuples)
}

/// Adds rows to the table.
pub async fn add_rows(tx: &mut PgConnection, tuples: &[u8]) -> Result<(), sqlx::Error> {
    let mut copy = tx.copy_in_raw(&super::copy_in_statement()).await?;
    for part in [row::COPY_HEADER, tuples, &row::COPY_TRAILER] {
        copy.send(part).await?;
    }
    copy.finish().await.map(drop)
}

/// Where a partition is to stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The end of its last object: the export frontier, and the least persist frontier.
    pub end: i64,
    /// The least day reached, and the least day closed.
    pub persist_day: i32,
    pub closed_day: i32,
    /// The greatest epoch that the bucket knows.
    pub epoch_seen: i64,
}

/// Moves a partition forwards, under a new epoch, and takes the stop `restored` away.
pub async fn move_partition(
    tx: &mut PgConnection,
    topic: &str,
    partition: i32,
    target: &Target,
) -> Result<(), sqlx::Error> {
    sqlx::query(concat!(
        "UPDATE partition_ledger
         SET export_frontier = $3, persist_frontier = greatest(persist_frontier, $3),
             persist_day = greatest(persist_day, ",
        day!(4),
        "),
             closed_day = greatest(closed_day, ",
        day!(5),
        "),
             epoch = greatest(epoch + 1, $6 + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint),
             owner = $7, last_record_hash = NULL,
             stopped = CASE WHEN stopped <> 'restored' THEN stopped END,
             stopped_detail = CASE WHEN stopped <> 'restored' THEN stopped_detail END,
             updated_at = now()
         WHERE topic = $1 AND partition = $2"
    ))
    .bind(topic)
    .bind(partition)
    .bind(target.end)
    .bind(target.persist_day)
    .bind(target.closed_day)
    .bind(target.epoch_seen)
    .bind(OWNER)
    .execute(tx)
    .await
    .map(drop)
}

/// What would contradict a partition's new stand: rows at or past its persist frontier, and rows of
/// closed days that lie in no file.
pub async fn contradictions(
    tx: &mut PgConnection,
    topic: &str,
    partition: i32,
) -> Result<(bool, bool), sqlx::Error> {
    sqlx::query_as(
        "SELECT EXISTS (SELECT FROM user_interactions u
                        WHERE u.kafka_partition = l.partition AND u.kafka_offset >= l.persist_frontier),
                EXISTS (SELECT FROM user_interactions u
                        WHERE u.kafka_partition = l.partition AND u.kafka_offset >= l.export_frontier
                          AND u.recorded_at < (l.closed_day + 1)::timestamp AT TIME ZONE 'UTC')
         FROM partition_ledger l WHERE topic = $1 AND partition = $2",
    )
    .bind(topic)
    .bind(partition)
    .fetch_one(tx)
    .await
}

/// The gaps that the ledger has of a day.
pub async fn gaps(tx: &mut PgConnection, topic: &str, of: i32) -> Result<Vec<GapEntry>, sqlx::Error> {
    let rows: Vec<(i32, i64, i64, String)> = sqlx::query_as(concat!(
        "SELECT partition, from_offset, to_offset, reason FROM ingest_gaps
         WHERE topic = $1 AND day = ",
        day!(2),
        " ORDER BY partition, from_offset"
    ))
    .bind(topic)
    .bind(of)
    .fetch_all(tx)
    .await?;
    let entry =
        |(partition, from_offset, to_offset, reason)| GapEntry { from_offset, partition, reason, to_offset };
    Ok(rows.into_iter().map(entry).collect())
}

/// Enters a gap that a closed day's manifest knows of.
pub async fn insert_gap(
    tx: &mut PgConnection,
    topic: &str,
    of: i32,
    gap: &GapEntry,
) -> Result<(), sqlx::Error> {
    sqlx::query(concat!(
        "INSERT INTO ingest_gaps (topic, partition, from_offset, to_offset, day, reason)
         VALUES ($1, $3, $4, $5, ",
        day!(2),
        ", $6)"
    ))
    .bind(topic)
    .bind(of)
    .bind(gap.partition)
    .bind(gap.from_offset)
    .bind(gap.to_offset)
    .bind(&gap.reason)
    .execute(tx)
    .await
    .map(drop)
}

/// Moves the topic's days forwards.
pub async fn move_topic(tx: &mut PgConnection, topic: &str, stand: &TopicStand) -> Result<(), sqlx::Error> {
    let statement = concat!(
        "UPDATE topic_ledger SET closed_day = greatest(closed_day, ",
        day!(2),
        "),
             success_day = greatest(success_day, ",
        day!(3),
        "), updated_at = now() WHERE topic = $1"
    );
    let update = sqlx::query(statement).bind(topic).bind(stand.closed_day).bind(stand.success_day);
    tx.execute(update).await.map(drop)
}
