//! `feed-worker exports`: whether the bucket has what the ledger says, and putting back what it lacks.

mod day;
mod rebuild;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sqlx::postgres::{PgConnection, PgPoolOptions};

use self::day::{Day, Outside};
use super::Failure;
use crate::config::Config;
use crate::export::object::S3;
use crate::postgres;
use crate::row::{day_text, parse_day};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Hold the bucket against the ledger and the manifests: objects, sizes, hashes, metadata, marks. Exit code
    /// 2 says that something is missing, wrong or too much.
    Verify {
        /// Only this day.
        #[arg(long, value_parser = day_of, value_name = "YYYY-MM-DD")]
        day: Option<i32>,
        /// Sizes and metadata only: no object is read.
        #[arg(long)]
        quick: bool,
    },
    /// Write a day's missing objects again, from the table, under the same keys; nothing is overwritten.
    Rebuild {
        #[arg(long, value_parser = day_of, value_name = "YYYY-MM-DD")]
        day: i32,
        /// Say what would be written, and write nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

fn day_of(text: &str) -> Result<i32, String> {
    parse_day(text).ok_or_else(|| "a day is YYYY-MM-DD".to_owned())
}

pub async fn run(command: Command, config: &Config) -> Result<(), Failure> {
    super::refuse_several_servers(config, "exports")?;
    let store = S3::connect(&super::run::s3_settings(config)).await;
    let outside = Outside {
        store: Arc::new(store.map_err(|error| anyhow::anyhow!("object store client: {error}"))?),
        topic: config.kafka.topic.clone(),
        prefix: config.s3.prefix.clone(),
        row_group_rows: config.export.row_group_rows,
    };
    let options = postgres::connect_options(config, 0).map_err(anyhow::Error::from)?;
    let options = options.application_name(postgres::COMMAND).options([("statement_timeout", "600000")]);
    let timeout = Duration::from_millis(config.postgres.connect_timeout_ms);
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(timeout).connect_lazy_with(options);
    let connection = pool.acquire().await.map_err(|error| away(&error))?;
    let mut connection = connection.detach();
    super::refuse_elsewhere(&mut connection, &outside.topic, "exports").await?;
    if let Command::Verify { day: Some(day), .. } | Command::Rebuild { day, .. } = command {
        refuse_before_the_beginning(&outside.topic, &mut connection, day).await?;
    }
    match command {
        Command::Verify { day, quick } => verify(&outside, &mut connection, day, quick).await,
        Command::Rebuild { day, dry_run } => rebuild::run(&outside, &mut connection, day, dry_run).await,
    }
}

fn away(error: &sqlx::Error) -> Failure {
    Failure::Deadline(format!("connecting to postgres (DATABASE_URL): {error}"))
}

/// Of a day before the first, the ledger says nothing: it would be called well, or made up.
async fn refuse_before_the_beginning(
    topic: &str,
    connection: &mut PgConnection,
    day: i32,
) -> Result<(), Failure> {
    let first: Option<i32> =
        sqlx::query_scalar(FIRST_DAY).bind(topic).fetch_one(connection).await.context(LEDGER)?;
    match first {
        Some(first) if day >= first => Ok(()),
        Some(first) => Err(Failure::Ledger(format!(
            "{} lies before the ledger of {topic}, which begins on {}",
            day_text(day),
            day_text(first)
        ))),
        None => Err(Failure::Ledger(format!(
            "the ledger has no topic {topic}: is DATABASE_URL that of its workers?"
        ))),
    }
}

const LEDGER: &str = "reading the ledger (DATABASE_URL)";

/// The first day that the ledger has anything to say of. A partition without a first day (1970) says nothing.
const FIRST_DAY: &str = "SELECT least(
         (SELECT min(day) FROM export_files WHERE topic = $1),
         (SELECT min(first_day) FROM partition_ledger WHERE topic = $1 AND first_day > date '1970-01-01'),
         (SELECT closed_day + 1 FROM topic_ledger WHERE topic = $1
          AND NOT EXISTS (SELECT FROM partition_ledger WHERE topic = $1))) - date '1970-01-01'";

async fn verify(
    outside: &Outside,
    connection: &mut PgConnection,
    day: Option<i32>,
    quick: bool,
) -> Result<(), Failure> {
    let days = match day {
        Some(day) => vec![day],
        None => known_days(outside, connection).await?,
    };
    let (mut objects, mut faulty) = (0, 0);
    for day in &days {
        let found = Day::look(outside, connection, *day, quick).await?;
        objects += found.files.len();
        for line in found.faults() {
            faulty += 1;
            println!("{line}");
        }
    }
    let how = if quick { "sizes and metadata" } else { "sizes, metadata and rows" };
    println!("{}: {} days, {objects} objects by {how}: {faulty} faults", outside.topic, days.len());
    if faulty == 0 {
        return Ok(());
    }
    Err(Failure::Differs(format!(
        "{faulty} faults: what is missing comes back by `feed-worker exports rebuild --day D`"
    )))
}

/// From the first day that a manifest names to the last finished or filed one, and whatever day has a folder: a day
/// without rows has a manifest too.
async fn known_days(outside: &Outside, connection: &mut PgConnection) -> Result<Vec<i32>, Failure> {
    let first: Option<i32> = sqlx::query_scalar(FIRST_DAY)
        .bind(&outside.topic)
        .fetch_one(&mut *connection)
        .await
        .context(LEDGER)?;
    let last: Option<i32> = sqlx::query_scalar(
        "SELECT greatest(max(day), (SELECT success_day FROM topic_ledger WHERE topic = $1)) - date '1970-01-01'
         FROM export_files WHERE topic = $1",
    )
    .bind(&outside.topic)
    .fetch_one(connection)
    .await
    .context("reading the ledger's files")?;
    let mut days: std::collections::BTreeSet<i32> = outside.days_with_folder().await?.into_iter().collect();
    if let (Some(first), Some(last)) = (first, last) {
        days.extend(first..=last);
    }
    tracing::debug!(first = first.map(day_text), last = last.map(day_text), "days to look at");
    Ok(days.into_iter().collect())
}
