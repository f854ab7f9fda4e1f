//! What applications send each other past a connection that is copied here: it is told how far the copy is,
//! and what it carried counts as if it had been copied.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::copy::Moved;
use crate::drain::Signal;
use crate::model::workload::{HandOff, PastProxy};

/// Counters are brought up to date this often: at once busy, at most idle.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));

/// A connection that may be handed off.
#[derive(Debug)]
pub struct Beside {
    hand_off: Box<dyn HandOff>,
    /// Once it has begun all goes through the proxy.
    drain: Arc<Signal>,
    counted: Moved,
    due: Instant,
    pause: Duration,
}

impl Beside {
    pub fn new(hand_off: Box<dyn HandOff>, drain: Arc<Signal>) -> Self {
        Self { hand_off, drain, counted: Moved::default(), due: Instant::now() + LOOK.0, pause: LOOK.0 }
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
