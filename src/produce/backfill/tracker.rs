//! Which lines are done, in order: what a later run may rely on.
//!
//! What this module guarantees: a mark says that every line up to it is in the topic or was left out, and for each
//! partition an offset below which no later line lies. That rests on the producer's order: what it sends to a
//! partition lies there in the order of the lines.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use super::lines::Position;

/// By partition, the first offset at which a later line can lie.
pub type Offsets = BTreeMap<i32, i64>;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mark {
    pub position: Position,
    pub offsets: Offsets,
    pub delivered: u64,
    pub left_out: u64,
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
    failure: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Slot {
    Sent,
    Delivered { partition: i32, offset: i64 },
    LeftOut,
}

impl Tracker {
    pub fn new(mark: Mark) -> Self {
        Self { state: Mutex::new(State { mark, ..State::default() }) }
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

    pub fn failed(&self, line: u64, error: &str) {
        self.lock().failure.get_or_insert_with(|| format!("line {line}: {error}"));
    }

    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    pub fn mark(&self) -> Mark {
        self.lock().mark.clone()
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
        let tracker = Tracker::new(Mark { offsets: Offsets::from([(0, 100), (1, 50)]), ..Mark::default() });
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
        let tracker = Tracker::new(mark);
        tracker.present(at(1001), 2, 7);
        tracker.sent(at(1002));
        tracker.sent(at(1003));
        tracker.not_sent();
        tracker.delivered(1002, 2, 8);
        let mark = tracker.mark();
        assert_eq!((mark.position.lines, mark.delivered, mark.offsets[&2]), (1002, 992, 9));
        assert_eq!(tracker.open(), 0);
    }

    #[test]
    fn the_first_failure_is_kept() {
        let tracker = Tracker::default();
        tracker.failed(7, "timed out");
        tracker.failed(8, "later");
        assert_eq!(tracker.failure().unwrap(), "line 7: timed out");
    }
}
