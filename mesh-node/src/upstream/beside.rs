//! What applications send each other past a connection that is copied here: it is told how far the copy is,
//! and what it carried counts as if it had been copied.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::copy::Moved;
use crate::drain::Signal;
use crate::model::workload::{HandOff, PastProxy};

/// Counters are brought up to date this often: while busy, and at most while idle.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));
/// The first time is soon: most connections of which all goes past the proxy do so from the beginning.
const FIRST_LOOK: Duration = Duration::from_millis(100);

/// A connection that may be handed off.
#[derive(Debug)]
pub struct Beside {
    hand_off: Box<dyn HandOff>,
    /// Once it has begun all goes through the proxy.
    drain: Arc<Signal>,
    counted: Moved,
    due: Instant,
    pause: Duration,
    /// When it was last looked, everything went past the copy, and nothing was copied since.
    carries_all: bool,
}

impl Beside {
    pub fn new(hand_off: Box<dyn HandOff>, drain: Arc<Signal>) -> Self {
        let due = Instant::now() + FIRST_LOOK;
        Self { hand_off, drain, counted: Moved::default(), due, pause: FIRST_LOOK, carries_all: false }
    }

    /// Something was copied, or is going to be.
    pub(super) fn copied(&mut self) {
        self.carries_all = false;
    }

    /// Whether the copy has nothing to do, as it seems.
    pub(super) fn carries_all(&self) -> bool {
        self.carries_all
    }

    /// Nothing is held back by the copy, which has moved so much.
    pub(super) fn all_written(&self, moved: Moved) {
        self.hand_off.all_written(moved.received, moved.sent);
    }

    /// When it wants to be looked at again.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// What was sent since it was last asked, if it is time to ask again.
    pub(super) fn look(&mut self, now: Instant) -> Moved {
        if now < self.due {
            return Moved::default();
        }
        if self.drain.started() {
            self.hand_off.end();
        }
        let new = self.news();
        let idle = new == Moved::default();
        self.pause = if idle { (self.pause * 2).min(LOOK.1) } else { LOOK.0 };
        self.carries_all |= !idle;
        self.due = now + self.pause;
        new
    }

    /// What was sent since it was last asked.
    fn news(&mut self) -> Moved {
        let PastProxy { received, sent, .. } = self.hand_off.past_proxy();
        let new = Moved { received: received - self.counted.received, sent: sent - self.counted.sent };
        self.counted = Moved { received, sent };
        new
    }

    /// When something last went past the proxy.
    pub(super) fn last(&self) -> Option<Instant> {
        Instant::now().checked_sub(self.hand_off.past_proxy().quiet?)
    }

    /// What was sent since it was last asked; from now on all goes through the proxy.
    pub fn finish(&mut self) -> Moved {
        self.hand_off.end();
        self.news()
    }
}
