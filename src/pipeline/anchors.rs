//! A topic that was created anew, and holds more than was read of the old one before the client fetches again: the
//! client goes on in it as if nothing had happened.
//!
//! 1. A record that this worker persisted a while ago is read again every `kafka.metadata_refresh_ms`; and at once when
//!    the brokers lack what comes next of any partition, or a partition comes back to the worker that had it last. If
//!    another record stands there, and still does when it is read once more, the partition stops.
//! 2. An anchor is of the topic that was read before it. It moves on only to what was persisted before it was seen
//!    in its place, or gone; without an answer it stays, and is asked about again soon.
//! 3. What was taken of the new topic until then is in the table, and may be in files; what stood before it in the new
//!    topic was not read.
//! 4. The next owner of a partition knows its last record only: what it is not told, because it takes over within the
//!    interval, it does not notice.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Done, Pipeline};
use crate::postgres::lane::PartitionBatch;
use crate::postgres::ledger::{Assigned, Stop};

/// When partitions that gave no answer are asked about again. Longer leaves another topic unnoticed for longer after
/// a broker was away; shorter makes connections to one that still is.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);

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
    /// Another record was seen there, once.
    doubted: bool,
}

impl Anchor {
    fn new(epoch: i64, at: Record) -> Self {
        Anchor { epoch, at, newest: at, doubted: false }
    }
}

pub(super) struct Anchors {
    of: BTreeMap<i32, Anchor>,
    /// When the brokers are asked next.
    due_at: Instant,
    asking: bool,
}

impl Anchors {
    pub fn new(now: Instant) -> Self {
        Anchors { of: BTreeMap::new(), due_at: now, asking: false }
    }

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
            match owned.last_record_hash.map(|hash| (owned.persist_frontier - 1, hash)) {
                Some(record) => self.of.insert(owned.partition, Anchor::new(owned.epoch, record)),
                None => self.of.remove(&owned.partition),
            };
        }
    }

    /// Something suggests that the topic is not what it was.
    pub fn ask_soon(&mut self) {
        self.ask_by(Instant::now());
    }

    fn ask_by(&mut self, at: Instant) {
        self.due_at = self.due_at.min(at);
    }

    /// A batch was committed.
    pub fn persisted(&mut self, batch: &PartitionBatch) {
        let Some(hash) = batch.last_record_hash else { return };
        let newest = (batch.next - 1, hash);
        let first = Anchor::new(batch.epoch, newest);
        let anchor = self.of.entry(batch.partition).or_insert(first);
        if anchor.epoch == batch.epoch {
            anchor.newest = newest;
        }
    }

    /// An operator decides about the partition.
    pub fn stopped(&mut self, partition: i32) {
        self.of.remove(&partition);
    }

    /// Takes in what stands where an anchor was when it was asked about; true: another record, for certain.
    fn is_another(&mut self, partition: i32, asked: Anchor, found: Option<i64>) -> bool {
        let same = |now: &&mut Anchor| (now.epoch, now.at) == (asked.epoch, asked.at);
        let Some(anchor) = self.of.get_mut(&partition).filter(same) else { return false };
        if found.is_some_and(|hash| hash != asked.at.1) {
            let seen_twice = std::mem::replace(&mut anchor.doubted, true);
            self.ask_soon();
            return seen_twice;
        }
        // In its place, or gone by retention: then there is nothing to compare.
        (anchor.at, anchor.doubted) = (asked.newest, false);
        false
    }
}

impl Pipeline {
    /// Has the anchors read again, if it is time.
    pub(super) fn look_after_anchors(&mut self) {
        if self.anchors.asking || Instant::now() < self.anchors.due_at {
            return;
        }
        let owns =
            |id: &i32, anchor: &Anchor| self.partitions.get(id).is_some_and(|p| p.epoch == anchor.epoch);
        let anchors = self.anchors.of.iter().filter(|(id, anchor)| owns(id, anchor));
        let asked: BTreeMap<i32, Anchor> = anchors.map(|(id, anchor)| (*id, *anchor)).collect();
        self.anchors.due_at = Instant::now() + Duration::from_millis(self.config.kafka.metadata_refresh_ms);
        if asked.is_empty() {
            return;
        }
        self.anchors.asking = true;
        let broker = self.outside.broker.clone();
        self.tasks.start(async move {
            let wanted: Vec<(i32, i64)> = asked.iter().map(|(id, anchor)| (*id, anchor.at.0)).collect();
            let found = broker.fingerprints_at(&wanted).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot see whether the topic is still the same");
                BTreeMap::new()
            });
            Done::Anchored { asked, found }
        });
    }

    /// What the brokers have where the anchors were.
    pub(super) fn on_anchored(&mut self, asked: &BTreeMap<i32, Anchor>, found: &BTreeMap<i32, Option<i64>>) {
        self.anchors.asking = false;
        if found.len() < asked.len() {
            self.anchors.ask_by(Instant::now() + ASK_AGAIN_AFTER);
        }
        for (id, asked) in asked {
            let Some(found) = found.get(id) else { continue };
            let is_mine = self.partitions.get(id).is_some_and(|p| p.epoch == asked.epoch);
            if !is_mine || !self.anchors.is_another(*id, *asked, *found) {
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
        let mut anchors = Anchors::new(Instant::now() + Duration::from_secs(60));
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
        assert!(!anchors.is_another(PARTITION, asked, Some(55)), "it is read once more");
        assert!(anchors.due_at <= Instant::now());
        assert!(anchors.is_another(PARTITION, asked, Some(55)));
        assert!(!anchors.is_another(PARTITION, asked, None));
        assert_eq!(anchors.of[&PARTITION].at, (199, 2));
    }

    #[test]
    fn doubt_ends_with_the_record_in_its_place() {
        let mut anchors = anchors();
        let asked = anchors.of[&PARTITION];
        assert!(!anchors.is_another(PARTITION, asked, Some(55)));
        assert!(!anchors.is_another(PARTITION, asked, Some(1)));
        let asked = anchors.of[&PARTITION];
        assert_eq!((asked.at, asked.doubted), ((199, 2), false));
        assert!(!anchors.is_another(PARTITION, asked, Some(55)));
    }

    #[test]
    fn stays_while_nobody_else_has_the_partition() {
        let mut anchors = anchors();
        // Left and joined again, while the last batch was on its way.
        anchors.persisted(&batch(7, 300, 3));
        anchors.assigned(&assigned(owned(7, 300, Some(3)), owned(8, 300, Some(3))));
        assert_eq!(anchors.of[&PARTITION], Anchor { newest: (299, 3), ..Anchor::new(8, (99, 1)) });
        assert!(anchors.due_at <= Instant::now(), "it is to be compared soon");
        // Then another worker had it.
        anchors.assigned(&assigned(owned(9, 400, Some(4)), owned(10, 400, Some(4))));
        assert_eq!(anchors.of[&PARTITION], Anchor::new(10, (399, 4)));
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
