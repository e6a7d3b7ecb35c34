//! Where partitions are fetched from: begun again at an offset, or at one that the broker lacks.
//!
//! 1. A partition begins again under a number of its own, so that what was polled of it before is told apart.
//! 2. An offset that the broker lacks is reported with its partition, or the group is joined again: the record before
//!    the frontier is compared then.
//! 3. Only a position that the client lost over something unreadable is taken up where it was: nothing was passed.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{Poller, SourceEvent};
use crate::failpoint::failpoint;

/// How long after it could not read something the client is made to fetch again. Longer leaves a partition without a
/// reader after one bad transfer; shorter asks the brokers about every partition again and again if the log is bad.
const FETCH_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How soon after it could not read something the client loses its position over it, by the next fetch at the latest.
/// Longer takes another loss for this one; shorter does not outlast a slow fetch.
const LOST_WITHIN: Duration = Duration::from_secs(10);

impl Poller {
    pub(super) fn restart(&mut self, partition: i32, offset: i64) {
        let assigned = self.consumer.assignment();
        if assigned.is_ok_and(|list| list.find_partition(&self.topic, partition).is_none()) {
            // The group has taken it meanwhile. Given again, it begins where the ledger says.
            return;
        }
        self.hand_over();
        self.held.remove(&partition);
        let context = self.consumer.context().clone();
        context.set_stopped(partition, false);
        let begun = self.begin_again(&[(partition, offset)]).and_then(|list| self.consumer.resume(&list));
        match begun {
            Ok(()) => {
                self.next.insert(partition, offset);
                let assignment = context.next_assignment();
                self.chunk.assignment = assignment;
                let _ = self.end.events.send(SourceEvent::Restarted { partition, assignment });
                if self.paused {
                    self.set_paused(true);
                }
            }
            Err(error) => {
                tracing::warn!(partition, %error, "cannot begin the partition again: joining the group again");
                context.ask_rejoin();
            }
        }
    }

    /// Fetches partitions from these offsets on. What is paused stays so.
    fn begin_again(&self, starts: &[(i32, i64)]) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(starts.len());
        for (partition, offset) in starts {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset))?;
        }
        self.consumer.incremental_unassign(&list)?;
        failpoint!(blocking "restart.in-poll-thread");
        self.consumer.incremental_assign(&list)?;
        Ok(list)
    }

    /// The client does not say which partition is out of range: compare each with its broker.
    pub(super) fn find_out_of_range(&mut self) {
        let was_unreadable = self.unreadable_at.take().is_some_and(|at| at.elapsed() < LOST_WITHIN);
        let context = self.consumer.context().clone();
        if context.is_rejoin_asked() {
            return;
        }
        let Ok(assigned) = self.consumer.assignment() else { return };
        if assigned.count() == 0 {
            return; // of positions that were given up
        }
        let mut found = false;
        for element in assigned.elements() {
            let partition = element.partition();
            let Some(&at) = self.next.get(&partition) else { continue };
            if context.is_stopped(partition) {
                continue;
            }
            match self.consumer.fetch_watermarks(&self.topic, partition, Duration::from_secs(5)) {
                Ok((low, high)) if low > at || high < at => {
                    found = true;
                    context.set_stopped(partition, true);
                    self.hold(partition, true);
                    self.held.remove(&partition);
                    self.hand_over();
                    let event = SourceEvent::OutOfRange { partition, next: at, low, high };
                    let _ = self.end.events.send(event);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(partition, %error, "cannot ask for the offsets"),
            }
        }
        if found {
            return;
        }
        // The fetch position is lost and its partition unknown.
        if was_unreadable {
            // Looking for the next batch in the midst of a bad one, the client takes any bytes for an offset. With a
            // new assignment it would be forgotten how often that was.
            tracing::warn!("the client lost its position over something unreadable: it is to fetch again");
            self.fetch_again_at = Some(Instant::now() + FETCH_AGAIN_AFTER);
        } else {
            // Not here: the client reports each partition by itself, and who leaves hears the next report.
            tracing::warn!("an offset was out of range, but no partition is: joining the group again");
            context.ask_rejoin();
        }
    }

    /// Fetches every partition again from where it is: one of them has lost its position.
    pub(super) fn fetch_again_if_due(&mut self) {
        if self.fetch_again_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.fetch_again_at = None;
        let context = self.consumer.context().clone();
        let Ok(assigned) = self.consumer.assignment() else { return };
        let starts: Vec<(i32, i64)> = assigned
            .elements()
            .iter()
            .map(rdkafka::topic_partition_list::TopicPartitionListElem::partition)
            .filter(|partition| !context.is_stopped(*partition))
            .filter_map(|partition| Some((partition, *self.next.get(&partition)?)))
            .collect();
        if starts.is_empty() {
            return;
        }
        if let Err(error) = self.begin_again(&starts) {
            tracing::warn!(%error, "cannot fetch again: joining the group again");
            context.ask_rejoin();
        }
    }
}
