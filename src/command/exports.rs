//! `feed-worker exports`: whether the bucket has what the ledger says, and putting back what it lacks.

mod day;
mod ledgers;
mod rebuild;

use std::sync::Arc;

use self::day::{Day, Outside};
use self::ledgers::Ledgers;
use super::Failure;
use crate::config::Config;
use crate::export::object::S3;
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
    let store = S3::connect(&super::run::s3_settings(config)).await;
    let outside = Outside {
        store: Arc::new(store.map_err(|error| anyhow::anyhow!("object store client: {error}"))?),
        topic: config.kafka.topic.clone(),
        prefix: config.s3.prefix.clone(),
        row_group_rows: config.export.row_group_rows,
    };
    let mut ledgers = Ledgers::open(config).await?;
    if let Command::Verify { day: Some(day), .. } | Command::Rebuild { day, .. } = command {
        refuse_before_the_beginning(&outside.topic, &mut ledgers, day).await?;
    }
    match command {
        Command::Verify { day, quick } => verify(&outside, &mut ledgers, day, quick).await,
        Command::Rebuild { day, dry_run } => rebuild::run(&outside, &mut ledgers, day, dry_run).await,
    }
}

/// Of a day before the first, the ledger says nothing: it would be called well, or made up.
async fn refuse_before_the_beginning(topic: &str, ledgers: &mut Ledgers, day: i32) -> Result<(), Failure> {
    match ledgers.first_day().await? {
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
    ledgers: &mut Ledgers,
    day: Option<i32>,
    quick: bool,
) -> Result<(), Failure> {
    let days = match day {
        Some(day) => vec![day],
        None => known_days(outside, ledgers).await?,
    };
    let (mut objects, mut faulty) = (0, 0);
    for day in &days {
        let found = Day::look(outside, ledgers, *day, quick).await?;
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
async fn known_days(outside: &Outside, ledgers: &mut Ledgers) -> Result<Vec<i32>, Failure> {
    let (first, last) = (ledgers.first_day().await?, ledgers.last_day().await?);
    let mut days: std::collections::BTreeSet<i32> = outside.days_with_folder().await?.into_iter().collect();
    if let (Some(first), Some(last)) = (first, last) {
        days.extend(first..=last);
    }
    tracing::debug!(first = first.map(day_text), last = last.map(day_text), "days to look at");
    Ok(days.into_iter().collect())
}
