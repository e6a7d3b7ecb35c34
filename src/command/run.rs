//! `feed-worker run`: checks first, then the pipeline, until a signal.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, INTERRUPTED, migrate};
use crate::config::Config;
use crate::export::object::{ObjectStore, S3, S3Settings, prove_conditional_writes};
use crate::kafka::broker::Brokers;
use crate::kafka::dead_letters::DeadLetterTopic;
use crate::kafka::probe;
use crate::kafka::source::Source;
use crate::outside::{Broker, Database, Outside, wall_clock};
use crate::pipeline::{Ended, Pipeline};
use crate::postgres::ledger::{self, Identity, LedgerError};
use crate::postgres::{self, Postgres, Spread};
use crate::registry::Registry;
use crate::retry::Backoff;
use crate::row;
use crate::telemetry::health::{self, Health};
use crate::telemetry::{metrics, recorder, traces};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bring the tables to this program's version first (needs the right to; for small set-ups).
    #[arg(long)]
    migrate: bool,
}

/// Runs a worker until SIGTERM or SIGINT; a second signal ends the process at once.
pub async fn run(args: Args, config: Config) -> Result<(), Failure> {
    let signals = Signals::new()?;
    let counted = recorder::install(&config)?;
    let traced = traces::install(&config)?;
    let health = Health::new(Duration::from_millis(config.health.stall_ms));
    health::serve(&config.health.addr, health.clone(), counted.page.clone()).await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        topic = config.kafka.topic,
        group = config.kafka.group_id,
        bucket = config.s3.bucket,
        prefix = config.s3.prefix,
        configuration = %config.values(),
        "feed-worker starts"
    );
    let stop = signals.first();
    if args.migrate {
        tokio::select! {
            migrated = migrate_when_there(&config) => migrated?,
            () = stop.clone().wait() => return Ok(()),
            () = keep_alive(&health) => return Ok(()),
        }
    }
    let prepared = tokio::select! {
        prepared = prepare(&config, health.clone()) => prepared?,
        () = stop.clone().wait() => return Ok(()),
        () = keep_alive(&health) => return Ok(()),
    };
    let (source, events) = Source::start(&config).map_err(anyhow::Error::from)?;
    let (mut pipeline, completions) = Pipeline::start(config, prepared, source)?;
    let ended = pipeline.run(events, completions, stop.wait()).await;
    pipeline.close().await;
    traced.finish().await;
    ended.map_err(|ended| match ended {
        Ended::Flood(why) => Failure::RejectFlood(why),
        Ended::Ledger(why) => Failure::Ledger(why),
        Ended::Fatal(why) => Failure::Other(anyhow::anyhow!(why)),
    })
}

/// What the ledger calls this worker, for whoever looks for it: in a container every process has the same number, and
/// the host's name is the pod's.
fn owner(client_id: &str) -> String {
    let host = std::env::var("HOSTNAME").or_else(|_| std::fs::read_to_string("/proc/sys/kernel/hostname"));
    let host = host.unwrap_or_default();
    format!("{client_id}@{}/{}", host.trim(), std::process::id())
}

/// Everything that must be true before the group is joined. What is away is waited for.
async fn prepare(config: &Config, health: Health) -> Result<Outside, Failure> {
    let mut servers = Postgres::all(config).map_err(anyhow::Error::from)?;
    let store: Arc<dyn ObjectStore> = Arc::new(
        S3::connect(&s3_settings(config)).await.map_err(|e| anyhow::anyhow!("object store client: {e}"))?,
    );
    prove_store(store.as_ref(), &config.s3.prefix).await?;
    let who = Identity {
        topic: config.kafka.topic.clone(),
        cluster_id: cluster_id(config).await?,
        group_id: config.kafka.group_id.clone(),
        owner: owner(&config.kafka.client_id),
    };
    for (number, server) in servers.iter().enumerate() {
        // A worker can do nothing without the first server. Another one that is away holds up its own partitions only,
        // and is looked at when they are taken over.
        if number > 0 && !answers(server, config.postgres.connect_timeout_ms).await {
            tracing::warn!(
                server = number,
                server.location,
                "postgres does not answer: going on without its partitions"
            );
            continue;
        }
        check_ledger(&server.pool, &who).await?;
    }
    check_places(&servers, config).await?;
    let broker = Brokers::new(config);
    let database: Arc<dyn Database> = match servers.len() {
        1 => Arc::new(servers.remove(0)),
        _ => Arc::new(Spread::new(config, servers)),
    };
    tell_what_was_found(database.as_ref(), &broker, &who).await;
    Ok(Outside {
        database,
        broker: Arc::new(broker),
        store,
        dead_letters: Arc::new(
            DeadLetterTopic::new(config).map_err(|e| anyhow::anyhow!("kafka producer: {e}"))?,
        ),
        schemas: Arc::new(Registry::new(config).map_err(|e| anyhow::anyhow!("registry client: {e}"))?),
        clock: wall_clock(),
        who,
        health,
    })
}

/// The world as it is before anything is done to it. What does not answer now is left out: it will be asked again.
async fn tell_what_was_found(database: &dyn Database, broker: &Brokers, who: &Identity) {
    let there = broker.partitions().await.ok();
    let partitions = there.as_ref().map(Vec::len);
    let ledger = database.peek(&there.unwrap_or_default()).await.unwrap_or_default();
    let days = database.topic_days().await.ok().flatten();
    let closed_day = days.map(|(closed, _)| row::day_text(closed));
    tracing::info!(
        cluster_id = who.cluster_id,
        owner = who.owner,
        partitions,
        // Without those that their server has lost, or not begun.
        in_ledger = ledger.values().filter(|known| known.closed_day >= 0).count(),
        closed_day,
        "the bucket honours conditional writes, the ledger is this group's: joining"
    );
}

/// Migrates, once Postgres is there.
async fn migrate_when_there(config: &Config) -> Result<(), Failure> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let done = async {
            // Also a password that is not accepted yet is waited for.
            while let Err(error) = migrate::connect(config, 0).await {
                metrics::retried("postgres");
                tracing::warn!(error = format!("{error:#}"), "postgres does not answer: waiting for it");
                backoff.wait().await;
            }
            migrate::run(config).await?;
            super::maintain::run(config).await
        };
        match done.await {
            Err(error) if error.is_outage_of_postgres() => {
                metrics::retried("postgres");
                tracing::warn!(%error, "postgres cannot be written to: waiting for it");
                backoff.wait().await;
            }
            ended => return ended,
        }
    }
}

/// Waiting for what is away is progress: restarting the process would not bring it back.
async fn keep_alive(health: &Health) {
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    loop {
        interval.tick().await;
        health.tick();
    }
}

pub(super) fn s3_settings(config: &Config) -> S3Settings {
    let s3 = &config.s3;
    S3Settings {
        bucket: s3.bucket.clone(),
        region: s3.region.clone(),
        endpoint: s3.endpoint.clone(),
        force_path_style: s3.force_path_style,
        timeout_ms: s3.timeout_ms,
        connect_timeout_ms: s3.connect_timeout_ms,
    }
}

/// Proves that the store honours the condition on which exactly-once rests.
async fn prove_store(store: &dyn ObjectStore, prefix: &str) -> Result<(), Failure> {
    use crate::export::object::ProbeError;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        match prove_conditional_writes(store, prefix).await {
            Ok(()) => return Ok(()),
            Err(ProbeError::Unsafe(why)) => return Err(Failure::UnsafeStore(why)),
            Err(ProbeError::Store(error)) => {
                metrics::retried("s3");
                tracing::warn!(%error, "the bucket cannot be tried yet: waiting for it");
                backoff.wait().await;
            }
        }
    }
}

async fn cluster_id(config: &Config) -> Result<String, Failure> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let client = crate::kafka::client_config(config);
        let ask = move || probe::cluster_id(&client, Duration::from_secs(5));
        match tokio::task::spawn_blocking(ask).await {
            Ok(Ok(Some(id))) => return Ok(id),
            Ok(Ok(None)) => tracing::warn!("the brokers do not say which cluster they are: asking again"),
            // A file or a setting that cannot be used: no broker was asked, and waiting does not help.
            Ok(Err(error @ KafkaError::ClientCreation(_))) => {
                return Err(anyhow::Error::new(error).context("starting the Kafka client").into());
            }
            Ok(Err(error)) => {
                metrics::retried("kafka");
                tracing::warn!(%error, "the brokers do not answer: asking again");
            }
            Err(error) => tracing::warn!(%error, "the brokers could not be asked: asking again"),
        }
        backoff.wait().await;
    }
}

/// The tables are of this program's version, and the ledger is this worker's.
async fn check_ledger(pool: &sqlx::PgPool, who: &Identity) -> Result<(), Failure> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let checked: Result<(), LedgerError> = async {
            let mut connection = pool.acquire().await?;
            ledger::check_identity(&mut connection, who).await
        }
        .await;
        match checked {
            Ok(()) => break,
            Err(
                error @ (LedgerError::Foreign { .. } | LedgerError::Flood { .. } | LedgerError::Refused(_)),
            ) => {
                return Err(Failure::Ledger(error.to_string()));
            }
            Err(LedgerError::World(why)) => tracing::warn!(why, "the ledger is not checked yet"),
            Err(LedgerError::Sql(error)) => {
                if postgres::sqlstate(&error).as_deref() == Some("42P01") {
                    return Err(Failure::Ledger(
                        "the tables are missing: run `feed-worker migrate` first".to_owned(),
                    ));
                }
                metrics::retried("postgres");
                tracing::warn!(%error, "postgres does not answer: waiting for it");
                backoff.wait().await;
            }
        }
    }
    loop {
        match migrate::check(pool).await {
            Err(error) if error.is_outage_of_postgres() => {
                metrics::retried("postgres");
                tracing::warn!(%error, "the tables are not checked yet");
                backoff.wait().await;
            }
            ended => return ended,
        }
    }
}

/// Whether a server says anything at all: an error of its own is an answer.
async fn answers(server: &Postgres, timeout_ms: u64) -> bool {
    let asked = tokio::time::timeout(Duration::from_millis(timeout_ms), server.topic_known()).await;
    matches!(asked, Ok(Ok(_))) || matches!(asked, Ok(Err(error)) if !postgres::is_passing(&error))
}

/// Partitions are where the ledgers have them.
async fn check_places(servers: &[Postgres], config: &Config) -> Result<(), Failure> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        match postgres::places::check(servers, &config.postgres.placed(), &config.kafka.topic).await {
            Ok(()) => return Ok(()),
            Err(LedgerError::Sql(error)) => {
                metrics::retried("postgres");
                tracing::warn!(%error, "whose partitions the servers have is not known yet");
            }
            Err(error) => return Err(Failure::Ledger(error.to_string())),
        }
        backoff.wait().await;
    }
}

/// SIGTERM and SIGINT: the first is told to whoever asks, the second ends the process.
struct Signals(tokio::sync::watch::Receiver<bool>);

impl Signals {
    fn new() -> Result<Self, Failure> {
        let mut term = signal(SignalKind::terminate()).map_err(anyhow::Error::from)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(anyhow::Error::from)?;
        let (tell, told) = tokio::sync::watch::channel(false);
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => (), _ = interrupt.recv() => () };
            let _ = tell.send(true);
            tokio::select! { _ = term.recv() => (), _ = interrupt.recv() => () };
            // Nothing is lost: what was not committed is taken again from the ledger.
            std::process::exit(INTERRUPTED);
        });
        Ok(Signals(told))
    }

    fn first(&self) -> FirstSignal {
        FirstSignal(self.0.clone())
    }
}

#[derive(Clone)]
struct FirstSignal(tokio::sync::watch::Receiver<bool>);

impl FirstSignal {
    async fn wait(mut self) {
        // The sender lives as long as the process.
        let _ = self.0.wait_for(|told| *told).await;
    }
}
