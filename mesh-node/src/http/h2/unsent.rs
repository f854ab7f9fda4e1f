//! Bytes that are queued for sending over HTTP/2, counted for their workload until they are written.
//!
//! `h2` keeps what a stream has queued until windows and transport take it, and tells nobody how much that is. So
//! each piece is handed over inside an owner, which is dropped with it however it goes: written, reset, or with its
//! connection. `Bytes` may be sent to other threads, so the owner only names its stream by a number; the counts
//! stay with the worker, and are plain.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::budget::{Held, Purse};

/// The first piece of a stream goes uncounted up to this size: most messages are small and alone, and are a
/// part of what a stream costs.
const UNCOUNTED: usize = 4 << 10;

thread_local! {
    static QUEUES: RefCell<HashMap<u64, Queue, ahash::RandomState>> = RefCell::default();
    static NEXT: Cell<u64> = const { Cell::new(0) };
}

/// What one stream has queued.
struct Queue {
    held: Held,
    bytes: usize,
    /// Waits until all is written.
    sender: Option<Waker>,
    /// More may be queued.
    open: bool,
}

/// The sending side of one stream.
#[derive(Debug)]
pub(super) struct Unsent {
    purse: Option<Rc<Purse>>,
    begun: bool,
    queue: Option<u64>,
}

impl Unsent {
    pub(super) fn new(purse: Option<Rc<Purse>>) -> Self {
        Self { purse, begun: false, queue: None }
    }

    /// May more be read to be sent? Near the workload's limit only when nothing of this stream is unsent.
    pub(super) fn poll_turn(&self, cx: &Context<'_>) -> Poll<()> {
        let (Some(key), Some(purse)) = (self.queue, &self.purse) else { return Poll::Ready(()) };
        if !purse.is_pressed() {
            return Poll::Ready(());
        }
        QUEUES.with_borrow_mut(|queues| match queues.get_mut(&key) {
            Some(queue) if queue.bytes > 0 => {
                queue.sender = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
    }

    /// The same bytes, counted until they are dropped.
    pub(super) fn count(&mut self, data: Bytes) -> Bytes {
        let Some(purse) = &self.purse else { return data };
        let first = !std::mem::replace(&mut self.begun, true);
        if data.is_empty() || (first && data.len() <= UNCOUNTED) {
            return data;
        }
        let key = *self.queue.get_or_insert_with(|| {
            let key = NEXT.get();
            NEXT.set(key + 1);
            key
        });
        QUEUES.with_borrow_mut(|queues| {
            let queue = queues.entry(key).or_insert_with(|| Queue {
                held: Held::new(Some(purse.clone())),
                bytes: 0,
                sender: None,
                open: true,
            });
            queue.bytes += data.len();
            queue.held.set(queue.bytes);
        });
        Bytes::from_owner(Piece { data, queue: key })
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        let Some(key) = self.queue else { return };
        // At the end of a thread the map may be gone already.
        let _ = QUEUES.try_with(|queues| {
            let mut queues = queues.borrow_mut();
            if let Some(queue) = queues.get_mut(&key) {
                queue.open = false;
                if queue.bytes == 0 {
                    queues.remove(&key);
                }
            }
        });
    }
}

/// Queued bytes.
struct Piece {
    data: Bytes,
    queue: u64,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let sender = QUEUES.try_with(|queues| {
            let mut queues = queues.borrow_mut();
            let queue = queues.get_mut(&self.queue)?;
            queue.bytes -= self.data.len();
            queue.held.set(queue.bytes);
            if queue.bytes > 0 {
                return None;
            }
            let sender = queue.sender.take();
            if !queue.open {
                queues.remove(&self.queue);
            }
            sender
        });
        if let Ok(Some(sender)) = sender {
            sender.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::budget::Budget;

    #[test]
    fn queued_bytes_count_until_they_are_dropped_even_after_their_stream() {
        let budget = Arc::new(Budget::new("ns/pod", 1 << 20));
        let purse = Purse::of(&budget);
        let mut unsent = Unsent::new(Some(purse.clone()));
        let small = unsent.count(Bytes::from_static(b"small"));
        assert_eq!((small.as_ref(), purse.used()), (&b"small"[..], 0));
        let mut context = Context::from_waker(Waker::noop());
        let first = unsent.count(Bytes::from(vec![1; 500_000]));
        assert!(unsent.poll_turn(&context).is_ready(), "there is room");
        let second = unsent.count(Bytes::from(vec![2; 400_000]));
        assert_eq!(purse.used(), 900_000);
        assert!(unsent.poll_turn(&context).is_pending(), "near the limit");
        drop(first);
        assert!(Unsent::new(Some(purse.clone())).poll_turn(&context).is_ready(), "another stream begins");
        drop(unsent);
        assert_eq!(purse.used(), 400_000);
        // What h2 does with a piece that it sends in parts.
        let rest = second.slice(100..);
        drop(second);
        assert_eq!(purse.used(), 400_000);
        drop(rest);
        assert_eq!(purse.used(), 0);
        QUEUES.with_borrow(|queues| assert!(queues.is_empty()));
        let _ = &mut context;
    }
}
