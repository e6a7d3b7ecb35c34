//! `feed-worker ledger`: what stands in it, and what only an operator may decide.

use std::time::Duration;

use anyhow::Context;
use sqlx::postgres::{PgPoolOptions, PgRow};
use sqlx::{PgPool, Postgres, Row, Transaction};

use super::Failure;
use crate::config::Config;
use crate::kafka::broker::Brokers;
use crate::outside::Broker;
use crate::postgres::{self, places};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print every partition: frontiers, days, owner, and why it is stopped.
    Show {
        /// As JSON, one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Accept that records are gone, or never were: the partition goes on at an offset.
    AcceptGap {
        #[arg(long)]
        partition: i32,
        /// Offset to go on at, for a gap the first that is left (`feed-worker lag` shows it); everything before it that
        /// was not read stays unread.
        #[arg(long)]
        to: i64,
        /// Why, for whoever asks later.
        #[arg(long)]
        reason: String,
    },
    /// After Postgres was restored from a backup: load what only the bucket knows, and go on from there.
    /// Every worker must be stopped. Several servers are put level together, whichever of them was restored.
    Reconcile {
        /// Why, for whoever asks later.
        #[arg(long, required_unless_present = "dry_run")]
        reason: Option<String>,
        /// Do all of it in a transaction that is then given up: say what would change, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

pub async fn run(command: Command, config: &Config) -> Result<(), Failure> {
    match command {
        Command::Show { json } => show(config, json).await,
        Command::AcceptGap { partition, to, reason } => accept_gap(config, partition, to, &reason).await,
        Command::Reconcile { reason, dry_run } => {
            super::reconcile::run(config, &reason.unwrap_or_default(), dry_run).await
        }
    }
}

pub(super) async fn connect(
    config: &Config,
    server: usize,
) -> Result<Transaction<'static, Postgres>, Failure> {
    let begin = pool(config, server)?.begin().await;
    Ok(begin.with_context(|| format!("connecting to postgres ({})", config.postgres.called(server)))?)
}

/// Connects to nothing yet.
pub(super) fn pool(config: &Config, server: usize) -> Result<PgPool, Failure> {
    let options = postgres::connect_options(config, server).map_err(anyhow::Error::from)?;
    let timeout = Duration::from_millis(config.postgres.connect_timeout_ms);
    let pool = PgPoolOptions::new().acquire_timeout(timeout);
    Ok(pool.connect_lazy_with(options.application_name(postgres::COMMAND)))
}

/// Every decision of an operator leaves a trace.
pub(super) async fn log_action(
    tx: &mut Transaction<'static, Postgres>,
    command: &str,
    reason: &str,
    detail: serde_json::Value,
) -> Result<(), Failure> {
    sqlx::query("INSERT INTO operator_actions (command, reason, detail) VALUES ($1, $2, $3)")
        .bind(command)
        .bind(reason)
        .bind(detail)
        .execute(&mut **tx)
        .await
        .context("writing the operator's action down")?;
    Ok(())
}

/// Of several servers those that answer are shown; then it fails for one that does not.
async fn show(config: &Config, json: bool) -> Result<(), Failure> {
    let (mut rows, mut away) = (Vec::new(), None);
    // Finished days stand at the first server.
    let success = success_day(config).await;
    if !config.postgres.is_spread() {
        tell(config, json, shown(config, 0, success?.as_deref()).await?);
        return Ok(());
    }
    let finished = success.as_ref().ok().and_then(Option::as_deref);
    for server in 0..config.postgres.urls().count() {
        match shown(config, server, finished).await {
            Ok(found) => rows.extend(found),
            Err(failure) => away = away.or(Some(failure)),
        }
    }
    tell(config, json, rows);
    match away {
        Some(failure) => Err(failure),
        None => success.map(drop),
    }
}

async fn success_day(config: &Config) -> Result<Option<String>, Failure> {
    Ok(sqlx::query_scalar("SELECT success_day::text FROM topic_ledger WHERE topic = $1")
        .bind(&config.kafka.topic)
        .fetch_optional(&mut *connect(config, 0).await?)
        .await
        .context("reading the ledger")?)
}

/// The partitions that a server has, but not those of which it only says that they are elsewhere: the other one's row
/// is the partition's.
async fn shown(config: &Config, server: usize, success: Option<&str>) -> Result<Vec<PgRow>, Failure> {
    let mut tx = connect(config, server).await?;
    let rows = sqlx::query(
        "SELECT l.partition, l.epoch, l.owner, l.persist_frontier, l.persist_day::text AS persist_day,
                l.export_frontier, l.closed_day::text AS closed_day, l.rejects_total,
                coalesce($2, '') AS success_day, coalesce(l.stopped, '') AS stopped,
                coalesce(l.stopped_detail, '') AS stopped_detail,
                to_char(l.updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS updated_at
         FROM partition_ledger l
         WHERE l.topic = $1 AND NOT ($3 AND stopped IS NOT DISTINCT FROM $4)",
    )
    .bind(&config.kafka.topic)
    .bind(success)
    .bind(config.postgres.is_spread())
    .bind(places::ELSEWHERE)
    .fetch_all(&mut *tx)
    .await
    .context("reading the ledger")?;
    Ok(rows)
}

fn tell(config: &Config, json: bool, mut rows: Vec<PgRow>) {
    rows.sort_by_key(|row| row.get::<i32, _>("partition"));
    if !json {
        println!(
            "{:>9} {:>14} {:>14} {:>11} {:>11} {:>9} {:<20} {:<20} state",
            "partition", "persisted", "exported", "day", "closed", "rejects", "owner", "updated"
        );
    }
    for row in rows {
        let (stopped, detail): (String, String) = (row.get("stopped"), row.get("stopped_detail"));
        let state = if stopped.is_empty() { "runs".to_owned() } else { format!("{stopped}: {detail}") };
        if json {
            println!(
                "{}",
                serde_json::json!({
                    "topic": config.kafka.topic, "partition": row.get::<i32, _>("partition"),
                    "epoch": row.get::<i64, _>("epoch"), "owner": row.get::<String, _>("owner"),
                    "persist_frontier": row.get::<i64, _>("persist_frontier"),
                    "persist_day": row.get::<String, _>("persist_day"),
                    "export_frontier": row.get::<i64, _>("export_frontier"),
                    "closed_day": row.get::<String, _>("closed_day"),
                    "success_day": row.get::<String, _>("success_day"),
                    "rejects_total": row.get::<i64, _>("rejects_total"),
                    "stopped": stopped, "stopped_detail": detail,
                    "updated_at": row.get::<String, _>("updated_at"),
                })
            );
        } else {
            println!(
                "{:>9} {:>14} {:>14} {:>11} {:>11} {:>9} {:<20} {:<20} {state}",
                row.get::<i32, _>("partition"),
                row.get::<i64, _>("persist_frontier"),
                row.get::<i64, _>("export_frontier"),
                row.get::<String, _>("persist_day"),
                row.get::<String, _>("closed_day"),
                row.get::<i64, _>("rejects_total"),
                row.get::<String, _>("owner"),
                row.get::<String, _>("updated_at"),
            );
        }
    }
}

/// A frontier never moves back: one that was set beyond the end stops the partition for good, and one past records
/// that the brokers still have skips them.
async fn refuse_what_is_left(config: &Config, partition: i32, stopped: &str, to: i64) -> Result<(), Failure> {
    let asking = || format!("asking the brokers ({}) what is left", config.kafka.bootstrap_servers);
    let bounds = Brokers::new(config).bounds(&[partition]).await.with_context(asking)?;
    let Some((_, low, end)) = bounds.into_iter().next() else {
        let topic = &config.kafka.topic;
        return Err(Failure::Ledger(format!("the brokers have no partition {partition} of {topic}")));
    };
    if to > end {
        return Err(Failure::Ledger(format!(
            "partition {partition} ends at offset {end}, before {to}: nothing was accepted"
        )));
    }
    if stopped == "gap" && to > low {
        return Err(Failure::Ledger(format!(
            "the brokers have records of partition {partition} from offset {low} on, and `--to {to}` would skip some: use \
             `--to {low}`"
        )));
    }
    Ok(())
}

/// Moves a stopped partition's frontier to `to`, and writes the range that was never read down.
async fn accept_gap(config: &Config, partition: i32, to: i64, reason: &str) -> Result<(), Failure> {
    let mut tx = connect(config, config.postgres.placed().server_of(partition)).await?;
    let topic = &config.kafka.topic;
    let row = sqlx::query(
        "SELECT persist_frontier, stopped FROM partition_ledger
         WHERE topic = $1 AND partition = $2 FOR UPDATE",
    )
    .bind(topic)
    .bind(partition)
    .fetch_optional(&mut *tx)
    .await
    .context("reading the ledger")?;
    let Some(row) = row else {
        return Err(Failure::Ledger(format!("the ledger has no partition {partition} of {topic}")));
    };
    let (frontier, stopped): (i64, Option<String>) = (row.get(0), row.get(1));
    let Some(stopped) = stopped else {
        return Err(Failure::Ledger(format!("partition {partition} is not stopped: nothing to accept")));
    };
    if !matches!(stopped.as_str(), "gap" | "unreadable") || to < frontier {
        return Err(Failure::Ledger(format!(
            "partition {partition} is stopped for `{stopped}` at offset {frontier}: only a gap can be accepted, \
             and only forwards; for a topic that was created anew see docs/operations.md"
        )));
    }
    refuse_what_is_left(config, partition, &stopped, to).await?;
    sqlx::query(
        "INSERT INTO ingest_gaps (topic, partition, from_offset, to_offset, day, reason)
         SELECT topic, partition, persist_frontier, $3, persist_day, $4 FROM partition_ledger
         WHERE topic = $1 AND partition = $2 AND persist_frontier < $3",
    )
    .bind(topic)
    .bind(partition)
    .bind(to)
    .bind(reason)
    .execute(&mut *tx)
    .await
    .context("writing the gap down")?;
    // A new epoch: whoever still believes to own the partition must not go on from the old frontier.
    sqlx::query(
        "UPDATE partition_ledger SET persist_frontier = $3, last_record_hash = NULL, stopped = NULL,
             stopped_detail = NULL, updated_at = now(),
             epoch = greatest(epoch + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
         WHERE topic = $1 AND partition = $2",
    )
    .bind(topic)
    .bind(partition)
    .bind(to)
    .execute(&mut *tx)
    .await
    .context("moving the frontier")?;
    let detail = serde_json::json!({ "topic": topic, "partition": partition, "from": frontier, "to": to });
    log_action(&mut tx, "ledger accept-gap", reason, detail).await?;
    tx.commit().await.context("committing the decision")?;
    println!("partition {partition} goes on at {to}; {} offsets were never read", to - frontier);
    Ok(())
}
