//! How long to wait before the next attempt: longer after each failure, and never all nodes at once.

use std::time::Duration;

/// Exponential with full jitter.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits are random below `base`, then below twice that, and so on, at most `max`.
    pub fn new(base: Duration, max: Duration) -> Self {
        Self { base, max: max.max(base), failures: 0 }
    }

    /// The wait after one more failure. `random` is any number.
    pub fn failed(&mut self, random: u64) -> Duration {
        let doubled = self.base.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        let bound = u64::try_from(doubled.min(self.max).as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(1 + random % bound)
    }

    /// It worked: the next failure waits as the first did.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}
