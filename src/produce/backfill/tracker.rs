//! Which lines are done, in order: what a later run may rely on.
//!
//! What this module guarantees: a mark says that every line up to it is in the topic or was left out, and for each
//! partition an offset below which no later line lies. What one run sends to a partition lies there in the order of
//! the lines; what an earlier run has sent may lie before them (a line of its own that failed is sent again behind the
//! later ones), so its places are remembered until the mark has passed their lines.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use rdkafka::error::KafkaError;

use super::doubles::Unchecked;
use super::lines::Position;

/// By partition, the first offset at which a later line can lie.
pub type Offsets = BTreeMap<i32, i64>;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mark {
    pub position: Position,
    pub offsets: Offsets,
    pub delivered: u64,
    pub left_out: u64,
    /// Lines that lie in the topic twice, as far as was looked.
    pub doubles: u64,
    pub unchecked: Option<Unchecked>,
}

/// Filled by the sending thread and by delivery reports.
#[derive(Debug, Default)]
pub struct Tracker {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The lines after the mark.
    open: VecDeque<(Position, Slot)>,
    mark: Mark,
    /// Where an earlier run's lines after the mark lie.
    present: BTreeMap<u64, (i32, i64)>,
    failure: Option<(u64, KafkaError)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Slot {
    Sent,
    Delivered { partition: i32, offset: i64 },
    LeftOut,
}

impl Tracker {
    pub fn new(mark: Mark, present: BTreeMap<u64, (i32, i64)>) -> Self {
        Self { state: Mutex::new(State { mark, present, ..State::default() }) }
    }

    /// To be called before the client gets the line: its report may be faster than the caller.
    pub fn sent(&self, position: Position) {
        self.lock().open.push_back((position, Slot::Sent));
    }

    /// The line that was noted last did not go to the client after all.
    pub fn not_sent(&self) {
        self.lock().open.pop_back();
    }

    pub fn left_out(&self, position: Position) {
        let mut state = self.lock();
        state.open.push_back((position, Slot::LeftOut));
        state.advance();
    }

    /// A line that an earlier run has sent.
    pub fn present(&self, position: Position, partition: i32, offset: i64) {
        let mut state = self.lock();
        state.open.push_back((position, Slot::Delivered { partition, offset }));
        state.advance();
    }

    pub fn delivered(&self, line: u64, partition: i32, offset: i64) {
        let mut state = self.lock();
        let first = state.mark.position.lines + 1;
        let at = usize::try_from(line.saturating_sub(first)).unwrap_or(usize::MAX);
        if let Some((_, slot)) = state.open.get_mut(at) {
            *slot = Slot::Delivered { partition, offset };
        }
        state.advance();
    }

    pub fn failed(&self, line: u64, error: &KafkaError) {
        self.lock().failure.get_or_insert_with(|| (line, error.clone()));
    }

    pub fn failure(&self) -> Option<(u64, KafkaError)> {
        self.lock().failure.clone()
    }

    pub fn mark(&self) -> Mark {
        let state = self.lock();
        let mut mark = state.mark.clone();
        for (partition, offset) in state.present.values() {
            if let Some(first) = mark.offsets.get_mut(partition) {
                *first = (*first).min(*offset);
            }
        }
        mark
    }

    /// What lies in the topic twice was looked for.
    pub fn checked(&self, doubles: u64) {
        let mut state = self.lock();
        state.mark.doubles += doubles;
        state.mark.unchecked = None;
    }

    /// How many lines stand after the mark.
    pub fn open(&self) -> usize {
        self.lock().open.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Every step leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn advance(&mut self) {
        while let Some((_, slot)) = self.open.front() {
            match *slot {
                Slot::Sent => return,
                Slot::LeftOut => self.mark.left_out += 1,
                Slot::Delivered { partition, offset } => {
                    self.mark.delivered += 1;
                    let next = self.mark.offsets.entry(partition).or_insert(0);
                    *next = (*next).max(offset + 1);
                }
            }
            if let Some((position, _)) = self.open.pop_front() {
                self.present.remove(&position.lines);
                self.mark.position = position;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lines: u64) -> Position {
        Position { lines, bytes: lines * 10, ..Position::default() }
    }

    #[test]
    fn the_mark_passes_a_line_only_when_all_before_it_are_done() {
        let offsets = Offsets::from([(0, 100), (1, 50)]);
        let tracker = Tracker::new(Mark { offsets, ..Mark::default() }, BTreeMap::new());
        for line in 1..=5 {
            if line == 2 {
                tracker.left_out(at(line));
            } else {
                tracker.sent(at(line));
            }
        }
        tracker.delivered(4, 1, 50);
        tracker.delivered(3, 0, 101);
        assert_eq!(tracker.mark().position.lines, 0);
        // Line 1 is not done: the offsets do not move either.
        assert_eq!(tracker.mark().offsets, Offsets::from([(0, 100), (1, 50)]));
        tracker.delivered(1, 0, 100);
        let mark = tracker.mark();
        assert_eq!((mark.position.lines, mark.delivered, mark.left_out), (4, 3, 1));
        assert_eq!(mark.offsets, Offsets::from([(0, 102), (1, 51)]));
        assert_eq!(tracker.open(), 1);
    }

    #[test]
    fn a_later_run_goes_on_with_the_numbers_of_the_input() {
        let mark = Mark { position: at(1000), delivered: 990, left_out: 10, ..Mark::default() };
        let tracker = Tracker::new(mark, BTreeMap::from([(1001, (2, 7))]));
        tracker.present(at(1001), 2, 7);
        tracker.sent(at(1002));
        tracker.sent(at(1003));
        tracker.not_sent();
        tracker.delivered(1002, 2, 8);
        let mark = tracker.mark();
        assert_eq!((mark.position.lines, mark.delivered, mark.offsets[&2]), (1002, 992, 9));
        assert_eq!(tracker.open(), 0);
    }

    /// Line 1 failed, line 2 was delivered, the run ended. The next one sends line 1 behind line 2, and is killed.
    #[test]
    fn a_mark_does_not_pass_a_later_line_of_an_earlier_run() {
        let offsets = Offsets::from([(0, 50), (1, 20)]);
        let tracker = Tracker::new(Mark { offsets, ..Mark::default() }, BTreeMap::from([(2, (0, 50))]));
        tracker.sent(at(1));
        tracker.delivered(1, 0, 60);
        let mark = tracker.mark();
        assert_eq!(mark.position.lines, 1);
        assert_eq!(
            mark.offsets,
            Offsets::from([(0, 50), (1, 20)]),
            "line 2 would not be found, and sent again"
        );
        tracker.present(at(2), 0, 50);
        assert_eq!((tracker.mark().position.lines, tracker.mark().offsets[&0]), (2, 61));
    }

    #[test]
    fn the_first_failure_is_kept() {
        use rdkafka::types::RDKafkaErrorCode::{MessageSizeTooLarge, MessageTimedOut};
        let tracker = Tracker::default();
        tracker.failed(7, &KafkaError::MessageProduction(MessageTimedOut));
        tracker.failed(8, &KafkaError::MessageProduction(MessageSizeTooLarge));
        assert_eq!(tracker.failure(), Some((7, KafkaError::MessageProduction(MessageTimedOut))));
    }
}
