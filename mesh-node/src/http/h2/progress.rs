//! What the tasks of an HTTP/2 connection know of its transport: whether anything moves, whether what was queued
//! is written, and whether it ended in order.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::backlog::Backlog;
use crate::http::metered::Meter;
use crate::http::service::HttpService;

/// What the tasks of a connection's streams know of its transport.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Grows with every read and write; tells an idle connection.
    pub(super) activity: Cell<u64>,
    /// The transport took less than was to be written.
    blocked: Cell<bool>,
    /// The connection failed: the peer is given time to read why.
    pub(super) failed: Cell<bool>,
    ended: Cell<bool>,
    /// Times that all was written which the windows allow.
    flushes: Cell<u64>,
    connection: RefCell<Option<Waker>>,
    waiting: RefCell<Vec<Waker>>,
}

impl Progress {
    /// The connection's task has written what it could, and will be woken by `waker`.
    pub(super) fn written(&self, waker: &Waker) {
        let mut connection = self.connection.borrow_mut();
        if !connection.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *connection = Some(waker.clone());
        }
        if !self.blocked.get() {
            self.flushes.set(self.flushes.get() + 1);
            self.wake();
        }
    }

    /// The connection is over.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.wake();
    }

    fn wake(&self) {
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Returns once what is queued now is written, as far as the windows allow.
    pub(super) async fn flushed(&self) {
        let before = self.flushes.get();
        std::future::poll_fn(|cx| {
            if self.ended.get() || self.flushes.get() > before {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            if let Some(connection) = &*self.connection.borrow() {
                connection.wake_by_ref();
            }
            Poll::Pending
        })
        .await;
    }
}

/// Tells a service and its streams what goes over the wire of their connection.
pub(super) struct ServiceMeter<S> {
    pub(super) service: Rc<S>,
    pub(super) progress: Rc<Progress>,
    pub(super) backlog: Rc<Backlog>,
    /// How long a client may take to read why its connection failed.
    pub(super) linger: Option<Duration>,
}

impl<S> ServiceMeter<S> {
    fn active(&self) {
        self.progress.activity.set(self.progress.activity.get() + 1);
    }
}

impl<S: HttpService> Meter for ServiceMeter<S> {
    fn on_read(&self, bytes: &[u8]) {
        self.active();
        self.backlog.received(bytes);
        self.service.on_read(bytes.len());
    }

    fn on_written(&self, bytes: usize) {
        self.active();
        self.service.on_written(bytes);
    }

    fn on_write(&self, blocked: bool) {
        self.progress.blocked.set(blocked);
    }

    fn linger(&self) -> Option<Duration> {
        self.linger.filter(|_| self.progress.failed.get())
    }
}
