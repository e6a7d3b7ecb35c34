//! Records in: chunks are decoded run by run, what cannot be decided yet waits, rejects are sent.

use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Done, Ended, Incoming, Pipeline};
use crate::kafka::source::Command;
use crate::partition::{AbortOnDrop, Brought, Partition, Taken, Wait};
use crate::postgres::ledger::Stop;
use crate::record::Chunk;
use crate::telemetry::metrics;

impl Pipeline {
    /// Whether another chunk may be decoded: the batches have room for it.
    pub(super) fn has_room(&self) -> bool {
        if self.backlog.is_empty() {
            return false;
        }
        let (mut rows, mut bytes) = (0, 0);
        for partition in self.partitions.values().filter(|p| !self.is_stuck(p)) {
            rows += partition.open.rows + partition.open.rejects;
            bytes += partition.open.tuples.len();
        }
        rows < 2 * self.config.batch.rows_max as u64 && bytes < self.config.batch.bytes_max
    }

    /// Whether a partition's batches are not written for so long that it must not count for others. On a lane that is
    /// stuck, that is also one which was not in the batch that sticks.
    pub(super) fn is_stuck(&self, partition: &Partition) -> bool {
        !partition.letters.is_empty() || partition.repair.is_some() || self.lane_of(partition.id).is_stuck()
    }

    /// Decodes one chunk, run by run of the same partition.
    pub(super) fn take_chunk(&mut self) -> Result<(), Ended> {
        let chunk = match self.backlog.pop_front() {
            Some(Incoming::Chunk(chunk)) => chunk,
            Some(Incoming::OutOfRange { partition, next, low, high }) => {
                self.stop_out_of_range(partition, next, low, high);
                return Ok(());
            }
            Some(Incoming::Unreadable) => {
                self.partitions.values_mut().for_each(|p| p.suspect = true);
                return Ok(());
            }
            None => return Ok(()),
        };
        self.source.release(chunk.size_bytes());
        if self.shutdown.is_some() {
            return Ok(());
        }
        metrics::records_received(chunk.records.len() as u64);
        self.rules.now_ms = self.clock_ms();
        self.rules.ingested_at_ms = (self.outside.clock)();
        let chunk = Arc::new(chunk);
        let started = Instant::now();
        let mut start = 0;
        while let Some(first) = chunk.records.get(start) {
            let same = chunk.records[start..].iter().take_while(|r| r.partition == first.partition);
            let run = start..start + same.count();
            start = run.end;
            self.take_run(first.partition, &chunk, run)?;
        }
        metrics::stage("decode", started.elapsed());
        Ok(())
    }

    pub(super) fn take_run(&mut self, id: i32, chunk: &Arc<Chunk>, run: Range<usize>) -> Result<(), Ended> {
        let Some(partition) = self.partitions.get(&id) else { return Ok(()) };
        if chunk.assignment < partition.assignment || partition.leaving || partition.flood.is_some() {
            return Ok(());
        }
        let late = partition.wait.is_none() && self.is_stuck(partition) && self.is_full(partition);
        let Some(partition) = self.partitions.get_mut(&id) else { return Ok(()) };
        if late {
            let letters = !partition.letters.is_empty();
            partition.wait = Some(if letters { Wait::DeadLetters } else { Wait::Persist });
        }
        if partition.wait.is_some() {
            partition.parked.push_back((chunk.clone(), run));
            self.hold(id, true);
            return Ok(());
        }
        let mut brought = Brought::default();
        let taken = partition.take(chunk, run.clone(), &mut self.decoder, &self.rules, &mut brought);
        let epoch = partition.epoch;
        let outcome = match taken {
            Taken::All => Ok(()),
            Taken::Waits(index, wait) => {
                partition.wait = Some(wait);
                partition.parked.push_front((chunk.clone(), index..run.end));
                if let Wait::Schema(schema) = wait {
                    self.look_up(schema);
                }
                self.hold(id, true);
                Ok(())
            }
            Taken::Flood(why) => {
                partition.flood = Some(why);
                Ok(())
            }
            Taken::CreateTime => Err(Ended::Fatal(format!(
                "topic {} carries the producers' timestamps: set message.timestamp.type=LogAppendTime \
                 (`feed-worker topics apply`), or allow it by kafka.allow_create_time=true, \
                 and days close late or never",
                self.config.kafka.topic
            ))),
            Taken::Recreated => {
                let detail = "the record before the frontier is not the one that was persisted: \
                              was the topic created anew?";
                self.stop(id, epoch, Stop::Recreated, detail.to_owned());
                return Ok(());
            }
            Taken::Unreadable => {
                self.begin_again(id);
                Ok(())
            }
        };
        self.dead_letter(id, brought);
        outcome
    }

    /// Whether a partition whose batches are not written has taken enough: the rows of a batch, or its part of what all
    /// together may hold of rows, or of dead letters.
    fn is_full(&self, partition: &Partition) -> bool {
        let batch = &self.config.batch;
        let bytes = |of: fn(&Partition) -> usize| self.partitions.values().map(of).sum::<usize>();
        partition.open.rows + partition.open.rejects >= batch.rows_max as u64
            || partition.has_open() && bytes(|p| p.open.tuples.len()) >= batch.bytes_max
            || !partition.letters.is_empty() && bytes(|p| p.letters.bytes()) >= batch.bytes_max
    }

    /// Sends rejected records to the DLQ.
    fn dead_letter(&mut self, id: i32, brought: Brought) {
        metrics::key_mismatched(brought.key_mismatches);
        metrics::offsets_jumped(brought.offset_jumps);
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        let epoch = partition.epoch;
        for letter in brought.rejects {
            metrics::rejected(letter.reject.reason.as_str(), 1);
            let (offset, bytes) = (letter.offset, letter.size_bytes());
            let letters = self.outside.dead_letters.clone();
            let task = self.tasks.start(async move {
                match letters.send(letter).await {
                    Ok(()) => Done::DeadLettered { partition: id, epoch, offset },
                    Err(error) => Done::Failed(format!("the producer of dead letters: {error:#}")),
                }
            });
            partition.letters.insert(offset, bytes, AbortOnDrop(task));
        }
    }

    /// Goes on with records that waited, until one has to wait again.
    pub(super) fn unpark(&mut self, id: i32) -> Result<(), Ended> {
        loop {
            let Some(partition) = self.partitions.get_mut(&id) else { return Ok(()) };
            if partition.wait.is_some() {
                return Ok(());
            }
            let Some((chunk, run)) = partition.parked.pop_front() else { break };
            // `take_run` parks at the front what has to wait again.
            let parked = std::mem::take(&mut partition.parked);
            let result = self.take_run(id, &chunk, run);
            if let Some(partition) = self.partitions.get_mut(&id) {
                partition.parked.extend(parked);
            }
            result?;
        }
        self.hold(id, false);
        Ok(())
    }

    /// Holds the fetching of one partition back, or lets it go on.
    pub(super) fn hold(&mut self, id: i32, hold: bool) {
        if let Some(partition) = self.partitions.get_mut(&id)
            && partition.held != hold
        {
            partition.held = hold;
            self.source.send(Command::Hold(id, hold));
        }
    }
}
