//! Which lines an earlier run has brought into the topic: its records say so in their headers.
//!
//! What this module guarantees: every record of the run that the broker showed at some moment at least the
//! settling time after the call is found. A killed run may have left a request on its way that the broker takes
//! only now; so the end is looked at again until nothing of the run has come for that time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::tracker::Offsets;
use super::{LINE_HEADER, RUN_HEADER};
use crate::kafka::probe;

const TIMEOUT: Duration = Duration::from_secs(15);
/// Without a single record or end of a partition for so long, the read is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Lines with where they lie: the first of their records, if there are several.
#[derive(Debug, Default)]
pub struct Present {
    pub lines: BTreeMap<u64, (i32, i64)>,
    /// Up to where the partitions were read.
    pub offsets: Offsets,
}

pub struct Scan<'s> {
    pub config: &'s ClientConfig,
    pub topic: &'s str,
    pub run: &'s str,
}

impl Scan<'_> {
    /// The ends of all partitions as they are now.
    pub fn ends(&self) -> anyhow::Result<Offsets> {
        Ok(self.bounds()?.into_iter().map(|(partition, _, high)| (partition, high)).collect())
    }

    /// Reads from `from` on; a partition that it does not name is a new one.
    pub fn settled(&self, from: &Offsets, settle: Duration) -> anyhow::Result<Present> {
        let mut present = Present::default();
        for (partition, low, high) in self.bounds()? {
            let first = from.get(&partition).copied().unwrap_or(0);
            ensure!(
                low <= first || low == 0,
                "partition {partition} begins at offset {low} by now: whether lines were sent from offset {first} on cannot be told any more"
            );
            ensure!(
                high >= first,
                "partition {partition} ends at offset {high}, but the earlier run had reached {first}: is this another topic of the same name?"
            );
            present.offsets.insert(partition, first);
        }
        let Present { lines, offsets } = &mut present;
        let mut news = 0_u64;
        self.read_to(self.ends()?, offsets, |line, place| note(lines, line, place))?;
        loop {
            std::thread::sleep(settle);
            let before = news;
            self.read_to(self.ends()?, offsets, |line, place| {
                news += 1;
                note(lines, line, place);
            })?;
            if news == before {
                return Ok(present);
            }
        }
    }

    /// Goes on to these ends, and tells each record of the run once. A fresh consumer each time: what it says of an end
    /// is later than the call.
    pub fn read_to(
        &self,
        ends: Offsets,
        offsets: &mut Offsets,
        mut take: impl FnMut(u64, (i32, i64)),
    ) -> anyhow::Result<()> {
        let mut open: Offsets = BTreeMap::new();
        let mut list = TopicPartitionList::new();
        for (partition, end) in ends {
            let first = *offsets.entry(partition).or_insert(0);
            if first < end {
                list.add_partition_offset(self.topic, partition, Offset::Offset(first))?;
                open.insert(partition, end);
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let consumer = probe::connect(&self.consumer_config())?;
        consumer.assign(&list)?;
        let mut last_news = Instant::now();
        while !open.is_empty() {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    last_news = Instant::now();
                    let (partition, offset) = (message.partition(), message.offset());
                    let next = offset + 1;
                    // Behind the ends lies what is looked at another time.
                    if offsets.get(&partition).is_none_or(|first| offset >= *first)
                        && open.contains_key(&partition)
                        && let Some(line) = line_of(&message, self.run)
                    {
                        take(line, (partition, offset));
                    }
                    if open.contains_key(&partition) {
                        offsets.insert(partition, next);
                    }
                    if open.get(&partition).is_some_and(|end| next >= *end) {
                        open.remove(&partition);
                    }
                }
                // The last offsets before the end may hold no record.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    last_news = Instant::now();
                    if let Some(end) = open.remove(&partition) {
                        offsets.insert(partition, end);
                    }
                }
                Some(Err(error)) => tracing::debug!(%error, "reading what an earlier run has sent"),
                None => {}
            }
            if last_news.elapsed() > SILENCE_MAX {
                bail!(
                    "topic {} does not answer: {} partitions were not read to their ends",
                    self.topic,
                    open.len()
                );
            }
        }
        Ok(())
    }

    fn bounds(&self) -> anyhow::Result<Vec<(i32, i64, i64)>> {
        let partitions = probe::partitions(self.config, self.topic, TIMEOUT);
        let partitions = partitions.context("asking the broker for the partitions")?;
        let bounds = probe::bounds(self.config, self.topic, &partitions, TIMEOUT);
        bounds.context("asking the broker where the partitions begin and end")
    }

    fn consumer_config(&self) -> ClientConfig {
        let mut config = self.config.clone();
        config
            .set("group.id", "feed-worker-produce")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            // Somebody else's open transaction must not hide what lies behind it.
            .set("isolation.level", "read_uncommitted")
            .set("fetch.queue.backoff.ms", "10");
        config
    }
}

/// Of two records of a line, the one that lies first tells where it may be looked for.
fn note(lines: &mut BTreeMap<u64, (i32, i64)>, line: u64, place: (i32, i64)) {
    lines.entry(line).or_insert(place);
}

/// Which line of the run the record is.
fn line_of(message: &BorrowedMessage<'_>, run: &str) -> Option<u64> {
    let headers = message.headers()?;
    let value = |name: &str| headers.iter().find(|header| header.key == name)?.value;
    if value(RUN_HEADER)? != run.as_bytes() {
        return None;
    }
    std::str::from_utf8(value(LINE_HEADER)?).ok()?.parse().ok()
}
