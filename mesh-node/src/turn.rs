//! A turn: what a worker does at one connection before it looks at the next.
//!
//! A request asks for the time some twelve times, at little more than one moment: within a turn the clock is read
//! once. So times within a turn are one time; what takes long without waiting (a script) says so by [`went_on`].
//! A leaf with `unsafe` in it: it knows nothing of connections.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

thread_local! {
    static TURN: Turn = const {
        Turn { under_way: Cell::new(false), now: Cell::new(None), wall: Cell::new(None) }
    };
}

/// The turn of a thread.
struct Turn {
    under_way: Cell<bool>,
    now: Cell<Option<Instant>>,
    wall: Cell<Option<SystemTime>>,
}

/// The time of this turn; outside of any, the time. By the runtime's clock, which tests may stop.
pub fn now() -> Instant {
    TURN.with(|turn| match turn.now.get() {
        Some(now) => now,
        None => {
            let now = tokio::time::Instant::now().into_std();
            turn.now.set(turn.under_way.get().then_some(now));
            now
        }
    })
}

/// The same by the calendar.
pub fn wall() -> SystemTime {
    TURN.with(|turn| match turn.wall.get() {
        Some(wall) => wall,
        None => {
            let wall = SystemTime::now();
            turn.wall.set(turn.under_way.get().then_some(wall));
            wall
        }
    })
}

/// How long ago `earlier` was in this turn.
pub fn since(earlier: Instant) -> Duration {
    now().saturating_duration_since(earlier)
}

/// Time has passed since the turn began: it is to be read anew.
pub fn went_on() {
    TURN.with(|turn| {
        turn.now.set(None);
        turn.wall.set(None);
    });
}

/// A future, each poll of which is a turn.
pub struct Each<F>(F);

impl<F> Each<F> {
    pub fn new(future: F) -> Self {
        Self(future)
    }
}

impl<F: Future> Future for Each<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: the field is pinned with the whole: it is reached in no other way, and not moved before it is dropped.
        let future = unsafe { self.map_unchecked_mut(|each| &mut each.0) };
        take(|| future.poll(cx))
    }
}

/// Takes a turn.
fn take<T>(work: impl FnOnce() -> T) -> T {
    struct Ended;
    impl Drop for Ended {
        fn drop(&mut self) {
            TURN.with(|turn| turn.under_way.set(false));
            went_on();
        }
    }
    TURN.with(|turn| turn.under_way.set(true));
    went_on();
    let _ended = Ended;
    work()
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(2);

    /// Both clocks, after a moment.
    fn later() -> (Instant, SystemTime) {
        sleep(MOMENT);
        (now(), wall())
    }

    #[test]
    fn a_request_has_one_time_within_a_turn_and_later_ones_in_the_next_and_outside() {
        let before = (now(), wall());
        let first = take(|| {
            let first = later();
            assert_eq!(later(), first);
            assert_eq!(since(first.0), Duration::ZERO);
            first
        });
        assert!(first.0 >= before.0 + MOMENT && first.1 != before.1);
        let second = take(later);
        assert!(second.0 >= first.0 + MOMENT && second.1 != first.1, "the time of the turn before");
        let outside = later();
        assert!(outside.0 > second.0 && outside.1 != second.1, "a turn that is over keeps its time");
        assert!(later().0 > outside.0);
    }

    #[test]
    fn what_takes_long_within_a_turn_is_seen_in_times_when_it_says_so() {
        take(|| {
            let begin = now();
            sleep(MOMENT);
            went_on();
            assert!(since(begin) >= MOMENT);
        });
    }
}
