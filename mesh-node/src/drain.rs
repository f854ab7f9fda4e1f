//! Tells connections that they should end: their listener is replaced or removed, their pod leaves the mesh, or
//! the process stops.
//!
//! A drained connection finishes what it is doing: HTTP answers with `Connection: close` or GOAWAY, TCP runs
//! to its end or to the drain time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::Notify;

/// A one-way signal, shared by everything that one listener accepted, or one pod has open.
#[derive(Debug, Default)]
pub struct Signal {
    started: AtomicBool,
    waiters: Notify,
    /// Signals that are this one too, and have no such themselves.
    also: [Option<Arc<Signal>>; 2],
}

impl Signal {
    /// Starts when one of the two does. The connections of one thread share it.
    pub fn either(one: &Arc<Signal>, other: &Arc<Signal>) -> Arc<Self> {
        type Shared = HashMap<[*const Signal; 2], Weak<Signal>, ahash::RandomState>;
        thread_local! {
            static SHARED: RefCell<Shared> = RefCell::default();
        }
        // One that lives keeps both alive, so that no other can have their addresses.
        let both = [Arc::as_ptr(one), Arc::as_ptr(other)];
        SHARED.with_borrow_mut(|shared| {
            if let Some(signal) = shared.get(&both).and_then(Weak::upgrade) {
                return signal;
            }
            shared.retain(|_, signal| signal.strong_count() > 0);
            let signal = Arc::new(Self { also: [Some(one.clone()), Some(other.clone())], ..Self::default() });
            shared.insert(both, Arc::downgrade(&signal));
            signal
        })
    }

    /// Starts the drain; again is the same.
    pub fn start(&self) {
        self.started.store(true, Ordering::Release);
        self.waiters.notify_waiters();
    }

    /// Has the drain begun? A few loads: may be asked per request.
    pub fn started(&self) -> bool {
        self.own_started() || self.also.iter().flatten().any(|signal| signal.own_started())
    }

    /// Returns when the drain begins.
    pub async fn wait(&self) {
        let [one, other] = &self.also;
        tokio::select! {
            () = self.wait_own() => {}
            () = wait_other(one) => {}
            () = wait_other(other) => {}
        }
    }

    fn own_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    async fn wait_own(&self) {
        let waiting = self.waiters.notified();
        tokio::pin!(waiting);
        // Registered before the flag is read, so that a start between the two is not missed.
        waiting.as_mut().enable();
        if !self.own_started() {
            waiting.await;
        }
    }
}

async fn wait_other(signal: &Option<Arc<Signal>>) {
    match signal {
        Some(signal) => signal.wait_own().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_waits_and_one_that_comes_late_both_learn_of_the_drain() {
        let signal = std::sync::Arc::new(Signal::default());
        let waiting = tokio::spawn({
            let signal = signal.clone();
            async move { signal.wait().await }
        });
        tokio::task::yield_now().await;
        assert!(!signal.started());
        signal.start();
        waiting.await.unwrap();
        signal.wait().await;
        assert!(signal.started());
    }

    #[tokio::test]
    async fn a_connection_drains_with_its_listener_and_with_its_pod() {
        for first in [true, false] {
            let [listener, pod] = [(); 2].map(|()| Arc::new(Signal::default()));
            let connection = Signal::either(&listener, &pod);
            assert!(Arc::ptr_eq(&connection, &Signal::either(&listener, &pod)));
            assert!(!Arc::ptr_eq(&connection, &Signal::either(&pod, &listener)));
            let waiting = tokio::spawn({
                let connection = connection.clone();
                async move { connection.wait().await }
            });
            tokio::task::yield_now().await;
            assert!(!connection.started());
            if first {
                listener.start()
            } else {
                pod.start()
            }
            waiting.await.unwrap();
            assert!(connection.started());
        }
    }
}
