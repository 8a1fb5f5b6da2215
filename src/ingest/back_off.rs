use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Delays between attempts: doubling from the first to the longest, each shortened by up to half at random so that
/// clients of one broker do not come back in step.
#[derive(Debug)]
pub(crate) struct BackOff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl BackOff {
    /// Starts with `first`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// Returns how long to wait now; the next wait is twice as long.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.longest);
        // The standard library seeds this hasher at random; it is the only randomness needed here.
        let random = RandomState::new().hash_one(delay) >> 32;
        delay.mul_f64(1.0 - random as f64 / f64::from(u32::MAX) / 2.0)
    }

    /// Starts again from the first delay.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_start_again_after_a_reset() {
        let mut back_off = BackOff::new(Duration::from_millis(100), Duration::from_secs(1));
        for full_ms in [100, 200, 400, 800, 1_000, 1_000] {
            let delay = back_off.next_delay();
            let full = Duration::from_millis(full_ms);
            assert!(delay >= full / 2 - Duration::from_nanos(1) && delay <= full, "{delay:?} of {full:?}");
        }
        back_off.reset();
        assert!(back_off.next_delay() <= Duration::from_millis(100));
    }

    #[test]
    fn two_clients_do_not_wait_equally_long() {
        let wait = || BackOff::new(Duration::from_secs(10), Duration::from_secs(10)).next_delay();
        let first = wait();
        assert!((0..100).any(|_| wait() != first));
    }
}
