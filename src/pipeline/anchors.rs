//! A topic that was created anew, and holds more than was read of the old one before the client fetches again: the
//! client goes on in it as if nothing had happened.
//!
//! 1. A record that this worker persisted a while ago is read again every `kafka.metadata_refresh_ms`; and at once when
//!    the brokers lack what comes next of any partition, or a partition comes back to the worker that had it last. If
//!    another record stands there, the partition stops.
//! 2. An anchor is of the topic that was read before it. It moves on only to what was persisted before it was seen
//!    in its place.
//! 3. What was taken of the new topic until then is in the table; what stood before it in the new topic was not read.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Done, Pipeline};
use crate::postgres::lane::PartitionBatch;
use crate::postgres::ledger::{Assigned, Stop};

/// A record that was persisted: its offset and fingerprint.
type Record = (i64, i64);

/// Where a partition is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The epoch under which the partition was owned last.
    epoch: i64,
    at: Record,
    /// The last one that was persisted: where the anchor is next.
    newest: Record,
}

#[derive(Default)]
pub(super) struct Anchors {
    of: BTreeMap<i32, Anchor>,
    /// When the brokers were asked last; none: it is to be done soon.
    asked_at: Option<Instant>,
    asking: bool,
}

impl Anchors {
    /// Partitions are owned under a new epoch. What another worker persisted meanwhile nobody here has seen.
    pub fn assigned(&mut self, assigned: &Assigned) {
        for owned in &assigned.owned {
            let before = assigned.before.get(&owned.partition).map(|before| before.epoch);
            let had_it_last = |anchor: &&mut Anchor| before == Some(anchor.epoch);
            if let Some(anchor) = self.of.get_mut(&owned.partition).filter(had_it_last) {
                anchor.epoch = owned.epoch;
                self.ask_soon();
                continue;
            }
            match owned.last_record_hash {
                Some(hash) => {
                    let record = (owned.persist_frontier - 1, hash);
                    self.of.insert(owned.partition, Anchor { epoch: owned.epoch, at: record, newest: record })
                }
                None => self.of.remove(&owned.partition),
            };
        }
    }

    /// Something suggests that the topic is not what it was.
    pub fn ask_soon(&mut self) {
        self.asked_at = None;
    }

    /// A batch was committed.
    pub fn persisted(&mut self, batch: &PartitionBatch) {
        let Some(hash) = batch.last_record_hash else { return };
        let newest = (batch.next - 1, hash);
        let first = || Anchor { epoch: batch.epoch, at: newest, newest };
        let anchor = self.of.entry(batch.partition).or_insert_with(first);
        if anchor.epoch == batch.epoch {
            anchor.newest = newest;
        }
    }

    /// An operator decides about the partition.
    pub fn stopped(&mut self, partition: i32) {
        self.of.remove(&partition);
    }

    /// Takes in what stands where an anchor was when it was asked about; true: another record.
    fn is_another(&mut self, partition: i32, asked: Anchor, found: Option<i64>) -> bool {
        let Some(anchor) =
            self.of.get_mut(&partition).filter(|now| (now.epoch, now.at) == (asked.epoch, asked.at))
        else {
            return false;
        };
        if found.is_some_and(|hash| hash != asked.at.1) {
            return true;
        }
        // In its place, or gone by retention: then there is nothing to compare.
        anchor.at = asked.newest;
        false
    }
}

impl Pipeline {
    /// Has the anchors read again, if it is time.
    pub(super) fn look_after_anchors(&mut self) {
        let interval = Duration::from_millis(self.config.kafka.metadata_refresh_ms);
        let is_due = self.anchors.asked_at.is_none_or(|at| at.elapsed() >= interval);
        if self.anchors.asking || !is_due {
            return;
        }
        let owns =
            |id: &i32, anchor: &Anchor| self.partitions.get(id).is_some_and(|p| p.epoch == anchor.epoch);
        let asked: BTreeMap<i32, Anchor> = self
            .anchors
            .of
            .iter()
            .filter(|(id, anchor)| owns(id, anchor))
            .map(|(id, anchor)| (*id, *anchor))
            .collect();
        self.anchors.asked_at = Some(Instant::now());
        if asked.is_empty() {
            return;
        }
        self.anchors.asking = true;
        let broker = self.outside.broker.clone();
        self.tasks.start(async move {
            let wanted: Vec<(i32, i64)> = asked.iter().map(|(id, anchor)| (*id, anchor.at.0)).collect();
            let found = broker.fingerprints_at(&wanted).await.unwrap_or_default();
            Done::Anchored { asked, found }
        });
    }

    /// What the brokers have where the anchors were.
    pub(super) fn on_anchored(&mut self, asked: &BTreeMap<i32, Anchor>, found: &BTreeMap<i32, Option<i64>>) {
        self.anchors.asking = false;
        for (id, asked) in asked {
            // Without an answer nothing is known, and the anchor stays.
            let Some(found) = found.get(id) else { continue };
            if !self.anchors.is_another(*id, *asked, *found) || !self.partitions.contains_key(id) {
                continue;
            }
            let detail = format!(
                "the record at offset {} is not the one that was persisted: was the topic created anew? Rows of later \
                 offsets may be the new topic's",
                asked.at.0
            );
            self.stop(*id, asked.epoch, Stop::Recreated, detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::ledger::Owned;
    use crate::reject_limit::RejectWindow;

    const PARTITION: i32 = 3;

    fn owned(epoch: i64, persist_frontier: i64, last_record_hash: Option<i64>) -> Owned {
        Owned {
            partition: PARTITION,
            epoch,
            persist_frontier,
            persist_day: 0,
            export_frontier: 0,
            closed_day: 0,
            last_record_hash,
            window: RejectWindow::default(),
        }
    }

    fn assigned(before: Owned, now: Owned) -> Assigned {
        let before = BTreeMap::from([(PARTITION, before)]);
        Assigned { owned: vec![now], before, ..Assigned::default() }
    }

    fn batch(epoch: i64, next: i64, hash: i64) -> PartitionBatch {
        PartitionBatch {
            partition: PARTITION,
            epoch,
            next,
            last_record_hash: Some(hash),
            ..PartitionBatch::default()
        }
    }

    /// Owned under epoch 7 from the topic's begin, with two batches persisted.
    fn anchors() -> Anchors {
        let mut anchors = Anchors::default();
        anchors.assigned(&assigned(owned(6, 0, None), owned(7, 0, None)));
        anchors.persisted(&batch(7, 100, 1));
        anchors.persisted(&batch(7, 200, 2));
        anchors
    }

    #[test]
    fn moves_to_what_was_persisted_before_it_was_asked_about() {
        let mut anchors = anchors();
        let asked = anchors.of[&PARTITION];
        assert_eq!(asked.at, (99, 1));
        anchors.persisted(&batch(7, 300, 3));
        assert!(!anchors.is_another(PARTITION, asked, Some(1)));
        assert_eq!(anchors.of[&PARTITION].at, (199, 2), "300 may be of another topic");
        // The same answer again is of an anchor that has moved.
        assert!(!anchors.is_another(PARTITION, asked, Some(55)));
        assert_eq!(anchors.of[&PARTITION].at, (199, 2));
    }

    #[test]
    fn another_record_is_noticed_and_a_record_that_is_gone_is_not_one() {
        let mut anchors = anchors();
        let asked = anchors.of[&PARTITION];
        assert!(anchors.is_another(PARTITION, asked, Some(55)));
        assert!(!anchors.is_another(PARTITION, asked, None));
        assert_eq!(anchors.of[&PARTITION].at, (199, 2));
    }

    #[test]
    fn stays_while_nobody_else_has_the_partition() {
        let mut anchors = anchors();
        // Left and joined again, while the last batch was on its way.
        anchors.persisted(&batch(7, 300, 3));
        anchors.asked_at = Some(Instant::now());
        anchors.assigned(&assigned(owned(7, 300, Some(3)), owned(8, 300, Some(3))));
        assert_eq!(anchors.of[&PARTITION], Anchor { epoch: 8, at: (99, 1), newest: (299, 3) });
        assert_eq!(anchors.asked_at, None, "it is to be compared soon");
        // Then another worker had it.
        anchors.assigned(&assigned(owned(9, 400, Some(4)), owned(10, 400, Some(4))));
        assert_eq!(anchors.of[&PARTITION], Anchor { epoch: 10, at: (399, 4), newest: (399, 4) });
        // What it left on its way counts no more.
        anchors.persisted(&batch(8, 350, 5));
        assert_eq!(anchors.of[&PARTITION].newest, (399, 4));
    }

    #[test]
    fn begins_anew_after_an_operator_decided() {
        let mut anchors = anchors();
        anchors.stopped(PARTITION);
        anchors.assigned(&assigned(owned(7, 200, None), owned(8, 500, None)));
        assert!(anchors.of.is_empty());
        anchors.persisted(&batch(8, 600, 6));
        assert_eq!(anchors.of[&PARTITION].at, (599, 6));
    }
}
