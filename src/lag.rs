//! How a partition's lag is to be read: a small steady lag is well, a large one that shrinks is well too,
//! a frontier that stands still before waiting records is not.
//!
//! 1. A pure function of a window of commits; it asks nobody and knows no clock.
//! 2. The verdict depends on what changed, not on a threshold of records that somebody has to guess.
//!
//! The rules are those of Burrow (LinkedIn's consumer-lag checker, `core/internal/evaluator`), so that
//! whoever knows its states knows these. Two are our own: a frontier that lies outside of what the partition has.

use std::collections::VecDeque;

/// How many commits are looked at. Fewer call a hiccup a stop; more notice a stop later (a window of ten
/// at one observation in ten seconds is a little under two minutes).
pub const WINDOW: usize = 10;

/// One commit as it was seen: when, the frontier, and how many records waited behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// When the frontier was reached, ms.
    pub at_ms: i64,
    /// First offset that is not yet done.
    pub frontier: i64,
    /// Records from the frontier to the end of the partition, at that time.
    pub lag: u64,
}

/// What a partition's lag means. The numbers up to 6 are Burrow's and go out as a gauge; they grow with severity. Those past it
/// are told by `feed-worker lag` only: a worker stops such a partition, and its gauge says [`LagStatus::Stop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LagStatus {
    /// Nothing waits, or what waits was caught up with inside the window.
    Ok = 1,
    /// Work goes on, but the lag never fell inside the window.
    Warn = 2,
    /// Records wait, and no commit has come for longer than the window lasted.
    Stop = 4,
    /// Commits come, but of the same offset, while records wait.
    Stall = 5,
    /// The frontier went back.
    Rewind = 6,
    /// The broker no longer has the records from the frontier on: they are gone unread.
    Gap = 7,
    /// The frontier is past the partition's end: the topic was created anew, or has lost records.
    Ahead = 8,
}

impl LagStatus {
    /// As it stands in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            LagStatus::Ok => "OK",
            LagStatus::Warn => "WARN",
            LagStatus::Stop => "STOP",
            LagStatus::Stall => "STALL",
            LagStatus::Rewind => "REWIND",
            LagStatus::Gap => "GAP",
            LagStatus::Ahead => "AHEAD",
        }
    }

    /// What one look at a partition that has the offsets `[low, end)` tells, and no count of records does: the
    /// frontier lies outside of them. The worker stops a partition for it, under the same name.
    pub fn out_of_bounds(frontier: i64, low: i64, end: i64) -> Option<LagStatus> {
        match () {
            () if frontier > end => Some(LagStatus::Ahead),
            () if frontier < low => Some(LagStatus::Gap),
            () => None,
        }
    }
}

/// The commits that count, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Window(VecDeque<Observation>);

impl Window {
    /// Adds a commit; the oldest falls out.
    pub fn push(&mut self, observation: Observation) {
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(observation);
    }

    /// The verdict at `now_ms`, while `lag` records wait.
    pub fn status(&self, now_ms: i64, lag: u64) -> LagStatus {
        let (Some(first), Some(last)) = (self.0.front(), self.0.back()) else { return LagStatus::Ok };
        if lag == 0 {
            return LagStatus::Ok;
        }
        if self.pairs().any(|(before, after)| after.frontier < before.frontier) {
            return LagStatus::Rewind;
        }
        let is_full = self.0.len() == WINDOW;
        // A window of two commits in a millisecond says nothing about how often they come.
        if is_full && now_ms - last.at_ms > last.at_ms - first.at_ms {
            return LagStatus::Stop;
        }
        if !is_full || self.0.iter().any(|o| o.lag == 0) {
            return LagStatus::Ok;
        }
        if first.frontier == last.frontier {
            return LagStatus::Stall;
        }
        if self.pairs().all(|(before, after)| after.lag >= before.lag) {
            return LagStatus::Warn;
        }
        LagStatus::Ok
    }

    fn pairs(&self) -> impl Iterator<Item = (&Observation, &Observation)> {
        self.0.iter().zip(self.0.iter().skip(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(observations: impl IntoIterator<Item = (i64, i64, u64)>) -> Window {
        let mut window = Window::default();
        for (at_ms, frontier, lag) in observations {
            window.push(Observation { at_ms, frontier, lag });
        }
        window
    }

    #[test]
    fn each_state_has_its_window() {
        let steps = 0..10_i64;
        let moving = window(steps.clone().map(|n| (n * 1000, n * 10, 100 - n.unsigned_abs())));
        assert_eq!(moving.status(9500, 91), LagStatus::Ok, "the lag shrinks");
        assert_eq!(moving.status(18_001, 91), LagStatus::Stop, "no commit for longer than the window lasted");
        assert_eq!(moving.status(18_001, 0), LagStatus::Ok, "nothing waits");
        let falling_behind = window(steps.clone().map(|n| (n * 1000, n * 10, 100 + n.unsigned_abs())));
        assert_eq!(falling_behind.status(9500, 110), LagStatus::Warn);
        let standing = window(steps.clone().map(|n| (n * 1000, 7, 100)));
        assert_eq!(standing.status(9500, 100), LagStatus::Stall);
        let back = window(steps.clone().map(|n| (n * 1000, if n == 5 { 3 } else { n * 10 }, 100)));
        assert_eq!(back.status(9500, 100), LagStatus::Rewind);
        let once_zero = window(steps.map(|n| (n * 1000, 7, u64::from(n != 4))));
        assert_eq!(once_zero.status(9500, 1), LagStatus::Ok, "it was caught up with inside the window");
    }

    #[test]
    fn a_frontier_outside_of_the_partition_is_no_lag() {
        assert_eq!(LagStatus::out_of_bounds(300, 450, 600), Some(LagStatus::Gap), "retention overtook it");
        assert_eq!(LagStatus::out_of_bounds(300, 600, 600), Some(LagStatus::Gap), "and nothing came since");
        assert_eq!(LagStatus::out_of_bounds(300, 0, 100), Some(LagStatus::Ahead), "created anew");
        for (frontier, low, end) in
            [(0, 0, 0), (300, 300, 300), (300, 300, 600), (450, 300, 600), (600, 300, 600)]
        {
            assert_eq!(LagStatus::out_of_bounds(frontier, low, end), None);
        }
    }

    #[test]
    fn too_little_says_nothing() {
        assert_eq!(Window::default().status(0, 100), LagStatus::Ok);
        assert_eq!(window((0..9).map(|n| (n, 7, 100))).status(1_000_000, 100), LagStatus::Ok);
    }

    fn observations() -> impl Strategy<Value = Vec<(i64, i64, u64)>> {
        prop::collection::vec((1..5000_i64, 0..50_i64, 0..200_u64), 1..30).prop_map(|steps| {
            let (mut at, mut frontier) = (0, 0);
            let step = |(ms, moved, lag)| {
                at += ms;
                frontier += moved;
                (at, frontier, lag)
            };
            steps.into_iter().map(step).collect()
        })
    }

    proptest! {
        #[test]
        fn no_lag_is_never_an_alarm(observations in observations(), later_ms in 0..1_000_000_i64) {
            let last = observations.last().map_or(0, |o| o.0);
            prop_assert_eq!(window(observations).status(last + later_ms, 0), LagStatus::Ok);
        }

        #[test]
        fn a_frontier_that_only_grows_never_rewinds(observations in observations(), later_ms in 0..1_000_000_i64, lag in 1..100_u64) {
            let last = observations.last().map_or(0, |o| o.0);
            prop_assert_ne!(window(observations).status(last + later_ms, lag), LagStatus::Rewind);
        }

        #[test]
        fn silence_ends_as_a_stop(observations in observations(), lag in 1..100_u64) {
            prop_assume!(observations.len() >= WINDOW);
            let last = observations.last().map_or(0, |o| o.0);
            prop_assert_eq!(window(observations).status(last * 2 + 1, lag), LagStatus::Stop);
        }

        #[test]
        fn only_the_last_commits_count(old in observations(), later_ms in 0..1_000_000_i64, lag in 0..100_u64) {
            // The same ten last commits give the same verdict, whatever came before them.
            let kept: Vec<_> = old.iter().rev().take(WINDOW).rev().copied().collect();
            prop_assume!(kept.len() == WINDOW);
            let now = kept[WINDOW - 1].0 + later_ms;
            prop_assert_eq!(window(old).status(now, lag), window(kept).status(now, lag));
        }
    }
}
