//! The commands, one file each, and what they end with.

pub mod audit;
pub mod config;
pub mod exports;
pub mod lag;
pub mod ledger;
pub mod maintain;
pub mod migrate;
mod outage;
pub mod produce;
pub mod reconcile;
pub mod rejects;
pub mod run;
pub mod schemas;
pub mod topics;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::config::{Address, Config, ConfigError, Provenance};
use crate::event::InteractionTypes;
use crate::postgres::places;
use crate::registry::RegistryAuth;
use crate::telemetry;

/// What a command ends with when it does not succeed. The numbers are in the README.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    RejectFlood(String),
    #[error("{0}")]
    Ledger(String),
    #[error("{0}")]
    UnsafeStore(String),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
    #[error("{0}")]
    Deadline(String),
    /// A comparison that was asked for found differences.
    #[error("{0}")]
    Differs(String),
    /// Bad events in what was to be sent; the good ones are.
    #[error("{0}")]
    BadEvents(String),
    #[error("{0}")]
    Interrupted(String),
}

impl Failure {
    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Differs(_) => 2,
            Failure::Config(_) => WRONG_ARGUMENTS,
            Failure::RejectFlood(_) | Failure::BadEvents(_) => 65,
            Failure::Ledger(_) => 66,
            Failure::UnsafeStore(_) => 67,
            Failure::Other(error) if outage::is_outage(error) => 75,
            Failure::Other(_) => 70,
            Failure::Deadline(_) => 75,
            Failure::Interrupted(_) => 130,
        }
    }
}

/// Exit code of arguments or a configuration that cannot be used. Not clap's 2, which says here that something
/// was compared and differs.
pub const WRONG_ARGUMENTS: u8 = 64;

/// Exit code of a second signal.
pub const INTERRUPTED: i32 = 130;

const EXIT_CODES: &str = "Exit codes:
  0    done, or shut down as asked
  2    differences: the cluster is not as topics.yaml has it, a schema is not compatible, what `audit` or
       `exports verify` looked at is not as it must be, or lag is past a threshold
  64   wrong arguments, or bad configuration (the key is named)
  65   bad events: a flood of them (see `feed-worker rejects accept`), or lines of a file that were not sent
  66   refused: the ledger is another cluster's, group's or program's, or what was asked for would do harm
  67   unsafe store: the bucket does not honour conditional writes
  70   fatal client error, or an error of this program
  75   gave up: a deadline has passed, or a server is away
  130  interrupted: `run` by a second signal, `produce` by the first";

/// Feed interactions from Kafka to Postgres and Parquet on S3, exactly once in effect.
#[derive(Debug, Parser)]
#[command(name = "feed-worker", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// YAML file with the configuration (also FEED_WORKER_CONFIG).
    #[arg(long, global = true)]
    pub config: Option<PathBuf>,
    /// One setting, e.g. `--set batch.rows_max=5000`; may be repeated, wins over everything else.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a worker.
    Run(run::Args),
    /// Bring the tables to this program's version.
    Migrate(migrate::Args),
    /// Make day partitions ahead, tidy the default partition, drop closed days past retention.
    Maintain,
    /// Print the effective configuration and where each value comes from.
    Config(config::Args),
    /// How far behind the topic's end the table and the exports are; also while every worker is dead.
    Lag(lag::Args),
    /// See the ledger, and decide what the worker may not.
    #[command(subcommand)]
    Ledger(ledger::Command),
    /// Decide about a flood of rejected events.
    #[command(subcommand)]
    Rejects(rejects::Command),
    /// See whether everything is where it must be, once.
    Audit(audit::Args),
    /// See whether the bucket has what the ledger says, and put back what it lacks.
    #[command(subcommand)]
    Exports(exports::Command),
    /// Hold the topics to topics.yaml.
    Topics(topics::Args),
    /// Check and register the event's schemas.
    Schemas(schemas::Args),
    // Its text is that of the arguments.
    Produce(Box<produce::Args>),
    /// Print the failpoints, each with what can happen there.
    #[cfg(feature = "failpoints")]
    #[command(hide = true)]
    Failpoints,
}

impl Command {
    /// What the command cannot do without. `config` prints first and then says what `run` would miss.
    fn addresses(&self) -> &'static [Address] {
        use Address::{Kafka, Postgres, Registry};
        match self {
            Command::Run(_) => &Address::ALL,
            Command::Config(_) => &[],
            Command::Audit(args) => args.addresses(),
            Command::Lag(_) => &[Kafka, Postgres],
            Command::Ledger(ledger::Command::AcceptGap { .. }) => &[Kafka, Postgres],
            Command::Migrate(_)
            | Command::Maintain
            | Command::Ledger(_)
            | Command::Rejects(_)
            | Command::Exports(_) => &[Postgres],
            Command::Topics(_) => &[Kafka],
            Command::Schemas(_) => &[Registry],
            Command::Produce(args) if args.needs_registry() => &[Kafka, Registry],
            Command::Produce(_) => &[Kafka],
            #[cfg(feature = "failpoints")]
            Command::Failpoints => &[],
        }
    }
}

/// What the producer-side commands need of the configuration.
pub struct ClientContext {
    pub kafka: rdkafka::ClientConfig,
    pub topic: String,
    pub dlq_topic: String,
    pub registry_url: String,
    pub registry_auth: Option<RegistryAuth>,
    pub types: InteractionTypes,
}

impl ClientContext {
    fn new(config: &Config) -> Result<Self, Failure> {
        let registry = &config.registry;
        let types = InteractionTypes::parse(&config.interactions.weights);
        Ok(ClientContext {
            kafka: crate::kafka::client_config(config),
            topic: config.kafka.topic.clone(),
            dlq_topic: config.kafka.dlq_topic.clone(),
            registry_url: registry.url.clone(),
            registry_auth: RegistryAuth::of(config),
            // Refused when the configuration was checked, if it cannot be read.
            types: types.map_err(anyhow::Error::msg)?,
        })
    }
}

/// Runs a command to its end.
pub fn run(cli: Cli) -> Result<(), Failure> {
    #[cfg(feature = "failpoints")]
    crate::failpoint::arm()?;
    // Not every command needs every address; a worker needs them all before it touches anything.
    let (config, provenance) = Config::load_partial(cli.config.as_deref(), &cli.sets)?;
    config.require_only(&provenance, cli.command.addresses())?;
    telemetry::init_logging(&config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)?;
    let result = runtime.block_on(dispatch(cli.command, config, &provenance));
    // A blocking call into a client must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Whoever knows one server only would do the wrong thing where the ledger knows of others.
async fn refuse_elsewhere(
    executor: impl sqlx::PgExecutor<'_>,
    topic: &str,
    command: &str,
) -> Result<(), Failure> {
    let found = places::one_elsewhere(executor, topic).await;
    match found.context("reading the ledger (DATABASE_URL)")? {
        None => Ok(()),
        Some((partition, place)) => Err(Failure::Ledger(format!(
            "partition {partition} of {topic} is on Postgres server {place}, which is not configured (postgres.more_urls, \
             postgres.placement): `{command}` has done nothing. See docs/deploy.md"
        ))),
    }
}

async fn dispatch(command: Command, config: Config, provenance: &Provenance) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run::run(args, config).await,
        Command::Migrate(args) => migrate::run_with(&args, &config).await,
        Command::Maintain => maintain::run(&config).await,
        Command::Config(args) => config::run(&args, &config, provenance).map_err(Failure::from),
        Command::Lag(args) => lag::run(args, &config).await,
        Command::Ledger(command) => ledger::run(command, &config).await,
        Command::Rejects(command) => rejects::run(command, &config).await,
        Command::Audit(args) => audit::run(args, &config).await,
        Command::Exports(command) => exports::run(command, &config).await,
        Command::Topics(args) => topics::run(args, &ClientContext::new(&config)?).await,
        Command::Schemas(args) => schemas::run(args, &ClientContext::new(&config)?).await,
        Command::Produce(args) => produce::run(*args, &ClientContext::new(&config)?, &config).await,
        #[cfg(feature = "failpoints")]
        Command::Failpoints => {
            for (name, can_fail) in crate::failpoint::POINTS {
                println!("{name} abort {}delay stop", if *can_fail { "error " } else { "" });
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_do_not_contradict_themselves() {
        super::Cli::command().debug_assert();
    }
}
