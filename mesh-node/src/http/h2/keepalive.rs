//! `connection_keepalive`: asks the peer with a PING now and then, and tells when it does not answer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// The PINGs of one connection.
pub(super) struct KeepAlive {
    pings: PingPong,
    interval: Duration,
    timeout: Duration,
    /// To the next PING, or to the end of our patience with the last one.
    sleep: Pin<Box<Sleep>>,
    waiting: bool,
}

impl KeepAlive {
    /// `None` where the options ask for none.
    pub(super) fn new(options: Option<(Duration, Duration)>, pings: Option<PingPong>) -> Option<Self> {
        let ((interval, timeout), pings) = options.zip(pings)?;
        Some(Self { pings, interval, timeout, sleep: Box::pin(sleep(interval)), waiting: false })
    }

    /// Ready when a PING was not answered in time, or cannot be sent any more.
    pub(super) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.waiting && self.pings.poll_pong(cx).is_ready() {
                self.waiting = false;
                self.sleep.as_mut().reset(Instant::now() + self.interval);
            }
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.waiting || self.pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Ready(());
            }
            self.waiting = true;
            self.sleep.as_mut().reset(Instant::now() + self.timeout);
        }
    }
}
