//! One timer per connection, for whichever deadline is next.
//!
//! A deadline that moves further away, as it does with every request, costs a store: the timer of the runtime
//! is only moved when it fires and finds that it is not time yet.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::turn;

#[derive(Debug, Default)]
pub(super) struct Timer {
    deadline: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Sets the deadline; `None` is never.
    pub(super) fn after(&mut self, delay: Option<Duration>) {
        self.deadline = delay.and_then(|delay| Instant::from_std(turn::now()).checked_add(delay));
    }

    /// Moves the deadline nearer if it is further than that.
    pub(super) fn at_most(&mut self, delay: Duration) {
        let latest = Instant::from_std(turn::now()) + delay;
        self.deadline = Some(self.deadline.map_or(latest, |deadline| deadline.min(latest)));
    }

    /// Ready once the deadline has passed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if deadline < sleep.deadline() {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
