//! Dead letters: rejected records on their way to the DLQ.
//!
//! 1. A dead letter keeps key, value, headers and timestamp of the record, byte for byte, and says in
//!    added headers where it comes from and why it was rejected.
//! 2. A letter is reported as sent only when the broker has acknowledged it (`acks=all`).
//! 3. A DLQ that is away is waited for; nothing is given up while the partition is ours.
//! 4. A letter that the broker finds too large, alone, is cut until it fits; headers say how long the whole was, and its
//!    hash.

use std::time::Duration;

use futures::future::BoxFuture;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, OwnedHeaders, Timestamp};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use super::Quiet;
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
/// What is smaller is not cut any further: a DLQ that does not even take this is not set up right.
const CUT_BYTES_MIN: usize = 256;

/// A rejected record, with all that its copy in the DLQ needs.
pub struct DeadLetter {
    pub partition: i32,
    pub offset: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    timestamp: Timestamp,
    headers: Option<OwnedHeaders>,
    schema_id: Option<u32>,
    cut: Cut,
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
            schema_id: schema_id(chunk.value(record)),
            cut: Cut::default(),
            reject,
        }
    }

    /// The record's value, as far as it is sent.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    /// What it takes of memory on its way: once here, and once with the client.
    pub fn size_bytes(&self) -> usize {
        let part = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        let headers = self.headers.as_ref().map_or(0, header_bytes);
        2 * (size_of::<Self>() + part(&self.key) + part(&self.value) + headers)
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
        let headers = match self.reject.field {
            Some(field) => text(headers, "feed_worker.reject.field", field),
            None => headers,
        };
        let headers = match self.schema_id {
            Some(id) => text(headers, "feed_worker.schema.id", &id.to_string()),
            None => headers,
        };
        self.cut.headers().iter().fold(headers, |headers, (key, value)| text(headers, key, value))
    }

    /// Makes the letter smaller and says so; false if there is nothing left to cut. What is largest goes
    /// first: the record is found again by its coordinates.
    fn cut(&mut self) -> bool {
        let own = self.headers.as_ref().map_or(0, header_bytes);
        let key = self.key.as_ref().map_or(0, Vec::len);
        let value = self.value.as_ref().map_or(0, Vec::len);
        let largest = own.max(key).max(value);
        if largest < CUT_BYTES_MIN {
            return false;
        }
        if largest == own {
            self.cut.headers = self.headers.take().map(|headers| headers.count());
        } else if largest == key {
            cut_to_half(&mut self.key, &mut self.cut.key);
        } else {
            cut_to_half(&mut self.value, &mut self.cut.value);
        }
        true
    }
}

/// What was cut off a letter.
#[derive(Debug, Default)]
struct Cut {
    value: Option<Whole>,
    key: Option<Whole>,
    /// How many headers the record had.
    headers: Option<usize>,
}

/// What something was before it was cut.
#[derive(Debug)]
struct Whole {
    bytes: usize,
    sha256: String,
}

impl Cut {
    fn headers(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for (name, whole) in [("value", &self.value), ("key", &self.key)] {
            let Some(whole) = whole else { continue };
            found.push((format!("feed_worker.{name}.truncated"), "true".to_owned()));
            found.push((format!("feed_worker.{name}.length"), whole.bytes.to_string()));
            found.push((format!("feed_worker.{name}.sha256"), whole.sha256.clone()));
        }
        if let Some(count) = self.headers {
            found.push(("feed_worker.headers.dropped".to_owned(), count.to_string()));
        }
        found
    }
}

/// Keeps a beginning: at first as much as a broker with default limits takes, then half.
fn cut_to_half(part: &mut Option<Vec<u8>>, whole: &mut Option<Whole>) {
    let Some(bytes) = part else { return };
    whole.get_or_insert_with(|| Whole {
        bytes: bytes.len(),
        sha256: Sha256::digest(&*bytes).iter().map(|b| format!("{b:02x}")).collect(),
    });
    bytes.truncate((bytes.len() / 2).min(TRUNCATED_VALUE_BYTES));
    bytes.shrink_to_fit();
}

fn header_bytes(headers: &OwnedHeaders) -> usize {
    headers.iter().map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len)).sum()
}

/// The id of a value's writer schema, if its first bytes are the Confluent framing.
fn schema_id(value: Option<&[u8]>) -> Option<u32> {
    match value? {
        [0, a, b, c, d, ..] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

/// The dead-letter topic.
pub struct DeadLetterTopic {
    producer: FutureProducer<Quiet>,
    /// Sends each letter in a batch of its own; made when it is first needed.
    singly: OnceCell<FutureProducer<Quiet>>,
    client: ClientConfig,
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
            producer: client.create_with_context(Quiet::default())?,
            singly: OnceCell::new(),
            client,
            topic: config.kafka.topic.clone(),
            dlq_topic: config.kafka.dlq_topic.clone(),
            partitions: OnceCell::new(),
        })
    }

    /// An error is fatal for the producer: it will never send again.
    async fn send_until_acknowledged(&self, mut letter: DeadLetter) -> Result<(), KafkaError> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let mut alone = false;
        loop {
            match self.try_send(&letter, alone).await {
                Ok(()) => {
                    metrics::dead_letters_sent(1);
                    return Ok(());
                }
                // The limit is that of a batch, and what it says of one it says of every letter in it.
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge)) if !alone => {
                    alone = true;
                }
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge)) if letter.cut() => {
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

    async fn producer(&self, alone: bool) -> Result<&FutureProducer<Quiet>, KafkaError> {
        if !alone {
            return Ok(&self.producer);
        }
        let create = async {
            self.client.clone().set("batch.num.messages", "1").create_with_context(Quiet::default())
        };
        self.singly.get_or_try_init(|| create).await
    }

    async fn try_send(&self, letter: &DeadLetter, alone: bool) -> Result<(), KafkaError> {
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
            let sent = self.producer(alone).await?.send(record, Duration::from_secs(10)).await;
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
