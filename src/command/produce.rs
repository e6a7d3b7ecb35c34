//! `feed-worker produce`: sends generated events.

use std::fs::File;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::command::ClientContext;
use crate::produce::generator::{Generator, Settings};
use crate::produce::report::{Deliveries, Report};
use crate::produce::schemas;
use crate::produce::sender::{self, Pace};

/// Send generated events to the source topic, and report how long each took.
///
/// Every latency counts from the moment at which the schedule wanted the event sent, so a broker that
/// stalls shows in the percentiles. Planted bad records carry the header `x-planted-reason`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many events to send.
    #[arg(long, required_unless_present = "duration")]
    count: Option<u64>,
    /// How long to send, for example 30s or 5m.
    #[arg(long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Events per second; without it as fast as the broker takes them.
    #[arg(long)]
    rate: Option<f64>,
    /// Do not measure what is meant to be sent in this time, while the producer's first connections and
    /// its id are fetched.
    #[arg(long, value_parser = parse_duration, default_value = "0s", value_name = "DURATION")]
    warm_up: Duration,
    /// Picks the events: the same seed gives the same events, apart from their timestamps.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Index of the first event, to go on where an earlier run of the same seed ended.
    #[arg(long, default_value_t = 0)]
    first: u64,
    #[arg(long, default_value_t = 10_000)]
    users: u64,
    #[arg(long, default_value_t = 5_000)]
    videos: u64,
    /// Clusters that users and videos belong to: what a recommender has to find.
    #[arg(long, default_value_t = 25)]
    tastes: u64,
    /// Share of the valid events that are JSON; the others are Avro.
    #[arg(long, default_value_t = 0.2)]
    json_share: f64,
    /// Share of the Avro events that are written with the first version of the schema.
    #[arg(long, default_value_t = 0.2)]
    avro_v1_share: f64,
    /// Share of planted bad records, every kind in turn.
    #[arg(long, default_value_t = 0.0)]
    bad_share: f64,
    /// How long librdkafka waits for more records to send together.
    #[arg(long, value_name = "MS", default_value_t = 5)]
    linger_ms: u32,
    /// Write a line of JSON for each delivered record: partition, offset, kind (valid or bad), reason.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Write the final report there as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// How to show progress (on standard error).
    #[arg(long, value_enum, default_value_t = Progress::Auto)]
    progress: Progress,
    /// No progress and no report on the terminal.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Progress {
    /// A bar on a terminal, lines elsewhere.
    Auto,
    Bar,
    Lines,
    None,
}

pub async fn run(args: Args, cx: &ClientContext) -> anyhow::Result<()> {
    if let Some(rate) = args.rate {
        ensure!(rate.is_finite() && rate > 0.0, "--rate {rate}: must be above 0");
    }
    let generator = generator(&args, cx).await?;
    let list = args.record.as_ref().map(create).transpose()?;
    let deliveries = Arc::new(Deliveries::new(list)?);
    let stop = Arc::new(AtomicBool::new(false));
    let pace = Pace {
        first: args.first,
        count: args.count,
        duration: args.duration,
        events_per_second: args.rate,
        warm_up: args.warm_up,
    };
    let mut sending = {
        let (deliveries, stop) = (Arc::clone(&deliveries), Arc::clone(&stop));
        let config = sender::producer_config(&cx.kafka, args.linger_ms);
        let topic = cx.topic.clone();
        tokio::task::spawn_blocking(move || {
            sender::send(&config, &topic, &generator, pace, &deliveries, &stop)
        })
    };
    let mut display = Display::new(&args);
    let mut ticks = tokio::time::interval(display.interval());
    let mut interrupted = false;
    let sent = loop {
        tokio::select! {
            sent = &mut sending => break sent,
            _ = ticks.tick() => display.show(deliveries.delivered()),
            _ = tokio::signal::ctrl_c(), if !interrupted => {
                interrupted = true;
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    display.finish(deliveries.delivered());
    let report = deliveries.report(args.seed).context("writing the list of records")?;
    publish(&args, &report)?;
    sent.context("the sending thread ended abnormally")??;
    if let Some(error) = &report.first_error {
        bail!("{} records were not delivered: {error}", report.failed);
    }
    if interrupted {
        bail!("interrupted; what was sent before is delivered");
    }
    Ok(())
}

async fn generator(args: &Args, cx: &ClientContext) -> anyhow::Result<Generator> {
    let settings = Settings {
        seed: args.seed,
        users: args.users,
        videos: args.videos,
        tastes: args.tastes,
        json_share: args.json_share,
        avro_v1_share: args.avro_v1_share,
        bad_share: args.bad_share,
    };
    // JSON alone needs no registry.
    let schemas = if args.json_share >= 1.0 {
        None
    } else {
        let registry = schemas::registry(&cx.registry_url, cx.registry_auth.as_ref())?;
        Some(schemas::for_generator(&registry, &cx.topic, args.bad_share > 0.0).await?)
    };
    Generator::new(settings, schemas)
}

fn publish(args: &Args, report: &Report) -> anyhow::Result<()> {
    if !args.quiet {
        print!("{}", report.text());
    }
    if let Some(path) = &args.report {
        serde_json::to_writer_pretty(create(path)?, report)
            .with_context(|| format!("writing the report to {}", path.display()))?;
    }
    Ok(())
}

fn create(path: &PathBuf) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("creating {}", path.display()))
}

/// `90`, `90s`, `1500ms`, `5m` or `2h`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{unit}` is no unit: use ms, s, m or h")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no duration"))?;
    Duration::try_from_secs_f64(number * factor).map_err(|error| error.to_string())
}

/// Progress on standard error, in the manner that was asked for.
enum Display {
    Bar(ProgressBar),
    Lines { total: Option<u64>, started: std::time::Instant },
    None,
}

impl Display {
    fn new(args: &Args) -> Self {
        let total = args.count.or_else(|| Some((args.rate? * args.duration?.as_secs_f64()) as u64));
        let wants_bar = match args.progress {
            _ if args.quiet => return Self::None,
            Progress::None => return Self::None,
            Progress::Bar => true,
            Progress::Lines => false,
            Progress::Auto => std::io::stderr().is_terminal(),
        };
        if !wants_bar {
            return Self::Lines { total, started: std::time::Instant::now() };
        }
        let (bar, template) = match total {
            Some(total) => {
                (ProgressBar::new(total), "{bar:32} {human_pos}/{human_len} delivered, {per_sec}, {eta} left")
            }
            None => (ProgressBar::no_length(), "{spinner} {human_pos} delivered, {per_sec}"),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self::Bar(bar)
    }

    fn interval(&self) -> Duration {
        match self {
            Self::Bar(_) => Duration::from_millis(100),
            _ => Duration::from_secs(2),
        }
    }

    fn show(&mut self, delivered: u64) {
        match self {
            Self::Bar(bar) => bar.set_position(delivered),
            Self::Lines { total, started } => {
                let seconds = started.elapsed().as_secs_f64();
                if delivered > 0 {
                    let of_total = total.map_or(String::new(), |total| format!(" of {total}"));
                    let rate = delivered as f64 / seconds;
                    eprintln!("{delivered}{of_total} delivered after {seconds:.0} s ({rate:.0}/s)");
                }
            }
            Self::None => {}
        }
    }

    fn finish(&mut self, delivered: u64) {
        if let Self::Bar(bar) = self {
            bar.set_position(delivered);
            bar.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert!(parse_duration("5 days").is_err());
        assert!(parse_duration("-1s").is_err());
        assert!(parse_duration("").is_err());
    }
}
