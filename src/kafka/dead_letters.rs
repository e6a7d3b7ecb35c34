//! Dead letters: rejected records on their way to the DLQ.
//!
//! 1. A dead letter keeps key, value, headers and timestamp of the record, byte for byte, and says in
//!    added headers where it comes from and why it was rejected.
//! 2. A letter is reported as sent only when the broker has acknowledged it (`acks=all`).
//! 3. A DLQ that is away is waited for; nothing is given up while the partition is ours.
//! 4. A letter that the broker finds too large is cut, with its length and hash in headers.

use std::time::Duration;

use futures::future::BoxFuture;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders, Timestamp};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use crate::config::Config;
use crate::event::Reject;
use crate::failpoint::failpoint;
use crate::outside::DeadLetters;
use crate::record::{Chunk, Record};
use crate::retry::Backoff;
use crate::telemetry::metrics;

/// What is left of a value that the broker finds too large. Larger risks a second refusal (brokers
/// take 1 MiB by default, with headers); smaller loses more of what an operator wants to see.
const TRUNCATED_VALUE_BYTES: usize = 512 << 10;

/// A rejected record, with all that its copy in the DLQ needs.
pub struct DeadLetter {
    pub partition: i32,
    pub offset: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    timestamp: Timestamp,
    headers: Option<OwnedHeaders>,
    pub reject: Reject,
}

impl DeadLetter {
    pub fn new(chunk: &Chunk, record: &Record, reject: Reject) -> Self {
        DeadLetter {
            partition: record.partition,
            offset: record.offset,
            key: chunk.key(record).map(<[u8]>::to_vec),
            value: chunk.value(record).map(<[u8]>::to_vec),
            timestamp: record.timestamp,
            headers: record.headers.as_deref().cloned(),
            reject,
        }
    }

    /// The record's value, as far as it is sent.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    /// The record's own headers, then ours (Kafka Connect's names first, for its tools).
    fn headers(&self, topic: &str) -> OwnedHeaders {
        let headers = self.headers.clone().unwrap_or_default();
        let text = |headers: OwnedHeaders, key: &str, value: &str| {
            headers.insert(Header { key, value: Some(value) })
        };
        let headers = text(headers, "__connect.errors.topic", topic);
        let headers = text(headers, "__connect.errors.partition", &self.partition.to_string());
        let headers = text(headers, "__connect.errors.offset", &self.offset.to_string());
        let headers = text(headers, "__connect.errors.exception.class.name", "feed_worker.Reject");
        let headers = text(headers, "__connect.errors.exception.message", &self.reject.to_string());
        let headers = text(headers, "feed_worker.reject.reason", self.reject.reason.as_str());
        match self.reject.field {
            Some(field) => text(headers, "feed_worker.reject.field", field),
            None => headers,
        }
    }

    /// Cuts the value and says so.
    fn truncate(&mut self) {
        let Some(value) = &mut self.value else { return };
        let hash = Sha256::digest(&*value).iter().map(|b| format!("{b:02x}")).collect::<String>();
        let length = value.len().to_string();
        value.truncate(TRUNCATED_VALUE_BYTES);
        let headers = self.headers.take().unwrap_or_default();
        let headers = headers
            .insert(Header { key: "feed_worker.value.truncated", value: Some("true") })
            .insert(Header { key: "feed_worker.value.length", value: Some(&length) })
            .insert(Header { key: "feed_worker.value.sha256", value: Some(&hash) });
        self.headers = Some(headers);
    }
}

/// The dead-letter topic.
pub struct DeadLetterTopic {
    producer: FutureProducer,
    topic: String,
    dlq_topic: String,
    /// How many partitions the DLQ has, once it is known.
    partitions: OnceCell<i32>,
}

impl DeadLetterTopic {
    /// Creates the producer. Errors: the client's configuration.
    pub fn new(config: &Config) -> Result<Self, KafkaError> {
        let mut client = super::client_config(config);
        client.set("acks", "all");
        client.set("enable.idempotence", "true");
        client.set("compression.type", "lz4");
        client.set("linger.ms", "5");
        // One attempt of ours; the retry above it is not bounded.
        client.set("message.timeout.ms", "10000");
        // Records that were read can be as large as the broker allows; let the broker say no.
        client.set("message.max.bytes", "100000000");
        Ok(DeadLetterTopic {
            producer: client.create()?,
            topic: config.kafka.topic.clone(),
            dlq_topic: config.kafka.dlq_topic.clone(),
            partitions: OnceCell::new(),
        })
    }

    /// An error is fatal for the producer: it will never send again.
    async fn send_until_acknowledged(&self, mut letter: DeadLetter) -> Result<(), KafkaError> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let mut cut = false;
        loop {
            match self.try_send(&letter).await {
                Ok(()) => {
                    metrics::dead_letters_sent(1);
                    return Ok(());
                }
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge)) if !cut => {
                    letter.truncate();
                    cut = true;
                }
                Err(error @ KafkaError::MessageProduction(RDKafkaErrorCode::Fatal)) => return Err(error),
                Err(error) => {
                    metrics::dead_letter_send_failed();
                    tracing::warn!(
                        topic = self.dlq_topic,
                        partition = letter.partition,
                        offset = letter.offset,
                        %error,
                        "a dead letter was not acknowledged: its partition waits, trying again"
                    );
                    backoff.wait().await;
                }
            }
        }
    }

    async fn try_send(&self, letter: &DeadLetter) -> Result<(), KafkaError> {
        // A DLQ that is not known yet is waited for: its partitions say where the letter belongs.
        let Some(partition) = self.partition_of(letter.partition).await else {
            return Err(KafkaError::MessageProduction(RDKafkaErrorCode::UnknownTopicOrPartition));
        };
        let mut record: FutureRecord<'_, [u8], [u8]> =
            FutureRecord::to(&self.dlq_topic).headers(letter.headers(&self.topic)).partition(partition);
        if let Some(key) = &letter.key {
            record = record.key(key);
        }
        if let Some(value) = &letter.value {
            record = record.payload(value);
        }
        if let Some(ms) = letter.timestamp.to_millis() {
            record = record.timestamp(ms);
        }
        failpoint!("dlq.before-send");
        let sent = async {
            let sent = self.producer.send(record, Duration::from_secs(10)).await;
            sent.map(drop).map_err(|(error, _)| error)
        };
        #[cfg(feature = "failpoints")]
        let sent = crate::failpoint::once_begun("dlq.in-flight", sent);
        sent.await?;
        failpoint!("dlq.after-acknowledgement");
        Ok(())
    }

    /// The source partition modulo the DLQ's partitions; none while the DLQ is unknown.
    async fn partition_of(&self, source: i32) -> Option<i32> {
        let count = self.partitions.get_or_try_init(|| async {
            let producer = self.producer.clone();
            let topic = self.dlq_topic.clone();
            let ask = move || producer.client().fetch_metadata(Some(&topic), Duration::from_secs(5));
            let metadata = tokio::task::spawn_blocking(ask).await.map_err(drop)?.map_err(drop)?;
            let count = metadata.topics().first().map_or(0, |t| t.partitions().len());
            i32::try_from(count).ok().filter(|count| *count > 0).ok_or(())
        });
        count.await.ok().map(|count| source.rem_euclid(*count))
    }
}

impl DeadLetters for DeadLetterTopic {
    fn send(&self, letter: DeadLetter) -> BoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async { Ok(self.send_until_acknowledged(letter).await?) })
    }
}
