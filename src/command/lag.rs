//! `feed-worker lag`: how far behind the topic's end table and exports are.
//!
//! 1. It asks the ledger and the brokers, never a worker: it tells the truth while every worker is dead.
//! 2. Frontiers are read before ends, so lag may be told too large by what was produced in between,
//!    never too small.
//! 3. A frontier outside of what the broker has is no lag of so many records: it has a status of its own, and
//!    is past every threshold.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use futures::future::try_join_all;
use sqlx::{PgPool, Row};

use super::Failure;
use crate::config::Config;
use crate::kafka::broker::Brokers;
use crate::kafka::probe::Found;
use crate::lag::{LagStatus, Observation, Window};
use crate::outside::Broker;
use crate::postgres::places;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON, one object for each look.
    #[arg(long)]
    json: bool,
    /// Look again every so many seconds, until interrupted.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "5")]
    watch: Option<u64>,
    /// End with 2 when a partition has more records than this between persist frontier and end. A partition whose
    /// status is GAP or AHEAD is past every threshold.
    #[arg(long, value_name = "RECORDS")]
    records_max: Option<i64>,
    /// End with 2 when the oldest record that is not persisted has waited longer than this.
    #[arg(long, value_name = "SECONDS")]
    seconds_max: Option<f64>,
    /// End with 2 when the oldest row that is not in a file has waited longer than this.
    #[arg(long, value_name = "SECONDS")]
    export_seconds_max: Option<f64>,
}

/// A partition that nobody has touched for so long, while records wait, counts as stopped at the first look.
/// Longer hides a dead group from whoever asks once; shorter calls a slow transaction dead.
const UNTOUCHED_MAX_MS: i64 = 60_000;
/// How often frontiers and bounds are read until they agree. More only delays the news that they do not.
const LOOKS_MAX: u32 = 2;

/// One partition at one look.
#[derive(Debug, serde::Serialize)]
struct Line {
    partition: i32,
    persist_frontier: i64,
    export_frontier: i64,
    /// The first offset that the broker has.
    low: i64,
    end: i64,
    persist_records: i64,
    /// Age of the oldest record that is not persisted, by the broker's timestamp and Postgres's clock.
    persist_seconds: f64,
    export_records: i64,
    /// Age of the oldest row that is in no file.
    export_seconds: f64,
    status: &'static str,
    owner: Option<String>,
    /// Why the partition waits for an operator.
    stopped: Option<String>,
    #[serde(skip)]
    untouched_ms: i64,
}

impl Line {
    fn out_of_bounds(&self) -> Option<LagStatus> {
        LagStatus::out_of_bounds(self.persist_frontier, self.low, self.end)
    }
}

pub async fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let servers = 0..config.postgres.urls().count();
    let pools = servers.map(|server| super::ledger::pool(config, server)).collect::<Result<Vec<_>, _>>()?;
    let brokers = Brokers::new(config);
    let mut windows: BTreeMap<i32, Window> = BTreeMap::new();
    let mut last: Option<Vec<Line>> = None;
    loop {
        let looked = tokio::select! {
            looked = look(config, &pools, &brokers) => looked,
            _ = tokio::signal::ctrl_c() => return ended(&args, last.as_deref()),
        };
        match looked {
            Ok((now_ms, mut lines)) => {
                for line in &mut lines {
                    line.status = status(line, now_ms, windows.entry(line.partition).or_default()).as_str();
                }
                show(&args, config, now_ms, &lines);
                last = Some(lines);
            }
            // Whoever watches through an outage wants to see its end too. What was wrong from the start is an error.
            Err(failure) if args.watch.is_some() && last.is_some() => {
                eprintln!("no look this time, trying again: {failure}");
            }
            Err(failure) => return Err(failure),
        }
        let Some(seconds) = args.watch else { return ended(&args, last.as_deref()) };
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(seconds.max(1))) => {}
            _ = tokio::signal::ctrl_c() => return ended(&args, last.as_deref()),
        }
    }
}

/// The verdict is the last look's.
fn ended(args: &Args, last: Option<&[Line]>) -> Result<(), Failure> {
    match last {
        Some(lines) => judge(args, lines),
        None => Err(Failure::Interrupted("interrupted before the first look".to_owned())),
    }
}

fn status(line: &Line, now_ms: i64, window: &mut Window) -> LagStatus {
    if let Some(status) = line.out_of_bounds() {
        return status;
    }
    let waiting = line.persist_records.max(0).cast_unsigned();
    // Both: on a topic that was quiet for hours, the first record finds a partition that nobody has touched since.
    let is_left =
        line.untouched_ms > UNTOUCHED_MAX_MS && line.persist_seconds * 1000.0 > UNTOUCHED_MAX_MS as f64;
    if line.stopped.is_some() || (waiting > 0 && is_left) {
        return LagStatus::Stop;
    }
    window.push(Observation { at_ms: now_ms, frontier: line.persist_frontier, lag: waiting });
    window.status(now_ms, waiting)
}

/// Ledger first, ends after it.
async fn look(config: &Config, pools: &[PgPool], brokers: &Brokers) -> Result<(i64, Vec<Line>), Failure> {
    let asking =
        || format!("asking the brokers ({}) about {}", config.kafka.bootstrap_servers, config.kafka.topic);
    let partitions = brokers.partitions().await.with_context(asking)?;
    if partitions.is_empty() {
        let topic = &config.kafka.topic;
        return Err(Failure::Ledger(format!("there is no topic {topic}: `feed-worker topics apply`")));
    }
    let mut attempts = 1;
    let (now_ms, ledger, mut lines) = loop {
        let (now_ms, ledger) = ledgers(config, pools).await.context("reading the ledger (DATABASE_URL)")?;
        let bounds = brokers.bounds(&partitions).await.with_context(asking)?;
        let lines: Vec<Line> = bounds.into_iter().map(|bounds| line(&ledger, bounds)).collect();
        // Retention may have passed the frontier that was read only after a worker had moved it on.
        if attempts == LOOKS_MAX || lines.iter().all(|line| line.out_of_bounds().is_none()) {
            break (now_ms, ledger, lines);
        }
        attempts += 1;
    };
    let waiting: Vec<(i32, i64)> = lines
        .iter()
        .filter(|l| l.persist_records > 0 && l.low < l.end)
        .map(|l| (l.partition, l.persist_frontier.max(l.low)))
        .collect();
    let next = if waiting.is_empty() {
        BTreeMap::new()
    } else {
        brokers.read_at(&waiting).await.with_context(asking)?
    };
    if let Some((partition, offset)) = waiting.iter().find(|(partition, _)| !next.contains_key(partition)) {
        let topic = &config.kafka.topic;
        let told = format!("the brokers do not show what stands at {topic}/{partition}@{offset}: try again");
        return Err(Failure::Deadline(told));
    }
    let oldest = try_join_all(lines.iter().map(|line| oldest_row_ms(pools, line, &ledger)))
        .await
        .context("reading the table (DATABASE_URL)")?;
    let age_s = |at_ms: i64| (now_ms - at_ms).max(0) as f64 / 1000.0;
    for (line, oldest) in lines.iter_mut().zip(oldest) {
        match next.get(&line.partition) {
            Some(Found::Record { timestamp_ms, .. }) => line.persist_seconds = age_s(*timestamp_ms),
            // Offsets without a record, a transaction's marker say: nobody will ever persist them.
            Some(Found::End) => {
                line.persist_records = 0;
                line.export_records = (line.persist_frontier - line.export_frontier).max(0);
            }
            None => {}
        }
        // What is not even in the table is not in a file either.
        line.export_seconds = oldest.map_or(line.persist_seconds, age_s).max(line.persist_seconds);
    }
    Ok((now_ms, lines))
}

fn line(ledger: &BTreeMap<i32, Standing>, (partition, low, end): (i32, i64, i64)) -> Line {
    match ledger.get(&partition) {
        Some(row) => row.line(partition, low, end),
        // Nobody has ever owned it: all of it waits.
        None => Standing { persist_frontier: low, export_frontier: low, ..Standing::default() }
            .line(partition, low, end),
    }
}

/// A partition's row of the ledger.
#[derive(Default)]
struct Standing {
    persist_frontier: i64,
    export_frontier: i64,
    closed_day: Option<i32>,
    owner: Option<String>,
    stopped: Option<String>,
    untouched_ms: i64,
    /// The number of the server that has it.
    server: usize,
}

impl Standing {
    fn line(&self, partition: i32, low: i64, end: i64) -> Line {
        Line {
            partition,
            persist_frontier: self.persist_frontier,
            export_frontier: self.export_frontier,
            low,
            end,
            persist_records: (end - self.persist_frontier).max(0),
            persist_seconds: 0.0,
            export_records: (end - self.export_frontier).max(0),
            export_seconds: 0.0,
            status: LagStatus::Ok.as_str(),
            owner: self.owner.clone(),
            stopped: self.stopped.clone(),
            untouched_ms: self.untouched_ms,
        }
    }
}

/// What all servers have, and the first one's clock.
async fn ledgers(config: &Config, pools: &[PgPool]) -> Result<(i64, BTreeMap<i32, Standing>), sqlx::Error> {
    let (mut all, mut clock) = (BTreeMap::new(), None);
    for (server, pool) in pools.iter().enumerate() {
        let (now_ms, mut found) = ledger(config, pool).await?;
        if pools.len() > 1 {
            // Only says that the partition has its row on another server.
            found.retain(|_, row| row.stopped.as_deref().is_none_or(|why| places::place_of(why).is_none()));
        }
        found.values_mut().for_each(|row| row.server = server);
        all.extend(found);
        clock.get_or_insert(now_ms);
    }
    Ok((clock.unwrap_or_default(), all))
}

async fn ledger(config: &Config, pool: &PgPool) -> Result<(i64, BTreeMap<i32, Standing>), sqlx::Error> {
    let rows = sqlx::query(
        "SELECT partition, persist_frontier, export_frontier, closed_day - DATE '1970-01-01' AS closed_day, owner,
                stopped || coalesce(': ' || stopped_detail, '') AS stopped,
                (extract(epoch FROM clock_timestamp() - updated_at) * 1000)::bigint AS untouched_ms
         FROM partition_ledger WHERE topic = $1",
    )
    .bind(&config.kafka.topic)
    .fetch_all(pool)
    .await?;
    let now_ms = sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        .fetch_one(pool)
        .await?;
    let standing = |row: &sqlx::postgres::PgRow| {
        let standing = Standing {
            persist_frontier: row.get("persist_frontier"),
            export_frontier: row.get("export_frontier"),
            closed_day: row.get("closed_day"),
            owner: row.get("owner"),
            stopped: row.get("stopped"),
            untouched_ms: row.get("untouched_ms"),
            server: 0,
        };
        (row.get("partition"), standing)
    };
    Ok((now_ms, rows.iter().map(standing).collect()))
}

/// When the oldest row that is in no file was recorded; none: there is no such row.
async fn oldest_row_ms(
    pools: &[PgPool],
    line: &Line,
    ledger: &BTreeMap<i32, Standing>,
) -> Result<Option<i64>, sqlx::Error> {
    if line.export_frontier >= line.persist_frontier {
        return Ok(None);
    }
    // The day bounds the table's partitions that Postgres has to look into.
    let row = ledger.get(&line.partition);
    let closed_day = row.and_then(|row| row.closed_day).unwrap_or(0);
    let Some(pool) = pools.get(row.map_or(0, |row| row.server)) else { return Ok(None) };
    sqlx::query_scalar(
        "SELECT (extract(epoch FROM recorded_at) * 1000)::bigint FROM user_interactions
         WHERE kafka_partition = $1 AND kafka_offset >= $2
           AND recorded_at >= (DATE '1970-01-01' + $3::int)::timestamp AT TIME ZONE 'UTC'
         ORDER BY kafka_offset LIMIT 1",
    )
    .bind(line.partition)
    .bind(line.export_frontier)
    .bind(closed_day + 1)
    .fetch_optional(pool)
    .await
}

fn show(args: &Args, config: &Config, now_ms: i64, lines: &[Line]) {
    if args.json {
        println!(
            "{}",
            serde_json::json!({
                "topic": config.kafka.topic, "group": config.kafka.group_id, "at_ms": now_ms, "partitions": lines,
            })
        );
        return;
    }
    if args.watch.is_some() && std::io::stdout().is_terminal() {
        print!("\x1b[H\x1b[2J"); // home, clear
    }
    println!(
        "{:>9} {:>14} {:>14} {:>14} {:>10} {:>9} {:>10} {:>9} {:<6} owner",
        "partition", "persisted", "exported", "end", "lag", "seconds", "to export", "seconds", "status"
    );
    for line in lines {
        let outside = match line.out_of_bounds() {
            Some(LagStatus::Gap) => format!("  gone unread: [{}, {})", line.persist_frontier, line.low),
            Some(_) => format!("  the topic ends at {}: created anew?", line.end),
            None => String::new(),
        };
        println!(
            "{:>9} {:>14} {:>14} {:>14} {:>10} {:>9.1} {:>10} {:>9.1} {:<6} {}{outside}{}",
            line.partition,
            line.persist_frontier,
            line.export_frontier,
            line.end,
            line.persist_records,
            line.persist_seconds,
            line.export_records,
            line.export_seconds,
            line.status,
            line.owner.as_deref().unwrap_or("-"),
            line.stopped.as_deref().map(|why| format!("  stopped: {why}")).unwrap_or_default(),
        );
    }
    let sum = |of: fn(&Line) -> i64| lines.iter().map(of).sum::<i64>();
    println!(
        "{} partitions: {} records to persist, {} to export",
        lines.len(),
        sum(|l| l.persist_records),
        sum(|l| l.export_records)
    );
}

/// Whether what was asked for holds.
fn judge(args: &Args, lines: &[Line]) -> Result<(), Failure> {
    let asks = args.records_max.is_some() || args.seconds_max.is_some() || args.export_seconds_max.is_some();
    let over = |line: &&Line| {
        (asks && line.out_of_bounds().is_some())
            || args.records_max.is_some_and(|max| line.persist_records > max)
            || args.seconds_max.is_some_and(|max| line.persist_seconds > max)
            || args.export_seconds_max.is_some_and(|max| line.export_seconds > max)
    };
    let over: Vec<String> = lines.iter().filter(over).map(|line| line.partition.to_string()).collect();
    if over.is_empty() {
        return Ok(());
    }
    Err(Failure::Differs(format!("past the threshold: partitions {}", over.join(", "))))
}
