//! Deadlines of streams without the cost of a timer per request.
//!
//! Almost no deadline is ever reached. A worker keeps armed timers for reuse: one that fires before its stream's
//! deadline is armed again for it, so that a stream usually only hands its waker to a timer that is armed already.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;

/// Timers kept for reuse per worker. More streams at once than this pay for a timer of their own.
const KEPT: usize = 256;

/// The armed timers of a worker that no stream uses now.
#[derive(Debug, Default, Clone)]
pub struct Timers(Rc<RefCell<Vec<Pin<Box<Sleep>>>>>);

/// Wakes its task no later than a deadline that may move.
#[derive(Debug)]
pub struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    home: Timers,
}

impl Timers {
    pub fn timer(&self) -> Timer {
        Timer { sleep: None, home: self.clone() }
    }
}

impl Timer {
    /// Ready once `deadline` has passed; else the task is woken at the deadline or (seldom) before.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| {
            let kept = self.home.0.borrow_mut().pop();
            kept.unwrap_or_else(|| Box::pin(tokio::time::sleep_until(deadline.into())))
        });
        if sleep.deadline().into_std() > deadline {
            sleep.as_mut().reset(deadline.into());
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if tokio::time::Instant::now().into_std() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline.into());
        }
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(sleep) = self.sleep.take()
            && !sleep.is_elapsed()
        {
            let mut kept = self.home.0.borrow_mut();
            if kept.len() < KEPT {
                kept.push(sleep);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reused_timer_keeps_the_deadline_of_its_new_stream() {
        let timers = Timers::default();
        let start = tokio::time::Instant::now().into_std();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (armed_for, deadline) in [(5, 9), (30, 12)] {
            let mut first = timers.timer();
            poll_fn(|cx| Poll::Ready(first.poll(cx, at(armed_for)).is_ready())).await;
            drop(first);
            let mut second = timers.timer();
            poll_fn(|cx| second.poll(cx, at(deadline))).await;
            assert_eq!(tokio::time::Instant::now().into_std(), at(deadline));
        }
    }
}
