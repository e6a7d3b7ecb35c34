//! `feed-worker maintain`: what somebody with the right to change tables does once a day.

use super::Failure;
use crate::config::Config;
use crate::postgres::maintain;

/// Runs all of it. Safe to run twice at once, and at any time.
pub async fn run(config: &Config) -> Result<(), Failure> {
    let done = maintain::run(config).await?;
    tracing::info!(
        created = done.created,
        moved_rows = done.moved_rows,
        dropped = done.dropped,
        "the day partitions are in order"
    );
    Ok(())
}
