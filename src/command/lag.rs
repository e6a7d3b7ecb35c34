//! `feed-worker lag`: how far behind the topic's end table and exports are.
//!
//! 1. It asks the ledger and the brokers, never a worker: it tells the truth while every worker is dead.
//! 2. Frontiers are read before ends, so lag may be told too large by what was produced in between,
//!    never too small.
//! 3. A frontier outside of what the broker has is no lag of so many records: it has a status of its own, and
//!    is past every threshold.
//! 4. Of several Postgres servers one that is away hides nothing but its own partitions: the others are told, then
//!    that it is away.

mod ledgers;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use futures::future::try_join_all;

use self::ledgers::{Away, Ledgers, Standing};
use super::Failure;
use crate::config::Config;
use crate::kafka::broker::Brokers;
use crate::kafka::probe::Found;
use crate::lag::{LagStatus, Observation, Window};
use crate::outside::Broker;

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

/// What was found at one look.
struct Look {
    now_ms: i64,
    lines: Vec<Line>,
    away: Vec<Away>,
}

pub async fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let ledgers = Ledgers::new(config)?;
    let brokers = Brokers::new(config);
    let mut windows: BTreeMap<i32, Window> = BTreeMap::new();
    let mut last: Option<Look> = None;
    loop {
        let looked = tokio::select! {
            looked = look(config, &ledgers, &brokers) => looked,
            _ = tokio::signal::ctrl_c() => return ended(&args, last),
        };
        match looked {
            Ok(mut look) => {
                for line in &mut look.lines {
                    line.status =
                        status(line, look.now_ms, windows.entry(line.partition).or_default()).as_str();
                }
                show(&args, config, &look);
                last = Some(look);
            }
            // Whoever watches through an outage wants to see its end too. What was wrong from the start is an error.
            Err(failure) if args.watch.is_some() && last.is_some() => {
                eprintln!("no look this time, trying again: {failure}");
            }
            Err(failure) => return Err(failure),
        }
        let Some(seconds) = args.watch else { return ended(&args, last) };
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(seconds.max(1))) => {}
            _ = tokio::signal::ctrl_c() => return ended(&args, last),
        }
    }
}

/// The verdict is the last look's. What is past a threshold is said before that a server is away.
fn ended(args: &Args, last: Option<Look>) -> Result<(), Failure> {
    let Some(look) = last else {
        return Err(Failure::Interrupted("interrupted before the first look".to_owned()));
    };
    judge(args, &look.lines)?;
    match look.away.into_iter().next() {
        Some(away) => {
            let told = format!("the lag of partitions {} is not known", away.named());
            Err(away.why.context(told).into())
        }
        None => Ok(()),
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
async fn look(config: &Config, ledgers: &Ledgers<'_>, brokers: &Brokers) -> Result<Look, Failure> {
    let asking =
        || format!("asking the brokers ({}) about {}", config.kafka.bootstrap_servers, config.kafka.topic);
    let partitions = brokers.partitions().await.with_context(asking)?;
    if partitions.is_empty() {
        let topic = &config.kafka.topic;
        return Err(Failure::Ledger(format!("there is no topic {topic}: `feed-worker topics apply`")));
    }
    let mut attempts = 1;
    let (found, mut lines) = loop {
        let found = ledgers.read(&partitions).await?;
        let known: Vec<i32> = partitions.iter().copied().filter(|p| !found.is_away(*p)).collect();
        let bounds = brokers.bounds(&known).await.with_context(asking)?;
        let lines: Vec<Line> = bounds.into_iter().map(|bounds| line(&found.rows, bounds)).collect();
        // Retention may have passed the frontier that was read only after a worker had moved it on.
        if attempts == LOOKS_MAX || lines.iter().all(|line| line.out_of_bounds().is_none()) {
            break (found, lines);
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
    let rows = lines.iter().map(|line| {
        let row = found.rows.get(&line.partition).filter(|row| row.export_frontier < row.persist_frontier);
        async move {
            match row {
                Some(row) => ledgers.oldest_row_ms(line.partition, row).await,
                None => Ok(None),
            }
        }
    });
    let oldest = try_join_all(rows).await.context("reading the table (DATABASE_URL)")?;
    let age_s = |at_ms: i64| (found.now_ms - at_ms).max(0) as f64 / 1000.0;
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
    Ok(Look { now_ms: found.now_ms, lines, away: found.away })
}

fn line(ledger: &BTreeMap<i32, Standing>, (partition, low, end): (i32, i64, i64)) -> Line {
    let never = Standing::before(low);
    let row = ledger.get(&partition).unwrap_or(&never);
    Line {
        partition,
        persist_frontier: row.persist_frontier,
        export_frontier: row.export_frontier,
        low,
        end,
        persist_records: (end - row.persist_frontier).max(0),
        persist_seconds: 0.0,
        export_records: (end - row.export_frontier).max(0),
        export_seconds: 0.0,
        status: LagStatus::Ok.as_str(),
        owner: row.owner.clone(),
        stopped: row.stopped.clone(),
        untouched_ms: row.untouched_ms,
    }
}

fn show(args: &Args, config: &Config, look: &Look) {
    let lines = &look.lines;
    if args.json {
        let away: Vec<_> = look.away.iter().map(Away::json).collect();
        println!(
            "{}",
            serde_json::json!({
                "topic": config.kafka.topic, "group": config.kafka.group_id, "at_ms": look.now_ms, "partitions": lines,
                "away": away,
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
    for away in &look.away {
        println!("not known: partitions {}, whose Postgres server is away ({})", away.named(), away.server);
    }
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
