//! Interim responses (1xx) on their way from an upstream codec to a downstream one.
//!
//! They cross the stages between as an extension of the request, and only where the connection manager passes
//! them on (`proxy_100_continue`), so that the common path knows nothing of them.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use http::{HeaderMap, StatusCode};

/// Takes interim responses for the client of a request. Found in the request's extensions.
#[derive(Debug, Clone, Default)]
pub struct Informational(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    responses: Vec<(StatusCode, HeaderMap)>,
    waker: Option<Waker>,
}

impl Informational {
    /// Hands one over; it is written before the final response.
    pub fn send(&self, status: StatusCode, headers: HeaderMap) {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.responses.push((status, headers));
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }

    /// What was sent since the last call; `waker` learns of the next.
    pub(super) fn take(&self, waker: &Waker) -> Vec<(StatusCode, HeaderMap)> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.waker = Some(waker.clone());
        std::mem::take(&mut queue.responses)
    }
}
