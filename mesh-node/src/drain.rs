//! Tells connections that they should end: their listener is replaced or removed, or the process stops.
//!
//! A drained connection finishes what it is doing: HTTP answers with `Connection: close` or GOAWAY, TCP runs
//! to its end or to the drain time.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// A one-way signal, shared by everything that one listener accepted.
#[derive(Debug, Default)]
pub struct Signal {
    started: AtomicBool,
    waiters: Notify,
}

impl Signal {
    /// Starts the drain; again is the same.
    pub fn start(&self) {
        self.started.store(true, Ordering::Release);
        self.waiters.notify_waiters();
    }

    /// Has the drain begun? One load: may be asked per request.
    pub fn started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// Returns when the drain begins.
    pub async fn wait(&self) {
        let waiting = self.waiters.notified();
        tokio::pin!(waiting);
        // Registered before the flag is read, so that a start between the two is not missed.
        waiting.as_mut().enable();
        if !self.started() {
            waiting.await;
        }
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
}
