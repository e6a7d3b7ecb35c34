//! A file of events.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;

use super::display::{Display, Figures};
use super::{Common, parse_duration, watch};
use crate::command::{ClientContext, Failure};
use crate::produce::avro::Encoder;
use crate::produce::backfill::bad_lines::BadLine;
use crate::produce::backfill::{self, Format, Job, Outcome, Refused, TooLarge};
use crate::produce::report::{Deliveries, Report};
use crate::produce::{schemas, sender};
use crate::subjects::client::Client;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "A file of events")]
#[group(skip)]
pub struct Args {
    /// Send these lines; `-` is standard input.
    #[arg(long, value_name = "FILE|-")]
    file: Option<PathBuf>,
    /// As what the events are sent.
    #[arg(long, value_enum, default_value_t = Wanted::Json, requires = "file")]
    encoding: Wanted,
    /// Journal to go on from and to write. Unless said: FILE.progress. Standard input has none unless it is said
    /// here; then the same input has to be piped again.
    #[arg(long, value_name = "JOURNAL", requires = "file")]
    resume: Option<PathBuf>,
    /// Where numbers and reasons of bad lines are written. Unless said: FILE.bad.ndjson.
    #[arg(long, value_name = "BAD", requires = "file")]
    bad_lines: Option<PathBuf>,
    /// How many bad lines are no reason to end with 65, or `all`.
    #[arg(long, value_name = "N|all", default_value = "0", requires = "file")]
    allow_bad: Allowed,
    /// Before going on after a kill, wait until the broker has taken nothing of the earlier run for so long.
    #[arg(long, value_parser = parse_duration, default_value = "3s", value_name = "DURATION", requires = "file")]
    settle: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wanted {
    /// Each line as it is.
    Json,
    /// In the Confluent wire format, with the current schema.
    Avro,
}

#[derive(Debug, Clone, Copy)]
struct Allowed(u64);

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self(u64::MAX)),
            _ => text.parse().map(Self).map_err(|_| "neither a number nor `all`".to_owned()),
        }
    }
}

#[derive(Serialize)]
struct FileReport<'r> {
    lines: u64,
    /// By every run of this journal.
    sent: u64,
    bad: u64,
    /// This run went on after that line.
    resumed_after: Option<u64>,
    /// Lines after it that were in the topic already.
    found: u64,
    doubles: u64,
    is_complete: bool,
    first_bad: &'r [BadLine],
    /// Of this run's deliveries.
    delivery: &'r Report,
}

impl Args {
    pub fn path(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    pub fn needs_registry(&self) -> bool {
        self.encoding == Wanted::Avro
    }

    fn is_stdin(&self) -> bool {
        self.path() == Some(Path::new("-"))
    }

    /// A file beside the input, unless another one was said.
    fn beside(&self, said: Option<&PathBuf>, ending: &str) -> Option<PathBuf> {
        if said.is_some() || self.is_stdin() {
            return said.cloned();
        }
        let mut name = OsString::from(self.path()?);
        name.push(ending);
        Some(PathBuf::from(name))
    }

    fn open(&self) -> anyhow::Result<(Box<dyn BufRead + Send>, Option<u64>)> {
        let path = self.path().context("no file")?;
        if self.is_stdin() {
            return Ok((Box::new(BufReader::new(std::io::stdin())), None));
        }
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let metadata = file.metadata().with_context(|| format!("asking for {}", path.display()))?;
        ensure!(!metadata.is_dir(), "{} is a folder", path.display());
        Ok((Box::new(BufReader::with_capacity(1 << 18, file)), Some(metadata.len())))
    }
}

pub async fn run(
    args: Args,
    common: &Common,
    cx: &ClientContext,
    stop: &Arc<AtomicBool>,
) -> Result<(), Failure> {
    let (input, bytes) = args.open()?;
    let journal = args.beside(args.resume.as_ref(), ".progress");
    if journal.is_none() && !common.quiet {
        eprintln!("standard input without --resume: if this run is killed, it cannot go on");
    }
    let job = Job {
        input,
        topic: cx.topic.clone(),
        batch_bytes_max: sender::batch_bytes_max(&cx.kafka, &cx.topic).await,
        format: format(args.encoding, cx).await?,
        types: cx.types.clone(),
        journal,
        bad_lines: args.beside(args.bad_lines.as_ref(), ".bad.ndjson"),
        events_per_second: common.rate,
        settle: args.settle,
    };
    let bad_lines = job.bad_lines.clone();
    let deliveries = Arc::new(Deliveries::new(None)?);
    let (outcome, interrupted) = send(job, bytes, common, cx, &deliveries, stop).await?;
    let delivery = deliveries.report(None)?;
    let report = FileReport {
        lines: outcome.lines,
        sent: outcome.delivered,
        bad: outcome.bad,
        resumed_after: outcome.resumed_after,
        found: outcome.found,
        doubles: outcome.doubles,
        is_complete: outcome.is_complete,
        first_bad: &outcome.first_bad,
        delivery: &delivery,
    };
    common.publish(&text(&outcome, &delivery, bad_lines.as_deref()), &report)?;
    verdict(&outcome, args.allow_bad, interrupted)
}

async fn send(
    job: Job,
    bytes: Option<u64>,
    common: &Common,
    cx: &ClientContext,
    deliveries: &Arc<Deliveries>,
    stop: &Arc<AtomicBool>,
) -> Result<(Outcome, bool), Failure> {
    let read_bytes = Arc::new(AtomicU64::new(0));
    let sending = {
        let (deliveries, stop) = (Arc::clone(deliveries), Arc::clone(stop));
        let (config, read_bytes) = (cx.kafka.clone(), Arc::clone(&read_bytes));
        tokio::task::spawn_blocking(move || backfill::run(job, &config, &deliveries, &read_bytes, &stop))
    };
    let figures = || Figures { done: read_bytes.load(Ordering::Relaxed), delivered: deliveries.delivered() };
    let (sent, interrupted) = watch(sending, Display::new(common, bytes), figures, stop).await;
    match sent {
        Ok(outcome) => Ok((outcome, interrupted)),
        Err(error) => Err(match error.downcast::<Refused>() {
            Ok(Refused(why)) => Failure::Ledger(why),
            Err(error) => match error.downcast::<TooLarge>() {
                Ok(told) => Failure::BadEvents(told.to_string()),
                Err(error) => error.into(),
            },
        }),
    }
}

async fn format(wanted: Wanted, cx: &ClientContext) -> anyhow::Result<Format> {
    match wanted {
        Wanted::Json => Ok(Format::Json),
        Wanted::Avro => {
            let client = Client::new(&cx.registry_url, cx.registry_auth.as_ref())?;
            let subject = schemas::value_subject(&cx.topic);
            let known = client.look_up(&subject, schemas::CURRENT).await?;
            let known = known.with_context(|| {
                format!(
                    "the event's schema is not registered under {subject}: `feed-worker schemas register`"
                )
            })?;
            Ok(Format::Avro { encoder: Encoder::new(schemas::CURRENT)?, schema_id: known.id })
        }
    }
}

fn text(outcome: &Outcome, delivery: &Report, bad_lines: Option<&Path>) -> String {
    let mut text = String::new();
    if let Some(line) = outcome.resumed_after {
        text += &format!("went on after line {line}; {} later lines were there already\n", outcome.found);
    }
    text += &format!("{} lines: {} sent, {} bad\n", outcome.lines, outcome.delivered, outcome.bad);
    for bad in &outcome.first_bad {
        let field = bad.field.as_deref().map(|field| format!(" in {field}")).unwrap_or_default();
        let detail = bad.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
        text += &format!("  line {}: {}{field}{detail}\n", bad.line, bad.reason);
    }
    let more = outcome.bad.saturating_sub(outcome.first_bad.len() as u64);
    if more > 0 {
        let place = bad_lines
            .map_or_else(|| "say --bad-lines to have them all".to_owned(), |p| p.display().to_string());
        text += &format!("  and {more} more: {place}\n");
    }
    text + &delivery.text()
}

fn verdict(outcome: &Outcome, allowed: Allowed, interrupted: bool) -> Result<(), Failure> {
    if outcome.doubles > 0 {
        let told = format!(
            "{} lines are in the topic twice: a broker took requests of the killed run late; use a longer --settle",
            outcome.doubles
        );
        return Err(anyhow::anyhow!(told).into());
    }
    if interrupted && !outcome.is_complete {
        let told = format!("interrupted after line {}; the same command goes on from there", outcome.lines);
        return Err(Failure::Interrupted(told));
    }
    if outcome.bad > allowed.0 {
        return Err(Failure::BadEvents(format!("{} lines are bad and were not sent", outcome.bad)));
    }
    Ok(())
}
