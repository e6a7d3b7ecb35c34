//! `feed-worker audit`: whether everything is where it must be, once.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use schema_registry_converter::async_impl::schema_registry::get_schema_by_id;
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::{RawError, SchemaType};

use super::Failure;
use crate::audit::bucket::Bucket;
use crate::audit::report::{Before, Report};
use crate::audit::table::{Snapshot, Table};
use crate::audit::topic::Topics;
use crate::audit::{Audit, LookUp, Produced, Settings, Trouble, event, row};
use crate::config::{Address, Config};
use crate::export::object::S3;
use crate::registry;

/// Compare the topic, the DLQ, the table, the bucket and the ledger, by code that is not the worker's.
///
/// Writes nothing; workers may run meanwhile. Exit code 0: clean; 2: findings; 66: there is nothing to audit;
/// 75: a server is away.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this closed day: folder, manifest, files and rows, without reading the topic.
    #[arg(long, value_parser = parse_day, value_name = "YYYY-MM-DD")]
    day: Option<i32>,
    /// The report as one JSON object on standard output.
    #[arg(long)]
    json: bool,
    /// List of what was produced, one JSON object a line, that the topic is held against.
    #[arg(long, value_name = "FILE", conflicts_with = "day")]
    produced: Option<PathBuf>,
    /// An earlier report (`--json`): no frontier may have gone back, and no closed day changed since.
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
    /// Types or weights were changed: do not hold rows to the present ones.
    #[arg(long)]
    weights_changed: bool,
}

impl Args {
    /// A closed day is compared without the topic.
    pub fn addresses(&self) -> &'static [Address] {
        if self.day.is_some() { &[Address::Postgres] } else { &Address::ALL }
    }
}

pub async fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let started = Instant::now();
    let before = args.since.as_deref().map(read_before).transpose()?;
    let produced = args.produced.as_deref().map(read_produced).transpose()?;
    if let Some(before) = before.as_ref().filter(|before| before.topic != config.kafka.topic) {
        return Err(anyhow::anyhow!("the earlier report is of topic {}", before.topic).into());
    }
    let mut audit = open(&args, config, produced).await?;
    let (done, total) = (Arc::clone(&audit.done), Arc::clone(&audit.total));
    let display = tokio::spawn(show_progress(done, total));
    let mut report = Report::default();
    let ran = match args.day {
        Some(day) => audit.run_day(day, &mut report).await,
        None => audit.run(&mut report).await,
    };
    display.abort();
    ran.map_err(failure)?;
    if let Some(before) = &before {
        report.compare(before, &audit.snapshot);
    }
    tell(&args, &config.kafka.topic, &report, &audit.snapshot, started.elapsed());
    if report.clean() {
        return Ok(());
    }
    Err(Failure::Differs(format!("{} findings", report.findings())))
}

fn tell(args: &Args, topic: &str, report: &Report, snapshot: &Snapshot, took: Duration) {
    let scope = args.day.map_or("everything".to_owned(), |day| format!("day {}", row::day_text(day)));
    if args.json {
        println!("{:#}", report.to_json(topic, &scope, snapshot, took.as_secs_f64()));
    } else {
        for line in report.lines(topic, &scope, &snapshot.gaps, took.as_secs_f64()) {
            println!("{line}");
        }
    }
}

async fn open(args: &Args, config: &Config, produced: Option<Produced>) -> Result<Audit, Failure> {
    let weights = event::parse_weights(&config.interactions.weights);
    let connect_timeout = Duration::from_millis(config.postgres.connect_timeout_ms);
    let store = S3::connect(&super::run::s3_settings(config)).await;
    let store = store.map_err(|error| anyhow::anyhow!("object store client: {error}"))?;
    Ok(Audit {
        settings: Settings {
            topic: config.kafka.topic.clone(),
            dlq_topic: config.kafka.dlq_topic.clone(),
            group_id: config.kafka.group_id.clone(),
            weights: weights.context("interactions.weights cannot be read")?,
            other_weights: args.weights_changed,
            allow_create_time: config.kafka.allow_create_time,
            retention_days: i32::try_from(config.day.retention_days).unwrap_or(i32::MAX),
        },
        table: Table::open(config.postgres.urls(), &config.kafka.topic, connect_timeout).map_err(failure)?,
        bucket: Bucket { store: Arc::new(store), prefix: config.s3.prefix.clone() },
        topics: Topics::new(crate::kafka::client_config(config)),
        look_up: look_up(config)?,
        produced,
        snapshot: Snapshot::default(),
        schemas: tokio::sync::Mutex::default(),
        dropped: tokio::sync::Mutex::new(BTreeMap::new()),
        done: Arc::default(),
        total: Arc::default(),
    })
}

fn failure(trouble: Trouble) -> Failure {
    match trouble {
        Trouble::Away(why) => Failure::Deadline(format!("no verdict: {why}")),
        Trouble::Refused(why) => Failure::Ledger(why),
        Trouble::Broken(why) => Failure::Other(anyhow::anyhow!(why)),
    }
}

/// A scheduled job has no shell to write yesterday's date with.
pub(super) fn parse_day(text: &str) -> Result<i32, String> {
    if text == "yesterday" {
        return Ok(row::day_of_us(chrono::Utc::now().timestamp_micros()) - 1);
    }
    row::parse_day(text).ok_or_else(|| "a day is YYYY-MM-DD, or `yesterday` (UTC)".to_owned())
}

fn read_before(path: &Path) -> Result<Before, Failure> {
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let before = serde_json::from_slice(&text).with_context(|| format!("{} is no report", path.display()));
    Ok(before?)
}

fn read_produced(path: &Path) -> Result<Produced, Failure> {
    let file = std::fs::File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let read = Produced::read(std::io::BufReader::new(file));
    Ok(read.map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?)
}

/// Asks the registry a few times: that an id is missing is believed at once, nothing waits for it here.
fn look_up(config: &Config) -> Result<LookUp, Failure> {
    let settings = registry::settings(config).map_err(|error| anyhow::anyhow!("registry client: {error}"))?;
    let ask = move |id: u32| -> futures::future::BoxFuture<'static, Result<Option<String>, String>> {
        let settings = settings.clone();
        Box::pin(async move {
            let mut attempts = 1;
            loop {
                match get_schema_by_id(id, &settings).await {
                    Ok(found) if found.schema_type == SchemaType::Avro => return Ok(Some(found.schema)),
                    Ok(_) => return Ok(Some(String::new())),
                    Err(error) if is_missing(&error) => return Ok(None),
                    Err(error) if attempts >= 5 => return Err(format!("the registry: {error}")),
                    Err(_) => attempts += 1,
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        })
    };
    Ok(Box::new(ask))
}

fn is_missing(error: &SRCError) -> bool {
    let raw = std::error::Error::source(error).and_then(|source| source.downcast_ref::<RawError>());
    raw.is_some_and(|raw| matches!(raw.error_code, 404 | 40403))
}

/// A bar on a terminal, elsewhere a line now and then.
async fn show_progress(done: Arc<AtomicU64>, total: Arc<AtomicU64>) {
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) =
        ProgressStyle::with_template("{bar:32} {human_pos}/{human_len} looked at, {per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    let mut interval = tokio::time::interval(Duration::from_millis(if terminal { 100 } else { 5000 }));
    interval.tick().await;
    loop {
        interval.tick().await;
        let (done, total) = (done.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
        if terminal {
            bar.set_length(total.max(done));
            bar.set_position(done);
        } else {
            eprintln!("{done} of about {total} records and rows looked at");
        }
    }
}
