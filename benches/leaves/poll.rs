//! The client alone: reads a topic from its beginning with the worker's own settings, and drops every record.

use std::time::{Duration, Instant};

use feed_worker::config::Config;
use feed_worker::kafka::{consumer_config, probe};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// Without a record for so long there are not as many as were asked for.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Prints records, the bytes of keys and values, and the seconds from the first record to the last. The process's CPU is
/// for whoever started it to ask. No group is joined: partitions are assigned by hand.
pub fn run(records: u64) -> anyhow::Result<()> {
    let (config, _) = Config::load_partial(None, &[])?;
    let (client, topic) = (consumer_config(&config), &config.kafka.topic);
    let mut assigned = TopicPartitionList::new();
    for partition in probe::partitions(&client, topic, SILENCE_MAX)? {
        assigned.add_partition_offset(topic, partition, Offset::Offset(0))?;
    }
    let consumer: BaseConsumer = client.create()?;
    consumer.assign(&assigned)?;
    let (mut read, mut bytes) = (0, 0);
    let (mut first, mut last) = (None, Instant::now());
    while read < records {
        match consumer.poll(Duration::from_millis(10)) {
            Some(message) => {
                let message = message?;
                bytes += message.payload_len() + message.key_len();
                read += 1;
                if first.is_none() {
                    first = Some(Instant::now());
                }
            }
            None => {
                anyhow::ensure!(last.elapsed() < SILENCE_MAX, "no record for {SILENCE_MAX:?} after {read}");
                continue;
            }
        }
        if read % 4096 == 0 {
            last = Instant::now();
        }
    }
    let seconds = first.map_or(0.0, |first| first.elapsed().as_secs_f64());
    println!("{}", serde_json::json!({ "records": read, "bytes": bytes, "seconds": seconds }));
    Ok(())
}
