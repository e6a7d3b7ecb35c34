//! Finishing days: `_manifest.json`, then `_SUCCESS`.
//!
//! 1. A day is finished only when the topic has closed it; from then on nothing about it changes.
//! 2. The manifest is a pure function of the ledger: whoever dies in between, another writes the same.
//! 3. Finishing is level-triggered: every closed day without `_SUCCESS` is finished, whoever starts.

use std::sync::Arc;

use bytes::Bytes;

use super::manifest::{Manifest, manifest_key, success_key};
use super::object::{ObjectStore, PutOutcome};
use crate::outside::{Broker, Database};
use crate::row;
use crate::telemetry::metrics;

/// What finishing days needs.
#[derive(Clone)]
pub struct DayFinisher {
    pub store: Arc<dyn ObjectStore>,
    pub database: Arc<dyn Database>,
    pub broker: Arc<dyn Broker>,
    pub topic: String,
    pub prefix: String,
}

impl DayFinisher {
    /// Closes what can be closed and finishes what is closed. Safe for many workers at once. Returns the last day
    /// whose `_SUCCESS` is known, also when the next one cannot be finished: how late that one is must be told just then.
    /// None: the topic is not known, or the ledger did not answer.
    pub async fn run(&self) -> (Option<i32>, anyhow::Result<()>) {
        let mut finished = None;
        let result = self.attempt(&mut finished).await;
        (finished, result)
    }

    async fn attempt(&self, finished: &mut Option<i32>) -> anyhow::Result<()> {
        let Some((closed, success)) = self.database.topic_days().await? else { return Ok(()) };
        *finished = Some(success);
        if self.database.least_closed().await?.is_some_and(|least| least > closed) {
            self.database.close_topic(Box::pin(self.partitions())).await?;
        }
        let Some((closed, success)) = self.database.topic_days().await? else { return Ok(()) };
        *finished = Some(success);
        for day in success + 1..=closed {
            self.finish(day).await?;
            *finished = Some(day);
        }
        Ok(())
    }

    /// The topic's partitions, fresh from the broker.
    async fn partitions(&self) -> Option<Vec<i32>> {
        match self.broker.partitions().await {
            Ok(partitions) if !partitions.is_empty() => Some(partitions),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the brokers do not say which partitions there are: no day is closed"
                );
                None
            }
        }
    }

    async fn finish(&self, day: i32) -> anyhow::Result<()> {
        let files = self.database.files(day, day).await?;
        let gaps = self.database.gaps(day).await?;
        let partitions = self.database.partitions(day).await?;
        let manifest = Manifest::new(&self.topic, day, &partitions, files, gaps);
        let body = Bytes::from(manifest.to_bytes());
        let key = manifest_key(&self.prefix, day);
        let put = self.store.put_if_absent(&key, body, "application/json", &[]);
        if put.await? == PutOutcome::Exists {
            let there = self.store.get(&key).await?.and_then(|there| Manifest::from_bytes(&there).ok());
            // An earlier release may have written it, with its own schema's number.
            let there = there.map(|there| Manifest { schema_version: manifest.schema_version, ..there });
            anyhow::ensure!(
                there.as_ref() == Some(&manifest),
                "{key} is there and is not what the ledger says: an operator has to look \
                 (was Postgres restored? see `feed-worker ledger reconcile`)"
            );
        }
        let key = success_key(&self.prefix, day);
        // Whether it was there already does not matter: it says the same.
        self.store.put_if_absent(&key, Bytes::new(), "application/octet-stream", &[]).await?;
        self.database.finished(day).await?;
        metrics::day_closed();
        tracing::info!(
            day = row::day_text(day),
            files = manifest.files.len(),
            rows = manifest.rows,
            "the day is closed"
        );
        Ok(())
    }
}
