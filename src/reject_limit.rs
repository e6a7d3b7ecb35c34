//! The reject limits: a flood of bad events stops the worker before it drains the topic into the DLQ.
//!
//! The counts belong to the partition and live in the ledger, so that a restarted worker refuses at
//! once. "The last `window` records" are the running half of the window and the full half before it.

/// What the limits are.
#[derive(Clone, Copy, Debug)]
pub struct RejectLimits {
    /// Rejects in a row.
    pub run_max: i64,
    /// Share of rejects among the last `window` records.
    pub ratio_max: f64,
    pub window: i32,
}

/// A partition's counts up to an offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RejectWindow {
    pub run: i64,
    pub records: i32,
    pub rejects: i32,
    pub previous_rejects: i32,
}

impl RejectWindow {
    /// Counts one record.
    pub fn count(&mut self, rejected: bool, limits: &RejectLimits) {
        if self.records >= limits.window / 2 {
            self.previous_rejects = self.rejects;
            self.records = 0;
            self.rejects = 0;
        }
        self.records += 1;
        if rejected {
            self.run += 1;
            self.rejects += 1;
        } else {
            self.run = 0;
        }
    }

    /// Which limit is exceeded, in words.
    pub fn exceeds(&self, limits: &RejectLimits) -> Option<String> {
        if self.run > limits.run_max {
            return Some(format!("{} rejects in a row (limit {})", self.run, limits.run_max));
        }
        let rejects = i64::from(self.rejects) + i64::from(self.previous_rejects);
        let most = limits.ratio_max * f64::from(limits.window);
        (rejects as f64 > most).then(|| {
            format!(
                "{rejects} rejects among the last {} records (limit {:.0} %)",
                limits.window,
                limits.ratio_max * 100.0
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RejectLimits = RejectLimits { run_max: 10, ratio_max: 0.2, window: 100 };

    fn counted(pattern: impl IntoIterator<Item = bool>) -> RejectWindow {
        let mut window = RejectWindow::default();
        pattern.into_iter().for_each(|rejected| window.count(rejected, &LIMITS));
        window
    }

    #[test]
    fn a_run_is_counted_from_the_last_good_record() {
        assert!(counted(vec![true; 10]).exceeds(&LIMITS).is_none());
        assert!(counted(vec![true; 11]).exceeds(&LIMITS).is_some());
        let broken = (0..40).map(|i| i % 11 != 10);
        assert_eq!(counted(broken).run, 7);
    }

    #[test]
    fn a_share_above_the_limit_is_seen_and_forgotten_a_window_later() {
        let every_fourth = (0..100).map(|i| i % 4 == 0);
        assert!(counted(every_fourth.clone()).exceeds(&LIMITS).is_some());
        assert!(counted((0..100).map(|i| i % 10 == 0)).exceeds(&LIMITS).is_none());
        assert!(counted(every_fourth.chain((0..101).map(|_| false))).exceeds(&LIMITS).is_none());
    }
}
