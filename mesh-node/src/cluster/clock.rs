//! Time as counted by hosts: milliseconds since the process began to count, small enough for an atomic.

use std::sync::OnceLock;

use tokio::time::Instant;

/// Milliseconds since [`origin`]. Follows tokio's clock, which tests may stop.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(Instant::now().saturating_duration_since(origin()).as_millis()).unwrap_or(u64::MAX)
}

/// When counting began.
pub(crate) fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}
