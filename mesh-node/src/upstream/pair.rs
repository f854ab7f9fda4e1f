//! A pair of streams for as long as it lasts: bytes are copied both ways (`copy.rs`), what goes beside is counted,
//! and limits of time end it. Holds no more than it needs, since most connections wait most of the time.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::Beside;
use super::copy::{Direction, End, Meters, Moved, Side};
use crate::budget::Purse;
use crate::stream::Bare;

/// How long a pair of streams may last.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Without a byte in either direction.
    pub idle: Option<Duration>,
    /// In all.
    pub duration: Option<Duration>,
}

/// Two streams between which bytes are copied until both directions have ended, one has failed, or a limit is met.
pub struct Pair {
    out: Direction,
    back: Direction,
    beside: Option<Beside>,
    moved: Moved,
    idle: Option<Duration>,
    until: Option<Instant>,
    /// When something was last copied; kept only where there is an idle timeout.
    last: Instant,
    /// Of all that there is to wait for beside bytes. Armed anew only when it fires, never per byte.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Pair {
    /// Buffers count in `purse`; what goes `beside` counts as copied.
    pub fn new(limits: Limits, purse: Option<Rc<Purse>>, beside: Option<Beside>) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            out: Direction::new(purse.clone()),
            back: Direction::new(purse),
            beside,
            moved: Moved::default(),
            idle: limits.idle,
            until: limits.duration.and_then(|limit| now.checked_add(limit)),
            last: now,
            alarm: None,
        };
        pair.alarm = pair.next_alarm().map(|at| Box::pin(tokio::time::sleep_until(at)));
        pair
    }

    /// Copies what there is to copy. Ready: how the pair ended.
    pub fn poll<D, U>(
        &mut self,
        cx: &mut Context<'_>,
        downstream: &mut D,
        upstream: &mut U,
        meters: Meters<'_>,
    ) -> Poll<End>
    where
        D: AsyncRead + AsyncWrite + Bare + Unpin,
        U: AsyncRead + AsyncWrite + Bare + Unpin,
    {
        let before = (self.out.total, self.back.total);
        let sent = self.out.poll(cx, downstream, upstream);
        let answered = self.back.poll(cx, upstream, downstream);
        let new = Moved { received: self.out.total - before.0, sent: self.back.total - before.1 };
        if new != Moved::default() {
            if self.idle.is_some() {
                self.last = Instant::now();
            }
            self.count(new, meters);
            if let Some(beside) = &mut self.beside {
                beside.copied();
            }
        }
        if let Some(beside) = &mut self.beside
            && self.out.is_empty()
            && self.back.is_empty()
        {
            beside.all_written(Moved { received: self.out.total, sent: self.back.total });
        }
        match (sent, answered) {
            (Poll::Ready(Err(Side::Reader(e))), _) | (_, Poll::Ready(Err(Side::Writer(e)))) => {
                Poll::Ready(End::Downstream(e))
            }
            (Poll::Ready(Err(Side::Writer(e))), _) | (_, Poll::Ready(Err(Side::Reader(e)))) => {
                Poll::Ready(End::Upstream(e))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Finished),
            _ => self.poll_alarm(cx, meters),
        }
    }

    /// Counts what is not counted yet, and says what went through in all, past the copy too; from now on nothing does.
    pub fn finish(&mut self, meters: Meters<'_>) -> Moved {
        if let Some(mut beside) = self.beside.take() {
            self.count(beside.finish(), meters);
        }
        self.moved
    }

    fn count(&mut self, new: Moved, meters: Meters<'_>) {
        self.moved.received += new.received;
        self.moved.sent += new.sent;
        meters.count(new);
    }

    /// Whether there is nothing to copy and, as it seems, will not be for a while: what there is goes beside.
    pub fn may_rest(&self) -> bool {
        self.beside.as_ref().is_some_and(Beside::carries_all)
            && self.out.only_waits()
            && self.back.only_waits()
    }

    /// Something has come while it rested, which may not be seen at once.
    pub fn stirred(&mut self) {
        self.alarm = self.next_alarm().map(|at| Box::pin(tokio::time::sleep_until(at)));
        if let Some(beside) = &mut self.beside {
            beside.copied();
        }
    }

    /// Begins to rest: time is somebody else's business. Returns when it is to be [looked](Self::look) at.
    pub fn lay_down(&mut self) -> Option<Instant> {
        self.alarm = None;
        self.next_alarm()
    }

    /// What there is to do from time to time. Returns how the pair ended.
    pub fn look(&mut self, meters: Meters<'_>) -> Option<End> {
        let now = Instant::now();
        if let Some(beside) = &mut self.beside {
            let new = beside.look(now);
            self.last = beside.last().map_or(self.last, |last| last.max(self.last));
            self.count(new, meters);
        }
        if self.idle_end().is_some_and(|end| end <= now) {
            return Some(End::Idle);
        }
        self.until.is_some_and(|until| until <= now).then_some(End::Duration)
    }

    fn poll_alarm(&mut self, cx: &mut Context<'_>, meters: Meters<'_>) -> Poll<End> {
        while let Some(alarm) = &mut self.alarm {
            ready!(alarm.as_mut().poll(cx));
            if let Some(end) = self.look(meters) {
                return Poll::Ready(end);
            }
            match (self.next_alarm(), &mut self.alarm) {
                (Some(at), Some(alarm)) => alarm.as_mut().reset(at),
                _ => self.alarm = None,
            }
        }
        Poll::Pending
    }

    fn idle_end(&self) -> Option<Instant> {
        self.last.checked_add(self.idle?)
    }

    /// When it is to be looked at next.
    pub fn next_alarm(&self) -> Option<Instant> {
        let look = self.beside.as_ref().map(Beside::due);
        [self.idle_end(), self.until, look].into_iter().flatten().min()
    }
}
