//! One-off reads with a consumer of their own: they neither join the group nor move its offsets.
//!
//! A read that answers `End` was issued after the call began, so whatever the broker appends later is
//! later than the call. "Seen empty" rests on that.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::Quiet;
use super::security::wants_tokens;
use crate::record::Chunk;

/// What stands at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The first record at or after it: its offset and timestamp (ms).
    Record { offset: i64, timestamp_ms: i64 },
    /// Nothing: the partition ends there.
    End,
}

/// How long a client is polled for its token, once there is one: longer only when there is none to be had.
const TOKEN_TIMEOUT: Duration = Duration::from_millis(200);

/// A consumer that can be asked at once. It fetches its token only while it is polled: a question that is asked
/// without a poll would wait in vain.
pub fn connect(config: &ClientConfig) -> Result<BaseConsumer<Quiet>, KafkaError> {
    let consumer: BaseConsumer<Quiet> = config.create_with_context(Quiet::default())?;
    if wants_tokens(config) {
        let until = Instant::now() + TOKEN_TIMEOUT;
        while !consumer.context().has_token.load(Ordering::Relaxed) && Instant::now() < until {
            let _ = consumer.poll(Duration::from_millis(10));
        }
    }
    Ok(consumer)
}

/// Lets the client say what it has to say: it does so only while it is polled.
fn tell(consumer: &BaseConsumer<Quiet>, timeout: Duration) {
    let until = Instant::now() + timeout;
    while Instant::now() < until {
        let _ = consumer.poll(Duration::from_millis(20));
    }
}

/// The answer to a question that was asked without a poll. If there is none, the log says why.
fn told<T>(consumer: &BaseConsumer<Quiet>, answer: Result<T, KafkaError>) -> Result<T, KafkaError> {
    if answer.is_err() {
        tell(consumer, Duration::from_millis(100));
    }
    answer
}

/// Reads what stands at each (partition, offset). A partition that did not answer in time is left
/// out. Blocks; errors are the client's.
pub fn read_at(
    config: &ClientConfig,
    topic: &str,
    wanted: &[(i32, i64)],
    timeout: Duration,
) -> Result<BTreeMap<i32, Found>, KafkaError> {
    let record = |message: &BorrowedMessage<'_>| {
        let timestamp_ms = message.timestamp().to_millis().unwrap_or(0);
        Found::Record { offset: message.offset(), timestamp_ms }
    };
    let found = first_records(&reader(config)?, topic, wanted, Instant::now() + timeout, record)?;
    Ok(found.into_iter().map(|(partition, record)| (partition, record.unwrap_or(Found::End))).collect())
}

/// The fingerprint of the record at each (partition, offset); none: the broker no longer has it. A partition that ends
/// before, or did not answer in time, is left out. Blocks; errors are the client's.
pub fn fingerprints_at(
    config: &ClientConfig,
    topic: &str,
    wanted: &[(i32, i64)],
    timeout: Duration,
) -> Result<BTreeMap<i32, Option<i64>>, KafkaError> {
    let until = Instant::now() + timeout;
    // A record that was damaged on its way is not another record. (Who only asks whether one is there does not mind.)
    let mut config = config.clone();
    config.set("check.crcs", "true");
    let consumer = reader(&config)?;
    let mut found = BTreeMap::new();
    let mut there = Vec::new();
    for (partition, offset) in wanted {
        // A read of what is gone would have no answer.
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match consumer.fetch_watermarks(topic, *partition, left) {
            Ok((low, _)) if *offset < low => drop(found.insert(*partition, None)),
            Ok((_, high)) if *offset < high => there.push((*partition, *offset)),
            Ok(_) => {}
            Err(error) => tracing::debug!(partition, %error, "cannot ask for the offsets"),
        }
    }
    let records = first_records(&consumer, topic, &there, until, chunk_of)?;
    for (partition, offset) in there {
        if let Some(Some(chunk)) = records.get(&partition) {
            let record = chunk.records.first().filter(|record| record.offset == offset);
            found.insert(partition, record.map(|record| chunk.fingerprint(record)));
        }
    }
    Ok(found)
}

/// The record, whole.
fn chunk_of(message: &BorrowedMessage<'_>) -> Chunk {
    let mut chunk = Chunk::new(0);
    chunk.push(message);
    chunk
}

/// What every read of this module needs: nothing is committed, and what is gone is an error.
fn one_off(config: &ClientConfig) -> ClientConfig {
    let mut config = config.clone();
    config.set("enable.auto.commit", "false");
    config.set("auto.offset.reset", "error");
    if config.get("group.id").is_none() {
        config.set("group.id", "feed-worker-probe");
    }
    config
}

/// A consumer that reads one record of each partition.
fn reader(config: &ClientConfig) -> Result<BaseConsumer<Quiet>, KafkaError> {
    let mut config = one_off(config);
    config.set("enable.partition.eof", "true");
    // One record of each partition is wanted, not a prefetch of it. Smaller than a usual batch, the
    // client would have to ask twice for each partition, with a pause of a second in between.
    config.set("fetch.message.max.bytes", "65536");
    config.set("fetch.queue.backoff.ms", "10");
    connect(&config)
}

/// The first record at or after each (partition, offset), as `of` has it; none: the partition ends there.
fn first_records<T>(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    wanted: &[(i32, i64)],
    until: Instant,
    of: impl Fn(&BorrowedMessage<'_>) -> T,
) -> Result<BTreeMap<i32, Option<T>>, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in wanted {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    consumer.assign(&list)?;
    let mut found = BTreeMap::new();
    while found.len() < wanted.len() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match consumer.poll(left.min(Duration::from_millis(100))) {
            Some(Ok(message)) => {
                if let Entry::Vacant(place) = found.entry(message.partition()) {
                    place.insert(Some(of(&message)));
                    // The others may take their time: nothing more of this one is wanted meanwhile.
                    let mut answered = TopicPartitionList::new();
                    answered.add_partition(topic, message.partition());
                    consumer.pause(&answered)?;
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                found.entry(partition).or_insert(None);
            }
            // Anything else: the partition stays without an answer, and the caller asks again.
            Some(Err(_)) | None => {}
        }
    }
    consumer.unassign()?;
    Ok(found)
}

/// The partitions of a topic, fresh from the broker, sorted. Blocks.
pub fn partitions(config: &ClientConfig, topic: &str, timeout: Duration) -> Result<Vec<i32>, KafkaError> {
    partitions_by(&connect(config)?, topic, timeout)
}

/// As [`partitions`], by a client that is there.
pub(super) fn partitions_by(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    timeout: Duration,
) -> Result<Vec<i32>, KafkaError> {
    let metadata = told(consumer, consumer.fetch_metadata(Some(topic), timeout))?;
    let mut partitions: Vec<i32> = metadata
        .topics()
        .iter()
        .filter(|t| t.name() == topic)
        .flat_map(|t| t.partitions().iter().map(rdkafka::metadata::MetadataPartition::id))
        .collect();
    partitions.sort_unstable();
    Ok(partitions)
}

/// The cluster's id. Blocks.
pub fn cluster_id(config: &ClientConfig, timeout: Duration) -> Result<Option<String>, KafkaError> {
    let consumer = connect(config)?;
    told(&consumer, consumer.fetch_metadata(None, timeout))?;
    Ok(consumer.client().fetch_cluster_id(timeout))
}

/// The first offset that the broker has of each partition, and the one after the last. Blocks.
pub fn bounds(
    config: &ClientConfig,
    topic: &str,
    partitions: &[i32],
    timeout: Duration,
) -> Result<Vec<(i32, i64, i64)>, KafkaError> {
    let consumer = connect(config)?;
    let bounds = |partition: &i32| {
        let (low, high) = told(&consumer, consumer.fetch_watermarks(topic, *partition, timeout))?;
        Ok((*partition, low, high))
    };
    partitions.iter().map(bounds).collect()
}

/// Reads the one record at an offset, whole; none when the broker no longer has it. Blocks.
pub fn record_at(
    config: &ClientConfig,
    topic: &str,
    (partition, offset): (i32, i64),
    timeout: Duration,
) -> Result<Option<Chunk>, KafkaError> {
    let consumer = connect(&one_off(config))?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    consumer.assign(&list)?;
    let until = Instant::now() + timeout;
    while Instant::now() < until {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) if message.offset() == offset => return Ok(Some(chunk_of(&message))),
            Some(Ok(_)) => return Ok(None),
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange,
            ))) => return Ok(None),
            Some(Err(error)) => return Err(error),
            None => {}
        }
    }
    Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut))
}
