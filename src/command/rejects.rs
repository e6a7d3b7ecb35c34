//! `feed-worker rejects`: after a flood of bad events.

use super::Failure;
use super::ledger::{connect, log_action};
use crate::config::Config;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Accept the rejects so far: the counts start over, and workers run again.
    Accept {
        /// Why, for whoever asks later.
        #[arg(long)]
        reason: String,
    },
}

pub async fn run(command: Command, config: &Config) -> Result<(), Failure> {
    let Command::Accept { reason } = command;
    let mut accepted = 0;
    // One server after the other: whoever runs this again accepts what is left.
    for server in 0..config.postgres.urls().count() {
        accepted += accept(config, server, &reason).await?;
    }
    println!("rejects of {accepted} partitions of {} are accepted; workers run again", config.kafka.topic);
    Ok(())
}

/// Starts the counts of a server's partitions over; how many had any.
async fn accept(config: &Config, server: usize, reason: &str) -> Result<usize, Failure> {
    let mut tx = connect(config, server).await?;
    let topic = &config.kafka.topic;
    let before: Vec<(i32, i64, i32, i32)> = sqlx::query_as(
        "SELECT partition, reject_run, window_rejects, previous_rejects FROM partition_ledger
         WHERE topic = $1 AND (reject_run > 0 OR window_rejects > 0 OR previous_rejects > 0)
         ORDER BY partition FOR UPDATE",
    )
    .bind(topic)
    .fetch_all(&mut *tx)
    .await
    .map_err(anyhow::Error::from)?;
    sqlx::query(
        "UPDATE partition_ledger SET reject_run = 0, window_records = 0, window_rejects = 0,
             previous_rejects = 0, updated_at = now() WHERE topic = $1",
    )
    .bind(topic)
    .execute(&mut *tx)
    .await
    .map_err(anyhow::Error::from)?;
    let counts = |(partition, run, running, full): &(i32, i64, i32, i32)| serde_json::json!({ "partition": partition, "run": run, "window": running + full });
    let detail =
        serde_json::json!({ "topic": topic, "accepted": before.iter().map(counts).collect::<Vec<_>>() });
    log_action(&mut tx, "rejects accept", reason, detail).await?;
    tx.commit().await.map_err(anyhow::Error::from)?;
    Ok(before.len())
}
