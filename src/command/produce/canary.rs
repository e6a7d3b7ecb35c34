//! `feed-worker produce --canary`: measures without end how fast the brokers acknowledge.
//!
//! 1. Nothing of it ever reaches the source topic: its records go to a topic of their own (`kafka.canary_topic`), with
//!    the producers' settings, so that nobody trains on them.
//! 2. It goes on while the brokers are away, and what fails counts as slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::{Common, parse_duration};
use crate::command::{ClientContext, Failure};
use crate::config::Config;
use crate::produce::generator::{Generator, Settings};
use crate::produce::report::Deliveries;
use crate::produce::sender::{self, Pace};
use crate::telemetry::health::{self, Health};
use crate::telemetry::{metrics, recorder};

/// Records a second unless --rate says otherwise. Fewer: the 95th percentile of a quarter of an hour rests on a handful of
/// records. More: load, and disk on the brokers, for nothing.
const RATE: f64 = 2.0;
/// Distance of attempts while the brokers are away.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Canary")]
#[group(skip)]
pub struct Args {
    /// Measure acknowledgements without end: two records a second (--rate) to `kafka.canary_topic`, never to the source
    /// topic. Latency goes out as `canary.produce.ms`, by statsd and at `/metrics` of `health.addr`.
    #[arg(long, conflicts_with_all = ["file", "count", "open_loop", "closed_loop", "bad_share", "metadata_bytes", "record"])]
    canary: bool,
    /// Give up a record, and count it as failed, after this long.
    #[arg(long, value_parser = parse_duration, default_value = "10s", value_name = "DURATION", requires = "canary")]
    canary_timeout: Duration,
}

impl Args {
    pub fn is_set(&self) -> bool {
        self.canary
    }
}

pub async fn run(
    args: Args,
    duration: Option<Duration>,
    common: &Common,
    cx: &ClientContext,
    config: &Config,
) -> Result<(), Failure> {
    let counted = recorder::install(config)?;
    let health = Health::new(Duration::from_millis(config.health.stall_ms));
    health::serve(&config.health.addr, health.clone(), counted.page.clone()).await?;
    let topic = config.kafka.canary_topic.clone();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), topic, "the canary starts");
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signal(&stop)?;
    let deliveries = Arc::new(Deliveries::new(None)?.told_to(observe));
    // Nobody decodes them: JSON needs no registry.
    let settings = Settings {
        seed: 1,
        users: 1_000,
        videos: 1_000,
        tastes: 10,
        json_share: 1.0,
        avro_v1_share: 0.0,
        bad_share: 0.0,
        metadata_bytes: None,
    };
    let generator = Arc::new(Generator::new(settings, None)?);
    let mut client = sender::producer_config(&cx.kafka, 5);
    client.set("message.timeout.ms", args.canary_timeout.as_millis().to_string());
    let rate = common.rate.unwrap_or(RATE);
    let pace = Pace { duration, events_per_second: Some(rate), is_canary: true, ..Pace::default() };
    loop {
        let sent = send(&client, &topic, &generator, pace, &deliveries, &stop, &health).await?;
        match sent {
            Ok(()) => break,
            Err(error) if duration.is_some() => return Err(error.into()),
            Err(error) => {
                // None was sent that could fail by itself, and yet a producer would have.
                metrics::canary_failed();
                tracing::warn!(error = format!("{error:#}"), "the canary cannot send: trying again");
            }
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        health.tick();
        tokio::time::sleep(RETRY).await;
    }
    let report = deliveries.report(None)?;
    common.publish(&report.text(), &report)?;
    Ok(())
}

/// Sends on a thread of its own; alive meanwhile, for whoever probes.
async fn send(
    client: &rdkafka::ClientConfig,
    topic: &str,
    generator: &Arc<Generator>,
    pace: Pace,
    deliveries: &Arc<Deliveries>,
    stop: &Arc<AtomicBool>,
    health: &Health,
) -> anyhow::Result<anyhow::Result<()>> {
    let (client, topic) = (client.clone(), topic.to_owned());
    let (generator, deliveries, stop) = (generator.clone(), deliveries.clone(), stop.clone());
    let mut sending = tokio::task::spawn_blocking(move || {
        sender::send(&client, &topic, &generator, pace, &deliveries, &stop)
    });
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    health.set_ready(true);
    loop {
        tokio::select! {
            sent = &mut sending => return sent.context("the sending thread ended abnormally"),
            // No build.info: it says that a worker is there, and the canary is none.
            _ = ticks.tick() => health.tick(),
        }
    }
}

/// What became of one record.
fn observe(took: Duration, is_delivered: bool) {
    metrics::canary_acknowledged(took.as_secs_f64() * 1e3);
    if !is_delivered {
        metrics::canary_failed();
    }
}

fn stop_on_signal(stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => (), _ = interrupt.recv() => () };
        stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}
