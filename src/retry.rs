//! The one retry policy: exponential, capped, with full jitter.

use std::cell::RefCell;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

thread_local! {
    static JITTER: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// Makes the waits of this thread a function of a seed: a simulation is run again by it.
pub fn seed_jitter(seed: u64) {
    JITTER.set(SmallRng::seed_from_u64(seed));
}

/// Waits longer after each failure, at random, so that many workers do not come back at once.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Backoff { first, longest, next: first }
    }

    /// The next wait: between half and all of a span that doubles up to the longest.
    pub fn next_wait(&mut self) -> Duration {
        let span = self.next;
        self.next = (span * 2).min(self.longest);
        span.mul_f64(JITTER.with_borrow_mut(|jitter| jitter.random_range(0.5..=1.0)))
    }

    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_wait()).await;
    }

    /// After a success: the next failure starts over.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400));
        for span_ms in [100u64, 200, 400, 400] {
            let wait = backoff.next_wait();
            assert!(wait >= Duration::from_millis(span_ms / 2), "{wait:?} of {span_ms}");
            assert!(wait <= Duration::from_millis(span_ms), "{wait:?} of {span_ms}");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }
}
