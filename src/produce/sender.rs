//! Sends generated records by a schedule that does not wait for the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig, ThreadedProducer,
};
use rdkafka::types::RDKafkaErrorCode;

use super::bad::PLANTED_REASON_HEADER;
use super::generator::{Generator, Record};
use super::report::{Deliveries, Sent};
use crate::kafka::{group, security};
use crate::outside::now_ms;

/// How many records, how fast.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// Index of the first event.
    pub first: u64,
    /// None: no limit.
    pub count: Option<u64>,
    /// None: no limit.
    pub duration: Option<Duration>,
    /// Events per second by an open-loop schedule: a broker that is slow does not make the schedule
    /// wait, and the waiting counts as latency. None: as fast as the broker takes them.
    pub events_per_second: Option<f64>,
    /// The schedule waits for the client's queue, and latency counts from the moment a record got into it.
    /// Comparable to what other tools measure; it hides a broker that stalls.
    pub is_closed_loop: bool,
    /// What is meant to be sent before this is delivered, but not measured.
    pub warm_up: Duration,
    /// Records carry [`CANARY_HEADER`]: wherever one turns up, it is recognised.
    pub is_canary: bool,
}

/// Header of a record that only measures.
pub const CANARY_HEADER: &str = "x-canary";

const METADATA_TIMEOUT: Duration = Duration::from_secs(15);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(90);
const PURGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Invariants of a producer of this topic, set last. Records are lost or doubled without them.
pub fn producer_config(client: &ClientConfig, linger_ms: u32) -> ClientConfig {
    let mut config = client.clone();
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", linger_ms.to_string())
        .set("compression.type", "lz4")
        // As the Java client places keys: a user's records lie in one partition, whoever sends them.
        .set("partitioner", "murmur2_random")
        // Counted before compression; planted records of the kind value_too_large are this large.
        .set("message.max.bytes", "2000000")
        .set("message.timeout.ms", "60000");
    config
}

/// What a batch takes by default (`batch.size`).
const BATCH_BYTES: u64 = 1_000_000;

/// How long a topic may take to tell its limit. Longer holds a run up where it cannot; shorter gives up a busy broker.
const LIMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// What the topic takes in one batch. None: the broker does not tell.
pub async fn batch_bytes_max(client: &ClientConfig, topic: &str) -> Option<u64> {
    match group::batch_bytes_max(client, topic, LIMIT_TIMEOUT).await {
        Ok(bytes_max) => Some(bytes_max),
        Err(error) => {
            tracing::debug!(
                error = format!("{error:#}"),
                topic,
                "the topic's max.message.bytes is not known"
            );
            None
        }
    }
}

/// Has batches made that the topic takes: a broker refuses one above `max.message.bytes`, though it would take each record of it.
pub fn fit_batches(producer: &mut ClientConfig, bytes_max: Option<u64>) {
    if let Some(bytes_max) = bytes_max {
        let wanted = producer.get("batch.size").and_then(|size| size.parse().ok()).unwrap_or(BATCH_BYTES);
        producer.set("batch.size", wanted.min(bytes_max).max(1).to_string());
    }
}

/// Sends until the pace is done or `stop` is set, then waits for the outstanding deliveries.
/// Blocks: call it on a thread of its own.
pub fn send(
    config: &ClientConfig,
    topic: &str,
    generator: &Generator,
    pace: Pace,
    deliveries: &Arc<Deliveries>,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let context = DeliveryContext { deliveries: Arc::clone(deliveries) };
    let producer: ThreadedProducer<DeliveryContext> =
        config.create_with_context(context).context("starting the Kafka producer")?;
    require_topic(&producer, topic)?;
    let started = Instant::now();
    let mut record = Record::default();
    for nth in 0.. {
        let is_done = pace.count.is_some_and(|count| nth >= count);
        if is_done || stop.load(Ordering::Relaxed) {
            break;
        }
        let intended = match pace.events_per_second {
            Some(rate) => started + Duration::from_secs_f64(nth as f64 / rate),
            None => Instant::now(),
        };
        if pace.duration.is_some_and(|limit| intended - started >= limit) {
            break;
        }
        wait_until(intended, stop);
        let intended = if pace.is_closed_loop { Instant::now() } else { intended };
        generator.write(pace.first + nth, now_ms(), &mut record);
        let sent = Sent {
            intended,
            is_warm_up: intended - started < pace.warm_up,
            encoding: record.encoding(),
            planted: record.planted,
        };
        let header = match record.planted {
            Some(planted) => Some((PLANTED_REASON_HEADER, planted.as_str())),
            None => pace.is_canary.then_some((CANARY_HEADER, "1")),
        };
        send_one(&producer, topic, &record, header, sent, stop)?;
    }
    if producer.flush(FLUSH_TIMEOUT).is_err() {
        let count = producer.in_flight_count();
        // So that each of them is reported as a failure, and counts in the percentiles.
        producer.purge(PurgeConfig::default().queue().inflight());
        let _ = producer.flush(PURGE_TIMEOUT);
        bail!("{count} records were not acknowledged in {FLUSH_TIMEOUT:?}");
    }
    Ok(())
}

struct DeliveryContext {
    deliveries: Arc<Deliveries>,
}

impl ClientContext for DeliveryContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn error(&self, error: KafkaError, reason: &str) {
        // Whoever waits for `produce` is told what it waits for.
        security::tell(&error, reason);
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        crate::kafka::tokens::current()
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        match result {
            Ok(message) => self.deliveries.record_delivered(
                &sent,
                message.partition(),
                message.offset(),
                message.payload_len(),
            ),
            Err((error, _)) => self.deliveries.record_failed(&sent, error.to_string()),
        }
    }
}

fn require_topic(producer: &ThreadedProducer<DeliveryContext>, topic: &str) -> anyhow::Result<()> {
    let metadata = producer
        .client()
        .fetch_metadata(Some(topic), METADATA_TIMEOUT)
        .with_context(|| format!("asking the broker for topic {topic}: is it reachable?"))?;
    match metadata.topics().first() {
        Some(found) if found.error().is_none() && !found.partitions().is_empty() => Ok(()),
        _ => bail!("there is no topic {topic}: create it with `feed-worker topics apply`"),
    }
}

/// Hands a record to librdkafka; while its queue is full the schedule goes on without it.
fn send_one(
    producer: &ThreadedProducer<DeliveryContext>,
    topic: &str,
    record: &Record,
    header: Option<(&str, &str)>,
    sent: Sent,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut message =
        BaseRecord::<str, [u8], Box<Sent>>::with_opaque_to(topic, Box::new(sent)).key(record.key.as_str());
    if let Some(value) = record.value() {
        message = message.payload(value);
    }
    if let Some((key, value)) = header {
        let header = Header { key, value: Some(value) };
        message = message.headers(OwnedHeaders::new_with_capacity(1).insert(header));
    }
    loop {
        match producer.send(message) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                message = returned;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err((error, _)) => {
                return Err(error).with_context(|| format!("sending a record to {topic}"));
            }
        }
    }
}

/// Sleeps in pieces, so that a stop is noticed at low rates too; and never for less than [`TICK`], so that a
/// schedule of many records a tick wakes once a tick. What a tick holds back counts as latency.
pub(super) fn wait_until(intended: Instant, stop: &AtomicBool) {
    const PIECE: Duration = Duration::from_millis(100);
    /// Shorter, and waking up costs more CPU than producing; longer, and it shows in p50.
    const TICK: Duration = Duration::from_micros(500);
    loop {
        let left = intended.saturating_duration_since(Instant::now());
        if left.is_zero() || stop.load(Ordering::Relaxed) {
            return;
        }
        std::thread::sleep(left.clamp(TICK, PIECE));
    }
}
