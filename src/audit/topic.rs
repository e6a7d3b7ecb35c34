//! Topics as the audit reads them: with consumers that belong to no group, up to an offset that was the end when
//! it was asked for.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message};
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use super::Trouble;
use crate::kafka::probe::connect;

/// Bytes of records that wait to be looked at; three batches may.
const BATCH_BYTES_MAX: usize = 1 << 20;
const BATCHES_MAX: usize = 2;
/// Without a record for so long the brokers count as away.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const ASK_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    /// The last header of a name, as text.
    pub fn header(&self, name: &str) -> Option<String> {
        let found = self.headers.iter().rev().find(|(key, _)| key == name)?;
        Some(String::from_utf8_lossy(found.1.as_deref().unwrap_or_default()).into_owned())
    }
}

#[derive(Clone)]
pub struct Topics {
    config: ClientConfig,
}

impl Topics {
    pub fn new(mut config: ClientConfig) -> Self {
        for (key, value) in [
            ("group.id", "feed-worker-audit"),
            ("enable.auto.commit", "false"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            ("queued.max.messages.kbytes", "16384"),
            ("fetch.queue.backoff.ms", "10"),
        ] {
            config.set(key, value);
        }
        Topics { config }
    }

    /// The first offset kept and the end of every partition.
    pub async fn bounds(&self, topic: &str) -> Result<Vec<(i32, i64, i64)>, Trouble> {
        let (config, topic) = (self.config.clone(), topic.to_owned());
        blocking(move || {
            let consumer = connect(&config).map_err(trouble)?;
            let metadata = consumer.fetch_metadata(Some(&topic), ASK_TIMEOUT).map_err(trouble)?;
            let mut numbers: Vec<i32> = metadata
                .topics()
                .iter()
                .flat_map(MetadataTopic::partitions)
                .map(MetadataPartition::id)
                .collect();
            if numbers.is_empty() {
                return Err(Trouble::Refused(format!("the brokers have no topic {topic}")));
            }
            numbers.sort_unstable();
            let bounds = |number: i32| {
                let (low, high) = consumer.fetch_watermarks(&topic, number, ASK_TIMEOUT).map_err(trouble)?;
                Ok((number, low, high))
            };
            numbers.into_iter().map(bounds).collect()
        })
        .await
    }

    /// The group's committed offsets.
    pub async fn committed(
        &self,
        topic: &str,
        group: &str,
        numbers: &[i32],
    ) -> Result<Vec<(i32, i64)>, Trouble> {
        let (mut config, topic, numbers) = (self.config.clone(), topic.to_owned(), numbers.to_vec());
        config.set("group.id", group);
        blocking(move || {
            let consumer = connect(&config).map_err(trouble)?;
            let mut list = TopicPartitionList::new();
            for number in numbers {
                list.add_partition(&topic, number);
            }
            let found = consumer.committed_offsets(list, ASK_TIMEOUT).map_err(trouble)?;
            let offset =
                |entry: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match entry.offset() {
                    Offset::Offset(offset) => Some((entry.partition(), offset)),
                    _ => None,
                };
            Ok(found.elements().into_iter().filter_map(offset).collect())
        })
        .await
    }

    /// The records of `[from, upto)`, in batches.
    pub fn records(&self, topic: &str, partition: i32, from: i64, upto: i64) -> Records {
        let (send, receive) = mpsc::channel(BATCHES_MAX);
        let (config, topic) = (self.config.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || {
            if let Err(trouble) = read(&config, &topic, partition, (from, upto), &send) {
                // Nobody listens any more: then nobody asks either.
                let _ = send.blocking_send(Err(trouble));
            }
        });
        Records { receive }
    }
}

pub struct Records {
    receive: mpsc::Receiver<Result<Vec<Record>, Trouble>>,
}

impl Records {
    /// The next records; none at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Record>>, Trouble> {
        self.receive.recv().await.transpose()
    }
}

fn read(
    config: &ClientConfig,
    topic: &str,
    partition: i32,
    (from, upto): (i64, i64),
    send: &mpsc::Sender<Result<Vec<Record>, Trouble>>,
) -> Result<(), Trouble> {
    if from >= upto {
        return Ok(());
    }
    let consumer = connect(config).map_err(trouble)?;
    let assign = |offset: i64| -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        consumer.assign(&list)
    };
    assign(from).map_err(trouble)?;
    let (mut batch, mut bytes, mut heard) = (Vec::new(), 0, Instant::now());
    let mut end = false;
    while !end {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                heard = Instant::now();
                end = message.offset() + 1 >= upto;
                if message.offset() < upto {
                    bytes += message.payload_len() + message.key_len() + 100;
                    batch.push(record(&message));
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => end = true,
            // Retention was faster: what is left begins later. The gap in the offsets says it.
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange,
            ))) => {
                let (low, _) = consumer.fetch_watermarks(topic, partition, ASK_TIMEOUT).map_err(trouble)?;
                if low >= upto {
                    return Ok(());
                }
                assign(low).map_err(trouble)?;
            }
            Some(Err(error)) if heard.elapsed() > SILENCE_MAX => return Err(trouble(error)),
            None if heard.elapsed() > SILENCE_MAX => {
                return Err(Trouble::Away(format!("Kafka: {topic}/{partition} gives no record")));
            }
            Some(Err(_)) | None => {}
        }
        if !batch.is_empty() && (end || bytes >= BATCH_BYTES_MAX) {
            bytes = 0;
            if send.blocking_send(Ok(std::mem::take(&mut batch))).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn record(message: &rdkafka::message::BorrowedMessage<'_>) -> Record {
    let headers = message.headers().map(|headers| {
        headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
    });
    Record {
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
    }
}

async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    match tokio::task::spawn_blocking(ask).await {
        Ok(answer) => answer,
        Err(error) => Err(Trouble::Broken(error.to_string())),
    }
}

fn trouble(error: KafkaError) -> Trouble {
    match &error {
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => {
            Trouble::Broken(format!("Kafka: {error}"))
        }
        _ => match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                Trouble::Refused(format!("Kafka: {error}"))
            }
            _ => Trouble::Away(format!("Kafka: {error}")),
        },
    }
}
