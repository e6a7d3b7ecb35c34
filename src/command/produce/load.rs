//! Generated events.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;

use super::display::{Display, Figures};
use super::{Common, create, parse_duration, watch};
use crate::command::{ClientContext, Failure};
use crate::produce::generator::{Generator, Settings};
use crate::produce::report::Deliveries;
use crate::produce::schemas;
use crate::produce::sender::{self, Pace};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Generated events")]
#[group(skip)]
pub struct Args {
    /// How many events to send.
    #[arg(long, required_unless_present_any = ["duration", "file", "canary"], conflicts_with = "file")]
    count: Option<u64>,
    /// How long to send, for example 30s or 5m.
    #[arg(long, value_parser = parse_duration, conflicts_with = "file")]
    duration: Option<Duration>,
    /// With --rate: a broker that is slow does not make the schedule wait, and the waiting counts as latency.
    /// That is so anyway; say it where a script should not depend on a default.
    #[arg(long, requires = "rate", conflicts_with_all = ["closed_loop", "file"])]
    open_loop: bool,
    /// The schedule waits for the producer's queue, and latency counts from the moment a record got into it, as
    /// other tools measure. It hides a broker that stalls.
    #[arg(long, conflicts_with = "file")]
    closed_loop: bool,
    /// Do not measure what is meant to be sent in this time, while the producer's first connections and
    /// its id are fetched.
    #[arg(long, value_parser = parse_duration, default_value = "0s", value_name = "DURATION", conflicts_with = "file")]
    warm_up: Duration,
    /// Picks the events: the same seed gives the same events, apart from their timestamps.
    #[arg(long, default_value_t = 1, conflicts_with = "file")]
    seed: u64,
    /// Index of the first event, to go on where an earlier run of the same seed ended.
    #[arg(long, default_value_t = 0, conflicts_with = "file")]
    first: u64,
    #[arg(long, default_value_t = 10_000, conflicts_with = "file")]
    users: u64,
    #[arg(long, default_value_t = 5_000, conflicts_with = "file")]
    videos: u64,
    /// Clusters that users and videos belong to: what a recommender has to find.
    #[arg(long, default_value_t = 25, conflicts_with = "file")]
    tastes: u64,
    /// Share of the valid events that are JSON; the others are Avro.
    #[arg(long, default_value_t = 0.2, conflicts_with = "file")]
    json_share: f64,
    /// Share of the Avro events that are written with the first version of the schema.
    #[arg(long, default_value_t = 0.2, conflicts_with = "file")]
    avro_v1_share: f64,
    /// Share of planted bad records, every kind in turn.
    #[arg(long, default_value_t = 0.0, conflicts_with = "file")]
    bad_share: f64,
    /// Metadata of so many bytes (as canonical JSON, noise that does not compress) in every valid event, or none (0).
    /// Unless said, a third of the events has some 50. What is odd in the JSON events comes on top.
    #[arg(long, value_name = "N", conflicts_with = "file")]
    metadata_bytes: Option<usize>,
    /// How long librdkafka waits for more records to send together. Shorter than the broker's round trip,
    /// its threads spin (docs/producing.md).
    #[arg(long, value_name = "MS", default_value_t = 10, conflicts_with = "file")]
    linger_ms: u32,
    /// Write a line of JSON for each delivered record: partition, offset, kind (valid or bad), reason.
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    record: Option<PathBuf>,
}

impl Args {
    /// How long to send; none: not said.
    pub fn duration(&self) -> Option<Duration> {
        self.duration
    }

    pub fn needs_registry(&self) -> bool {
        self.json_share < 1.0
    }
}

pub async fn run(
    args: Args,
    common: &Common,
    cx: &ClientContext,
    stop: &Arc<AtomicBool>,
) -> Result<(), Failure> {
    let generator = generator(&args, cx).await?;
    let list = args.record.as_deref().map(create).transpose()?;
    let deliveries = Arc::new(Deliveries::new(list)?);
    let pace = Pace {
        first: args.first,
        count: args.count,
        duration: args.duration,
        events_per_second: common.rate,
        is_closed_loop: args.closed_loop,
        warm_up: args.warm_up,
        is_canary: false,
    };
    let mut config = sender::producer_config(&cx.kafka, args.linger_ms);
    sender::fit_batches(&mut config, sender::batch_bytes_max(&cx.kafka, &cx.topic).await);
    let sending = {
        let (deliveries, stop) = (Arc::clone(&deliveries), Arc::clone(stop));
        let topic = cx.topic.clone();
        tokio::task::spawn_blocking(move || {
            sender::send(&config, &topic, &generator, pace, &deliveries, &stop)
        })
    };
    let total = args.count.or_else(|| Some((common.rate? * args.duration?.as_secs_f64()) as u64));
    let figures = || Figures { done: deliveries.delivered(), delivered: deliveries.delivered() };
    let (sent, interrupted) = watch(sending, Display::new(common, total), figures, stop).await;
    let report = deliveries.report(Some(args.seed)).context("writing the list of records")?;
    common.publish(&report.text(), &report)?;
    sent?;
    if let Some(error) = &report.first_error {
        return Err(anyhow::anyhow!("{} records were not delivered: {error}", report.failed).into());
    }
    if interrupted {
        return Err(Failure::Interrupted("interrupted; what was sent before is delivered".to_owned()));
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
        metadata_bytes: args.metadata_bytes,
    };
    let schemas = if args.needs_registry() {
        let registry = schemas::registry(&cx.registry_url, cx.registry_auth.as_ref())?;
        Some(schemas::for_generator(&registry, &cx.topic, args.bad_share > 0.0).await?)
    } else {
        None
    };
    Generator::new(settings, schemas)
}
