//! Day partitions of the table: made ahead, tidied, dropped past retention.
//!
//! 1. A day is dropped only when its `_SUCCESS` lies in the bucket, for every topic in the ledger.
//! 2. Rows that fell into the default partition are moved to their day in one transaction.
//! 3. An advisory lock orders runs; each step leaves the table whole.

use std::collections::BTreeMap;

use anyhow::Context;
use sqlx::{Connection, Executor, PgConnection};

use super::{COMMAND, connect_options};
use crate::config::Config;
use crate::row;

/// "feedmain" as a number: the advisory lock of this job.
const LOCK: i64 = 0x6665_6564_6d61_696e;

/// What was done.
#[derive(Debug, Default)]
pub struct Maintained {
    pub created: u64,
    pub moved_rows: u64,
    pub dropped: u64,
}

/// Makes the days ahead, moves strays, drops what is past retention, on every server.
pub async fn run(config: &Config) -> anyhow::Result<Maintained> {
    let mut done = Maintained::default();
    let mut home = connect(config, 0).await?;
    let finished = finished_days(&mut home).await?;
    for server in 0..config.postgres.urls().count() {
        maintain(config, server, &finished, &mut done).await?;
    }
    Ok(done)
}

async fn connect(config: &Config, server: usize) -> anyhow::Result<PgConnection> {
    let options = connect_options(config, server)?
        .application_name(COMMAND)
        .options([("statement_timeout", "600000"), ("idle_in_transaction_session_timeout", "600000")]);
    let connected = PgConnection::connect_with(&options).await;
    connected.with_context(|| format!("connecting to postgres ({})", config.postgres.called(server)))
}

/// Each topic's last finished day. Only the first server knows: those of the others do not move.
async fn finished_days(home: &mut PgConnection) -> Result<BTreeMap<String, i32>, sqlx::Error> {
    let finished: Vec<(String, i32)> =
        sqlx::query_as("SELECT topic, success_day - date '1970-01-01' FROM topic_ledger")
            .fetch_all(home)
            .await?;
    Ok(finished.into_iter().collect())
}

async fn maintain(
    config: &Config,
    server: usize,
    finished: &BTreeMap<String, i32>,
    done: &mut Maintained,
) -> anyhow::Result<()> {
    let mut connection = connect(config, server).await?;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut connection).await?;
    let today: i32 = sqlx::query_scalar("SELECT (now() AT TIME ZONE 'UTC')::date - date '1970-01-01'")
        .fetch_one(&mut connection)
        .await?;
    let mut wanted = stray_days(&mut connection).await?;
    wanted.extend(today - 1..=today + i32::try_from(config.day.ahead_days)?);
    wanted.sort_unstable();
    wanted.dedup();
    for day in wanted {
        make_day(&mut connection, day, done).await?;
    }
    let oldest_kept = today - i32::try_from(config.day.retention_days)?;
    drop_days(&mut connection, oldest_kept, finished, done).await?;
    connection.close().await?;
    Ok(())
}

fn table_of(day: i32) -> String {
    format!("user_interactions_{}", row::day_text(day).replace('-', "_"))
}

/// The days of rows that found no partition of their own.
async fn stray_days(connection: &mut PgConnection) -> Result<Vec<i32>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT DISTINCT (recorded_at AT TIME ZONE 'UTC')::date - date '1970-01-01'
         FROM user_interactions_default",
    )
    .fetch_all(connection)
    .await
}

/// Makes a day's partition, with the rows of that day that lie in the default one.
async fn make_day(connection: &mut PgConnection, day: i32, done: &mut Maintained) -> Result<(), sqlx::Error> {
    let table = table_of(day);
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(&table)
        .fetch_one(&mut *connection)
        .await?;
    if exists {
        return Ok(());
    }
    let (from, to) = (row::day_text(day), row::day_text(day + 1));
    let mut tx = connection.begin().await?;
    // Writers wait here for the length of the move; a table that is attached must not miss a row.
    tx.execute("LOCK TABLE user_interactions IN SHARE ROW EXCLUSIVE MODE").await?;
    tx.execute(
        format!("CREATE TABLE {table} (LIKE user_interactions INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
            .as_str(),
    )
    .await?;
    let moved = tx
        .execute(
            format!(
                "WITH moved AS (
             DELETE FROM user_interactions_default
             WHERE recorded_at >= '{from} 00:00:00+00' AND recorded_at < '{to} 00:00:00+00' RETURNING *)
         INSERT INTO {table} SELECT * FROM moved"
            )
            .as_str(),
        )
        .await?
        .rows_affected();
    tx.execute(
        format!(
            "ALTER TABLE user_interactions ATTACH PARTITION {table}
         FOR VALUES FROM ('{from} 00:00:00+00') TO ('{to} 00:00:00+00')"
        )
        .as_str(),
    )
    .await?;
    tx.commit().await?;
    done.created += 1;
    done.moved_rows += moved;
    Ok(())
}

/// Drops days before `oldest_kept` that every topic has finished.
async fn drop_days(
    connection: &mut PgConnection,
    oldest_kept: i32,
    finished: &BTreeMap<String, i32>,
    done: &mut Maintained,
) -> Result<(), sqlx::Error> {
    let topics: Vec<String> =
        sqlx::query_scalar("SELECT topic FROM topic_ledger").fetch_all(&mut *connection).await?;
    // A topic that the first server does not know has finished nothing.
    let days: Option<Vec<i32>> = topics.iter().map(|topic| finished.get(topic).copied()).collect();
    let Some(finished) = days.and_then(|days| days.into_iter().min()) else { return Ok(()) };
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'user_interactions'::regclass ORDER BY 1",
    )
    .fetch_all(&mut *connection)
    .await?;
    for table in tables {
        let Some(day) =
            table.strip_prefix("user_interactions_").and_then(|text| row::parse_day(&text.replace('_', "-")))
        else {
            continue;
        };
        if day < oldest_kept && day <= finished {
            connection.execute(format!("DROP TABLE {table}").as_str()).await?;
            done.dropped += 1;
        }
    }
    Ok(())
}
