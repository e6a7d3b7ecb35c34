//! Finishing days: `_manifest.json`, then `_SUCCESS`.
//!
//! 1. A day is finished only when the topic has closed it; from then on nothing about it changes.
//! 2. The manifest is a pure function of the ledger: whoever dies in between, another writes the same.
//! 3. Finishing is level-triggered: every closed day without `_SUCCESS` is finished, whoever starts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::ClientConfig;
use sqlx::PgPool;

use super::manifest::{Manifest, manifest_key, success_key};
use super::object::{ObjectStore, PutOutcome};
use crate::kafka::probe;
use crate::postgres::days;
use crate::row;
use crate::telemetry::metrics;

/// What finishing days needs.
#[derive(Clone)]
pub struct DayFinisher {
    pub store: Arc<dyn ObjectStore>,
    pub pool: PgPool,
    pub kafka: ClientConfig,
    pub topic: String,
    pub prefix: String,
}

impl DayFinisher {
    /// Closes what can be closed and finishes what is closed. Safe for many workers at once.
    pub async fn run(&self) -> anyhow::Result<()> {
        let Some((closed, _)) = days::topic_days(&self.pool, &self.topic).await? else {
            return Ok(());
        };
        if days::least_closed(&self.pool, &self.topic).await?.is_some_and(|least| least > closed) {
            days::close_topic(&self.pool, &self.topic, || self.partitions()).await?;
        }
        let Some((closed, success)) = days::topic_days(&self.pool, &self.topic).await? else {
            return Ok(());
        };
        for day in success + 1..=closed {
            self.finish(day).await?;
        }
        Ok(())
    }

    /// The topic's partitions, fresh from the broker.
    async fn partitions(&self) -> Option<Vec<i32>> {
        let (config, topic) = (self.kafka.clone(), self.topic.clone());
        let ask = move || probe::partitions(&config, &topic, Duration::from_secs(3));
        match tokio::task::spawn_blocking(ask).await {
            Ok(Ok(partitions)) if !partitions.is_empty() => Some(partitions),
            Ok(Ok(_)) | Err(_) => None,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the brokers do not say which partitions there are: no day is closed");
                None
            }
        }
    }

    async fn finish(&self, day: i32) -> anyhow::Result<()> {
        let files = days::files(&self.pool, &self.topic, day, day).await?;
        let gaps = days::gaps(&self.pool, &self.topic, day).await?;
        let partitions = days::partitions(&self.pool, &self.topic, day).await?;
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
        days::finished(&self.pool, &self.topic, day).await?;
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
