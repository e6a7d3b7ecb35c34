//! One partition while this worker owns it: records in, a batch out. No I/O.
//!
//! 1. Records are taken in the order of their offsets, each once; what lies below the frontier is not
//!    taken again.
//! 2. The day never goes back: `recorded_at` is Kafka's timestamp, but not before the start of the day
//!    that the partition has reached.
//! 3. A record whose verdict is not known yet stops its partition there, and nothing is skipped.

use rdkafka::message::Timestamp;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

use crate::event::{Decoder, Interaction, InteractionTypes, Verdict};
use crate::export::exporter::Exporter;
use crate::kafka::dead_letters::DeadLetter;
use crate::postgres::lane::PartitionBatch;
use crate::postgres::ledger::{Owned, Stop};
use crate::record::{Chunk, Record};
use crate::reject_limit::{RejectLimits, RejectWindow};
use crate::row::{self, Coordinates};
use crate::telemetry::traces;

/// Most that a batch is given room for at once. Larger takes memory of many partitions that had a large batch once;
/// smaller copies the rows of large batches again and again as they grow.
const ROOM_BYTES_MAX: usize = 1 << 20;

/// What decides how records are taken.
pub struct Rules {
    pub limits: RejectLimits,
    pub types: InteractionTypes,
    /// Whether a producer's timestamp may decide the day; it is capped to `now_ms` then.
    pub allow_create_time: bool,
    /// Postgres's clock, ms since 1970.
    pub now_ms: i64,
    /// The worker's clock, ms since 1970.
    pub ingested_at_ms: i64,
}

/// Why a partition's records have to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// For the schema of this id.
    Schema(u32),
    /// For its day to move: what comes after belongs to the day after.
    Day,
    /// For dead letters to be acknowledged, with the batch full.
    DeadLetters,
    /// For a batch that is long on its way, with the next one full.
    Persist,
}

/// How taking a run of records ended.
#[derive(Debug)]
pub enum Taken {
    All,
    /// The record at this index of the chunk has to wait.
    Waits(usize, Wait),
    /// The limits are exceeded: the worker stops once the batch is written.
    Flood(String),
    /// The topic's timestamps are the producers'.
    CreateTime,
    /// The record before the frontier is not the one that was persisted.
    Recreated,
    /// Offsets were jumped after the client had fetched something that it could not read.
    Unreadable,
}

/// What a run of records brought beside rows.
#[derive(Default)]
pub struct Brought {
    pub rejects: Vec<DeadLetter>,
    pub key_mismatches: u64,
    pub offset_jumps: u64,
}

/// A partition's state. The pipeline owns it; nothing here is shared.
pub struct Partition {
    pub id: i32,
    pub epoch: i64,
    /// The assignment that brought it: records polled earlier are not taken.
    pub assignment: u64,
    /// The frontier and day that are committed.
    pub frontier: i64,
    pub day: i32,
    /// The offset that comes next.
    expected: i64,
    /// Fingerprint that the record at `frontier - 1` must have, until one was seen.
    check: Option<i64>,
    window: RejectWindow,
    /// The batch that is being filled, and since when.
    pub open: PartitionBatch,
    pub open_since: Option<Instant>,
    /// Bytes that the next batch is given room for with its first rows.
    room: usize,
    /// A batch is on its way to Postgres.
    pub in_flight: bool,
    /// How large it is.
    in_flight_bytes: usize,
    /// Kafka's timestamp of its first record.
    in_flight_oldest_ms: i64,
    /// A batch that came back without a row that Postgres refused, to be written first.
    pub returned: Option<PartitionBatch>,
    /// Dead letters of the open batch that are not acknowledged yet.
    pub letters: Letters,
    pub wait: Option<Wait>,
    /// Runs of records that wait, in order.
    pub parked: VecDeque<(Arc<Chunk>, Range<usize>)>,
    /// Its fetching is held back.
    pub held: bool,
    pub exporter: Exporter,
    pub closed_day: i32,
    /// A statement that closes days is on its way.
    pub closing: bool,
    /// When it was last asked whether the partition is empty.
    pub probed_at: Option<Instant>,
    /// The limit that was exceeded.
    pub flood: Option<String>,
    /// It is being given up: only what is open is still written.
    pub leaving: bool,
    /// Why it stops once what is open is written.
    pub stopping: Option<(Stop, String)>,
    /// The broker lacks what comes after the records that still wait: next offset, low, high.
    pub out_of_range: Option<(i64, i64, i64)>,
    /// A row of its batch is being dead-lettered.
    pub repair: Option<AbortOnDrop>,
    /// The client could not read something: the next jump may hide records.
    pub suspect: bool,
    /// How often it began again because of that, at the offset that comes next.
    pub unreadable: u32,
    /// The upload that is on its way; it ends with the partition.
    pub upload: Option<AbortOnDrop>,
}

/// Ends a task when its owner is gone: what it holds is memory, and what it would write is fenced, or may be there
/// twice.
pub struct AbortOnDrop(pub tokio::task::AbortHandle);

/// Dead letters on their way, by offset. They end with the partition: whoever has it next sends its own.
#[derive(Default)]
pub struct Letters {
    sent: BTreeMap<i64, (usize, AbortOnDrop)>,
    bytes: usize,
}

impl Letters {
    pub fn insert(&mut self, offset: i64, bytes: usize, task: AbortOnDrop) {
        self.bytes += bytes;
        self.sent.insert(offset, (bytes, task));
    }

    pub fn acknowledged(&mut self, offset: i64) {
        self.bytes -= self.sent.remove(&offset).map_or(0, |(bytes, _)| bytes);
    }

    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// What they take of memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Partition {
    pub fn new(owned: &Owned, assignment: u64, exporter: Exporter) -> Self {
        let mut partition = Partition {
            id: owned.partition,
            epoch: owned.epoch,
            assignment,
            frontier: owned.persist_frontier,
            day: owned.persist_day,
            expected: owned.persist_frontier,
            check: owned.last_record_hash,
            window: owned.window,
            open: PartitionBatch::default(),
            open_since: None,
            room: 0,
            in_flight: false,
            in_flight_bytes: 0,
            in_flight_oldest_ms: 0,
            returned: None,
            letters: Letters::default(),
            wait: None,
            parked: VecDeque::new(),
            held: false,
            exporter,
            closed_day: owned.closed_day,
            closing: false,
            probed_at: None,
            flood: None,
            leaving: false,
            stopping: None,
            out_of_range: None,
            repair: None,
            suspect: false,
            unreadable: 0,
            upload: None,
        };
        partition.open = partition.empty_batch(owned.persist_frontier, owned.persist_day);
        partition
    }

    /// Where the consumer should begin: one record early when that record can be checked.
    pub fn start(owned: &Owned, low: i64) -> i64 {
        let before = owned.persist_frontier - 1;
        if owned.last_record_hash.is_some() && before >= low { before } else { owned.persist_frontier }
    }

    fn empty_batch(&self, first: i64, day: i32) -> PartitionBatch {
        PartitionBatch {
            partition: self.id,
            epoch: self.epoch,
            first,
            next: first,
            day_before: day,
            day,
            window: self.window,
            ..PartitionBatch::default()
        }
    }

    /// Takes the batch that is to be written; the next one begins where it ends.
    pub fn take_batch(&mut self) -> PartitionBatch {
        self.in_flight = true;
        let mut batch = self.returned.take().unwrap_or_else(|| {
            let next = self.empty_batch(self.open.next, self.open.day);
            self.open.times.opened_at = self.open_since.take();
            std::mem::replace(&mut self.open, next)
        });
        batch.times.handed_at = Some(Instant::now());
        self.room = (batch.tuples.len() + batch.tuples.len() / 8).min(ROOM_BYTES_MAX);
        self.in_flight_bytes = batch.tuples.capacity();
        self.in_flight_oldest_ms = batch.oldest_ms;
        batch
    }

    /// What its batches take of memory: the one that is being filled, its dead letters, the one on its way, one that
    /// came back.
    pub fn batch_bytes(&self) -> usize {
        let in_flight = if self.in_flight { self.in_flight_bytes } else { 0 };
        let returned = self.returned.as_ref().map_or(0, |batch| batch.tuples.capacity());
        self.open.tuples.capacity() + self.letters.bytes() + in_flight + returned
    }

    /// Whether the open batch has anything to write.
    pub fn has_open(&self) -> bool {
        self.open.next > self.open.first
    }

    /// Whether everything that was taken is written.
    pub fn is_written(&self) -> bool {
        !self.has_open() && !self.in_flight && self.returned.is_none()
    }

    /// Kafka's timestamp of the record at the frontier, if it is at hand.
    pub fn oldest_ms(&self) -> Option<i64> {
        let parked = || {
            let (chunk, run) = self.parked.front()?;
            chunk.records.get(run.start)?.timestamp.to_millis()
        };
        if self.in_flight {
            return Some(self.in_flight_oldest_ms);
        }
        let batch = self.returned.as_ref().or_else(|| self.has_open().then_some(&self.open));
        batch.map(|batch| batch.oldest_ms).or_else(parked)
    }

    /// The offset that comes next.
    pub fn expected(&self) -> i64 {
        self.expected
    }

    /// Whether nothing of this partition is on its way anywhere.
    pub fn is_idle(&self) -> bool {
        self.is_written() && self.parked.is_empty() && self.wait.is_none()
    }

    /// Whether nothing here keeps the next record from being taken.
    pub fn is_listening(&self) -> bool {
        // Beginning again, it waits for a word of the poll thread: that one may be silent too.
        self.is_idle() && !self.held && !self.leaving && self.stopping.is_none()
    }

    /// Whether the open batch may be written now.
    pub fn is_ready(&self) -> bool {
        let open = self.has_open() && self.letters.is_empty() && self.wait != Some(Wait::Day);
        !self.in_flight && (open || self.returned.is_some())
    }

    /// Whether the record before the frontier is still to be compared; none was taken since.
    pub fn awaits_check(&self) -> bool {
        self.check.is_some() && self.expected == self.frontier
    }

    /// That record is gone from the broker: there is nothing to compare.
    pub fn give_check_up(&mut self) {
        self.check = None;
    }

    /// The partition was seen empty and has reached a later day.
    pub fn reach(&mut self, day: i32) {
        self.day = day;
        if !self.has_open() {
            self.open = self.empty_batch(self.frontier, day);
        }
    }

    /// Takes a run of records of this partition. Rows and rejects go into the open batch.
    pub fn take(
        &mut self,
        chunk: &Chunk,
        run: Range<usize>,
        decoder: &mut Decoder,
        rules: &Rules,
        brought: &mut Brought,
    ) -> Taken {
        let began = traces::is_on().then(Instant::now);
        if self.open.tuples.capacity() == 0 {
            self.open.tuples.reserve(self.room);
        }
        let mut last = None;
        let mut outcome = Taken::All;
        for index in run {
            let Some(record) = chunk.records.get(index) else { break };
            if record.offset < self.expected {
                if self.is_another_record(chunk, record) {
                    return Taken::Recreated;
                }
                continue;
            }
            match self.take_one(chunk, record, decoder, rules, brought) {
                Ok(()) => last = Some(record),
                Err(Taken::Waits(_, wait)) => {
                    outcome = Taken::Waits(index, wait);
                    break;
                }
                Err(other) => {
                    outcome = other;
                    break;
                }
            }
            if let Some(why) = self.window.exceeds(&rules.limits) {
                outcome = Taken::Flood(why);
                break;
            }
        }
        if let Some(record) = last {
            self.open.last_record_hash = Some(chunk.fingerprint(record));
            self.open.window = self.window;
            self.open_since.get_or_insert_with(|| began.unwrap_or_else(Instant::now));
        }
        self.open.times.decoding += began.map_or(Duration::ZERO, |began| began.elapsed());
        outcome
    }

    /// The record before the frontier, delivered to be compared.
    fn is_another_record(&mut self, chunk: &Chunk, record: &Record) -> bool {
        let compared = record.offset == self.frontier - 1 && self.expected == self.frontier;
        compared && self.check.take().is_some_and(|hash| hash != chunk.fingerprint(record))
    }

    fn take_one(
        &mut self,
        chunk: &Chunk,
        record: &Record,
        decoder: &mut Decoder,
        rules: &Rules,
        brought: &mut Brought,
    ) -> Result<(), Taken> {
        let timestamp_ms = match record.timestamp {
            Timestamp::LogAppendTime(ms) => ms,
            Timestamp::CreateTime(ms) if rules.allow_create_time => ms.min(rules.now_ms),
            Timestamp::CreateTime(_) | Timestamp::NotAvailable => return Err(Taken::CreateTime),
        };
        if record.offset > self.expected && self.suspect {
            return Err(Taken::Unreadable);
        }
        if record.offset == self.expected {
            self.unreadable = 0;
        }
        let recorded_at_ms = timestamp_ms.max(row::day_start_ms(self.open.day));
        let rejected = match decoder.decode(chunk.value(record), timestamp_ms) {
            Verdict::Accept(interaction) => {
                brought.key_mismatches += u64::from(!key_is(chunk.key(record), &interaction));
                let at = Coordinates {
                    partition: self.id,
                    offset: record.offset,
                    recorded_at_ms,
                    ingested_at_ms: rules.ingested_at_ms,
                };
                row::encode(&mut self.open.tuples, &at, &interaction, &rules.types);
                self.open.rows += 1;
                self.open.day = row::day_of_ms(recorded_at_ms);
                false
            }
            Verdict::Reject(reject) => {
                brought.rejects.push(DeadLetter::new(chunk, record, reject));
                self.open.rejects += 1;
                true
            }
            Verdict::NeedSchema(id) => return Err(Taken::Waits(0, Wait::Schema(id))),
        };
        // A jump without an error before it is explained: the client reports an offset that the broker
        // lacks, and a batch that it cannot read; what remains are transaction markers and compaction.
        brought.offset_jumps += u64::from(record.offset > self.expected);
        if !self.has_open() {
            self.open.oldest_ms = timestamp_ms;
        }
        self.check = None;
        self.expected = record.offset + 1;
        self.open.next = self.expected;
        self.window.count(rejected, &rules.limits);
        Ok(())
    }
}

/// Whether a record's key is its user, as the topic's contract says.
fn key_is(key: Option<&[u8]>, interaction: &Interaction<'_>) -> bool {
    key.and_then(|key| Uuid::try_parse_ascii(key).ok()) == Some(interaction.user_id)
}
