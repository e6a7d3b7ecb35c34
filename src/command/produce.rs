//! `feed-worker produce`: sends a file of events, or generated ones.

mod canary;
mod display;
mod file;
mod load;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use self::display::{Display, Figures};
use crate::command::{ClientContext, Failure, INTERRUPTED};
use crate::config::Config;

/// Send events to the source topic: those of a file (--file), or generated ones (--count, --duration).
///
/// From a file, every line is one event as JSON and is judged by the worker's own rules before it is sent. Bad
/// lines are not sent: their numbers and reasons are in FILE.bad.ndjson, and the command ends with 65. A run that
/// was killed goes on when it is started again, and sends nothing twice: its journal is FILE.progress.
///
/// Generated events are reported with the latency of their deliveries, counted from the moment at which the
/// schedule wanted each sent, so a broker that stalls shows in the percentiles; a failure counts as the maximum.
/// Planted bad records carry the header `x-planted-reason`.
///
/// With --canary it measures without end, on a topic that nobody reads.
///
/// Ctrl-C stops the sending, waits for what is under way, reports, and ends with 130.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    file: file::Args,
    #[command(flatten)]
    load: load::Args,
    #[command(flatten)]
    canary: canary::Args,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Events per second; without it as fast as the broker takes them.
    #[arg(long)]
    rate: Option<f64>,
    /// Write the final report there as JSON.
    #[arg(long, alias = "report", value_name = "FILE")]
    report_json: Option<PathBuf>,
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

impl Args {
    /// JSON alone needs none.
    pub fn needs_registry(&self) -> bool {
        if self.canary.is_set() {
            false
        } else if self.file.path().is_some() {
            self.file.needs_registry()
        } else {
            self.load.needs_registry()
        }
    }
}

pub async fn run(args: Args, cx: &ClientContext, config: &Config) -> Result<(), Failure> {
    args.common.check()?;
    if args.canary.is_set() {
        return canary::run(args.canary, args.load.duration(), &args.common, cx, config).await;
    }
    let stop = stop_at_interrupt()?;
    if args.file.path().is_some() {
        file::run(args.file, &args.common, cx, &stop).await
    } else {
        load::run(args.load, &args.common, cx, &stop).await
    }
}

/// Set by the first Ctrl-C, whenever it comes; the second ends the process: whoever asks twice does not want to wait
/// for the broker, or for standard input.
fn stop_at_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let mut interrupts = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    tokio::spawn(async move {
        interrupts.recv().await;
        told.store(true, Ordering::Relaxed);
        interrupts.recv().await;
        std::process::exit(INTERRUPTED);
    });
    Ok(stop)
}

/// Shows how far the sending is until it has ended. With its outcome comes whether it was interrupted.
async fn watch<T>(
    mut sending: JoinHandle<anyhow::Result<T>>,
    mut display: Display,
    figures: impl Fn() -> Figures,
    stop: &AtomicBool,
) -> (anyhow::Result<T>, bool) {
    let mut ticks = tokio::time::interval(display.interval());
    let sent = loop {
        tokio::select! {
            sent = &mut sending => break sent,
            _ = ticks.tick() => display.show(figures()),
        }
    };
    display.finish(figures());
    let sent = sent.context("the sending thread ended abnormally").and_then(|sent| sent);
    (sent, stop.load(Ordering::Relaxed))
}

impl Common {
    fn check(&self) -> anyhow::Result<()> {
        if let Some(rate) = self.rate {
            ensure!(rate.is_finite() && rate > 0.0, "--rate {rate}: must be above 0");
        }
        Ok(())
    }

    fn publish(&self, text: &str, report: &impl Serialize) -> anyhow::Result<()> {
        if !self.quiet {
            print!("{text}");
        }
        if let Some(path) = &self.report_json {
            serde_json::to_writer_pretty(create(path)?, report)
                .with_context(|| format!("writing the report to {}", path.display()))?;
        }
        Ok(())
    }
}

fn create(path: &Path) -> anyhow::Result<File> {
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
