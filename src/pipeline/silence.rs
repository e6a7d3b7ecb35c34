//! A stream that stops without an error: the client says nothing, and delivers nothing either.
//!
//! 1. A partition that gave nothing for `kafka.silence_ms_max`, although nothing here holds it back, is read
//!    by a client of its own. If that one gets a record, and still does after as long again, the worker
//!    ends: its supervisor starts one with a client that works.
//! 2. Where this worker's client has reported something that it cannot read, the partition begins again instead:
//!    the record may be just that, at the partition's end, and be reported again. Only when nothing was, the worker
//!    ends; when it always is, the partition stops.
//! 3. Nothing else ends it: not a partition that is empty, held back, stopped or being given up, not Kafka
//!    being away (then the other client gets nothing), not a pipeline that has no room.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Done, Ended, Pipeline};
use crate::kafka::probe::Found;
use crate::partition::Partition;

/// A partition that gives nothing.
#[derive(Clone, Copy)]
pub(super) struct Silence {
    epoch: i64,
    /// The offset that comes next.
    at: i64,
    since: Instant,
    /// The other client got a record here when it was asked last.
    missed: bool,
}

impl Silence {
    fn new(partition: &Partition) -> Self {
        Silence { epoch: partition.epoch, at: partition.expected(), since: Instant::now(), missed: false }
    }
}

impl Pipeline {
    /// Asks about partitions that were silent for too long, a few at most in the time that is allowed.
    pub(super) fn look_after_silence(&mut self) {
        let longest = Duration::from_millis(self.config.kafka.silence_ms_max);
        let has_work = !self.backlog.is_empty() || !self.leaving.is_empty() || self.shutdown.is_some();
        self.silences.retain(|id, _| self.partitions.contains_key(id));
        let mut silent = Vec::new();
        for partition in self.partitions.values() {
            let silence = self.silences.entry(partition.id).or_insert_with(|| Silence::new(partition));
            let same = (silence.epoch, silence.at) == (partition.epoch, partition.expected());
            if has_work || !same || !partition.is_listening() {
                *silence = Silence::new(partition);
            } else if silence.since.elapsed() >= longest {
                silent.push((partition.id, silence.at));
            }
        }
        if silent.is_empty() || self.asking_silent {
            return;
        }
        self.asking_silent = true;
        let broker = self.outside.broker.clone();
        self.tasks.start(async move {
            let found = broker.read_at(&silent).await.unwrap_or_default();
            Done::Listened { silent, found }
        });
    }

    /// What the other client got.
    pub(super) fn on_listened(
        &mut self,
        silent: &[(i32, i64)],
        found: &BTreeMap<i32, Found>,
    ) -> Result<(), Ended> {
        self.asking_silent = false;
        for (id, at) in silent {
            let Some(silence) = self.silences.get_mut(id).filter(|silence| silence.at == *at) else {
                continue;
            };
            let Some(Found::Record { offset, .. }) = found.get(id) else {
                // Empty, or nobody can read it: that is no fault of this worker's client.
                (silence.since, silence.missed) = (Instant::now(), false);
                continue;
            };
            if silence.missed && self.partitions.get(id).is_some_and(|p| p.suspect) {
                tracing::warn!(partition = id, offset, "a record that may be unreadable is fetched again");
                (silence.since, silence.missed) = (Instant::now(), false);
                self.begin_again(*id);
                continue;
            }
            if silence.missed {
                return Err(Ended::Fatal(format!(
                    "the stream has stopped: partition {id} gives nothing, while another client reads offset {offset}"
                )));
            }
            tracing::warn!(partition = id, offset, "a record is there, and has not come yet");
            (silence.since, silence.missed) = (Instant::now(), true);
        }
        Ok(())
    }
}
