//! Records on their way from the poll thread to the pipeline.
//!
//! 1. A chunk owns the bytes of its records in one buffer, so that a record costs no allocation.
//! 2. A chunk says during which assignment it was polled: what was polled before a partition was
//!    (re)assigned is never taken for that partition.

use std::ops::Range;

use rdkafka::message::{BorrowedMessage, Headers, Message, OwnedHeaders, Timestamp};
use xxhash_rust::xxh3::Xxh3Default;

/// One Kafka message by its coordinates; key and value lie in the chunk's buffer.
pub struct Record {
    pub partition: i32,
    /// Kafka's offset.
    pub offset: i64,
    /// Kafka's timestamp in ms since 1970, and who set it.
    pub timestamp: Timestamp,
    key: Option<Range<u32>>,
    value: Option<Range<u32>>,
    pub headers: Option<Box<OwnedHeaders>>,
}

/// What one round of polling brought, in the order in which it was delivered.
#[derive(Default)]
pub struct Chunk {
    /// Number of the assignment during which it was polled.
    pub assignment: u64,
    bytes: Vec<u8>,
    pub records: Vec<Record>,
}

impl Chunk {
    /// An empty chunk of the given assignment.
    pub fn new(assignment: u64) -> Self {
        Chunk { assignment, bytes: Vec::new(), records: Vec::new() }
    }

    /// An empty chunk with room for what this one holds, and a little more: while a topic is drained, chunks are alike.
    pub fn next(&self, assignment: u64) -> Self {
        let (bytes, records) = (self.bytes.len(), self.records.len());
        Chunk {
            assignment,
            bytes: Vec::with_capacity(bytes + bytes / 8),
            records: Vec::with_capacity(records),
        }
    }

    /// Copies a message's bytes in; the message itself goes back to the client at once.
    pub fn push(&mut self, message: &BorrowedMessage<'_>) {
        let at = (message.partition(), message.offset(), message.timestamp());
        self.add(at, message.key(), message.payload());
        if let Some(headers) = message.headers().filter(|h| h.count() > 0)
            && let Some(record) = self.records.last_mut()
        {
            record.headers = Some(Box::new(headers.detach()));
        }
    }

    /// Copies a record without headers in.
    pub fn add(
        &mut self,
        (partition, offset, timestamp): (i32, i64, Timestamp),
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) {
        let key = key.map(|k| copy(&mut self.bytes, k));
        let value = value.map(|v| copy(&mut self.bytes, v));
        self.records.push(Record { partition, offset, timestamp, key, value, headers: None });
    }

    /// The record's key, if it has one.
    pub fn key(&self, record: &Record) -> Option<&[u8]> {
        record.key.as_ref().map(|r| &self.bytes[r.start as usize..r.end as usize])
    }

    /// The record's value; none = tombstone.
    pub fn value(&self, record: &Record) -> Option<&[u8]> {
        record.value.as_ref().map(|r| &self.bytes[r.start as usize..r.end as usize])
    }

    /// Memory held, in bytes (headers estimated).
    pub fn size_bytes(&self) -> usize {
        self.bytes.len() + self.records.len() * size_of::<Record>()
    }

    /// Fingerprint of a record: its key, value and timestamp. The ledger keeps the one of the last
    /// record before the frontier, so that a topic which was re-created is noticed.
    pub fn fingerprint(&self, record: &Record) -> i64 {
        let mut hash = Xxh3Default::new();
        for part in [self.key(record), self.value(record)] {
            match part {
                Some(bytes) => {
                    hash.update(&(bytes.len() as u64).to_le_bytes());
                    hash.update(bytes);
                }
                None => hash.update(&u64::MAX.to_le_bytes()),
            }
        }
        hash.update(&record.timestamp.to_millis().unwrap_or(-1).to_le_bytes());
        hash.digest().cast_signed()
    }
}

fn copy(into: &mut Vec<u8>, bytes: &[u8]) -> Range<u32> {
    // A chunk is closed long before 4 GiB: see CHUNK_BYTES_MAX, and one record is at most the
    // broker's message.max.bytes, an i32.
    let start = into.len() as u32;
    into.extend_from_slice(bytes);
    start..into.len() as u32
}
