//! The brokers, asked beside the group's consumer: one-off reads, each on a thread that may block.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use super::group;
use super::probe::{self, Found};
use crate::config::Config;
use crate::outside::{Broker, BrokerFuture};
use crate::record::Chunk;

/// How long the brokers may take to say which partitions there are. The topic's row is locked
/// meanwhile: longer holds up who inserts partitions; shorter fails on a slow connection.
const METADATA_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one partition's bounds, or what stands at some offsets, may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one whole record may take: it may be large.
const RECORD_TIMEOUT: Duration = Duration::from_secs(10);

/// The brokers of one topic.
#[derive(Clone)]
pub struct Brokers {
    client: ClientConfig,
    consumer: ClientConfig,
    topic: String,
    group: String,
    /// What the configuration says of it.
    retention_ms: Option<u64>,
}

impl Brokers {
    pub fn new(config: &Config) -> Self {
        Brokers {
            client: super::client_config(config),
            consumer: super::consumer_config(config),
            topic: config.kafka.topic.clone(),
            group: config.kafka.group_id.clone(),
            retention_ms: config.kafka.retention_ms,
        }
    }

    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(Brokers) -> Result<T, KafkaError> + Send + 'static,
    ) -> BrokerFuture<'_, T> {
        let brokers = self.clone();
        let answer = tokio::task::spawn_blocking(move || question(brokers));
        Box::pin(async { Ok(answer.await??) })
    }
}

impl Broker for Brokers {
    fn partitions(&self) -> BrokerFuture<'_, Vec<i32>> {
        self.ask(|b| probe::partitions(&b.client, &b.topic, METADATA_TIMEOUT))
    }

    fn bounds<'a>(&'a self, partitions: &'a [i32]) -> BrokerFuture<'a, Vec<(i32, i64, i64)>> {
        let partitions = partitions.to_vec();
        self.ask(move |b| probe::bounds(&b.client, &b.topic, &partitions, READ_TIMEOUT))
    }

    fn read_at<'a>(&'a self, wanted: &'a [(i32, i64)]) -> BrokerFuture<'a, BTreeMap<i32, Found>> {
        let wanted = wanted.to_vec();
        self.ask(move |b| probe::read_at(&b.client, &b.topic, &wanted, READ_TIMEOUT))
    }

    fn fingerprints_at<'a>(
        &'a self,
        wanted: &'a [(i32, i64)],
    ) -> BrokerFuture<'a, BTreeMap<i32, Option<i64>>> {
        let wanted = wanted.to_vec();
        self.ask(move |b| probe::fingerprints_at(&b.client, &b.topic, &wanted, READ_TIMEOUT))
    }

    fn unowned(&self) -> BrokerFuture<'_, Option<Vec<i32>>> {
        self.ask(|b| group::unowned(&b.client, &b.topic, &b.group, METADATA_TIMEOUT))
    }

    fn retention_ms(&self) -> BrokerFuture<'_, Option<u64>> {
        match self.retention_ms {
            Some(retention_ms) => Box::pin(async move { Ok(Some(retention_ms)) }),
            None => Box::pin(group::retention_ms(&self.client, &self.topic, METADATA_TIMEOUT)),
        }
    }

    fn record_at(&self, partition: i32, offset: i64) -> BrokerFuture<'_, Option<Chunk>> {
        self.ask(move |b| probe::record_at(&b.consumer, &b.topic, (partition, offset), RECORD_TIMEOUT))
    }
}
