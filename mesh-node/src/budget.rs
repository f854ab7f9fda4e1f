//! Bytes that the proxy holds for one workload, and what happens when they are too many.
//!
//! Exists so that one pod whose peers read slowly cannot take the memory of its neighbours. A [`Budget`] is
//! shared by all workers; each takes its part in steps and keeps count in its own [`Purse`], so that a read or a
//! write costs an addition and no atomic operation. What holds bytes (a copy buffer, a connection's buffers, a
//! body kept for retries) says how many in a [`Held`].
//!
//! At three quarters of the limit reads get small, bodies are no longer kept for retries, and reading ahead of a
//! slow receiver stops: backpressure. At the limit new connections and requests of the workload are refused.
//! What a holder has already is never taken away, so the limit is exceeded by what the connections that are
//! open then need to go on at all: a small piece each.
//!
//! Not counted: what the kernel holds, TLS records under way, and the small fixed cost of a connection. Those are
//! bounded by `max_connections`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// What a worker takes of a budget at once, at most.
const MAX_STEP: usize = 128 << 10;
/// At least this many steps are in a budget, so that many workers can share it.
const STEPS: usize = 256;
/// A workload that goes up and down around its limit is logged this often.
const WARN_SECONDS: u64 = 60;

/// The bytes that may be held for one workload, and those that are. Shared by all workers.
#[derive(Debug)]
pub struct Budget {
    /// Names the workload in the log.
    name: Box<str>,
    /// `usize::MAX`: no limit.
    max: usize,
    /// From here on there is backpressure.
    pressure: usize,
    step: usize,
    /// Taken by purses, in steps.
    granted: AtomicUsize,
    waits: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
    warned_at_s: AtomicU64,
    refusals: Refusals,
}

/// What was refused to a workload for want of room, by reason.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Times that backpressure began.
    pub pressed: AtomicU64,
    /// New connections, reset.
    pub connections: AtomicU64,
    /// New requests, answered 503.
    pub requests: AtomicU64,
    /// Request bodies that were no longer kept for retries.
    pub retries: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new("", 0)
    }
}

impl Budget {
    /// A budget of `max` bytes for the workload of this name; 0 is no limit.
    pub fn new(name: &str, max: usize) -> Self {
        let max = if max == 0 { usize::MAX } else { max };
        Self {
            name: name.into(),
            max,
            pressure: max - max / 4,
            step: (max / STEPS).clamp(1, MAX_STEP),
            granted: AtomicUsize::new(0),
            waits: AtomicBool::new(false),
            waiting: Mutex::default(),
            warned_at_s: AtomicU64::new(0),
            refusals: Refusals::default(),
        }
    }

    /// The limit in bytes; 0 is none.
    pub fn max(&self) -> usize {
        if self.max == usize::MAX { 0 } else { self.max }
    }

    /// Bytes held now, in the coarse steps in which workers take them.
    pub fn buffered(&self) -> usize {
        self.granted.load(Ordering::Relaxed)
    }

    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// At the limit: a connection that begins now is refused.
    pub fn is_full(&self) -> bool {
        self.buffered() >= self.max
    }

    fn take(&self, bytes: usize) {
        let before = self.granted.fetch_add(bytes, Ordering::Relaxed);
        if before < self.pressure && before + bytes >= self.pressure {
            self.refusals.pressed.fetch_add(1, Ordering::Relaxed);
            self.warn();
        }
    }

    fn give_back(&self, bytes: usize) {
        // In one order with `waits`: either the waiter sees the room or this sees the waiter.
        let left = self.granted.fetch_sub(bytes, Ordering::SeqCst) - bytes;
        if left < self.max && self.waits.load(Ordering::SeqCst) {
            self.waits.store(false, Ordering::SeqCst);
            let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Ready when there is room below the limit.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_full() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        self.waits.store(true, Ordering::SeqCst);
        if self.granted.load(Ordering::SeqCst) < self.max { Poll::Ready(()) } else { Poll::Pending }
    }

    fn warn(&self) {
        static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
        let now = BEGIN.elapsed().as_secs() + WARN_SECONDS;
        let last = self.warned_at_s.load(Ordering::Relaxed);
        if now < last + WARN_SECONDS {
            return;
        }
        self.warned_at_s.store(now, Ordering::Relaxed);
        tracing::warn!(
            "pod {}: {} bytes are buffered, near its max_buffered_bytes ({}): its connections are read in small \
             pieces, and refused at the limit; peers of it read too slowly, or the limit is too small",
            self.name,
            self.buffered(),
            self.max
        );
    }
}

thread_local! {
    /// This worker's purses, by the address of their budget, which they keep alive.
    static PURSES: RefCell<HashMap<usize, Weak<Purse>>> = RefCell::default();
}

/// One worker's part of a budget.
#[derive(Debug)]
pub struct Purse {
    budget: Arc<Budget>,
    used: Cell<usize>,
    granted: Cell<usize>,
}

impl Purse {
    /// This worker's purse of `budget`.
    pub fn of(budget: &Arc<Budget>) -> Rc<Self> {
        let key = Arc::as_ptr(budget) as usize;
        PURSES.with_borrow_mut(|purses| {
            if let Some(purse) = purses.get(&key).and_then(Weak::upgrade) {
                return purse;
            }
            let purse = Rc::new(Self { budget: budget.clone(), used: Cell::new(0), granted: Cell::new(0) });
            purses.insert(key, Rc::downgrade(&purse));
            purse
        })
    }

    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Bytes held by this worker.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Near the limit: hold little, keep nothing that is not needed.
    pub fn is_pressed(&self) -> bool {
        self.budget.buffered() >= self.budget.pressure
    }

    /// Ready when the workload is below its limit. Wakes when it is again.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.budget.poll_room(cx)
    }

    /// Counts bytes that are held from now on.
    pub fn add(&self, bytes: usize) {
        let used = self.used.get() + bytes;
        self.used.set(used);
        if used > self.granted.get() {
            let more = (used - self.granted.get()).div_ceil(self.budget.step) * self.budget.step;
            self.granted.set(self.granted.get() + more);
            self.budget.take(more);
        }
    }

    /// Counts bytes that are no longer held.
    pub fn sub(&self, bytes: usize) {
        let used = self.used.get() - bytes;
        self.used.set(used);
        // Two steps stay, so that one buffer that comes and goes stays this worker's own matter.
        let spare = 2 * self.budget.step;
        let surplus = self.granted.get() - used;
        if surplus > spare {
            let back = (surplus - spare).div_ceil(self.budget.step) * self.budget.step;
            self.granted.set(self.granted.get() - back);
            self.budget.give_back(back);
        }
    }
}

impl Drop for Purse {
    fn drop(&mut self) {
        self.budget.give_back(self.granted.get());
        let key = Arc::as_ptr(&self.budget) as usize;
        // At the end of a thread the map may be gone already.
        let _ = PURSES.try_with(|purses| {
            let mut purses = purses.borrow_mut();
            if purses.get(&key).is_some_and(|purse| purse.strong_count() == 0) {
                purses.remove(&key);
            }
        });
    }
}

/// Bytes that one holder has, counted in its workload's purse. Without a purse (a connection of no workload)
/// nothing is counted.
#[derive(Debug, Default)]
pub struct Held {
    purse: Option<Rc<Purse>>,
    bytes: Cell<usize>,
}

impl Held {
    pub fn new(purse: Option<Rc<Purse>>) -> Self {
        Self { purse, bytes: Cell::new(0) }
    }

    /// The holder has this many bytes now.
    pub fn set(&self, bytes: usize) {
        let before = self.bytes.get();
        if bytes == before {
            return;
        }
        let Some(purse) = &self.purse else { return };
        self.bytes.set(bytes);
        if bytes > before { purse.add(bytes - before) } else { purse.sub(before - bytes) }
    }

    pub fn is_pressed(&self) -> bool {
        self.purse.as_ref().is_some_and(|purse| purse.is_pressed())
    }

    pub fn purse(&self) -> Option<&Rc<Purse>> {
        self.purse.as_ref()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;

    use super::*;

    const KIB: usize = 1 << 10;

    fn budget(kib: usize) -> Arc<Budget> {
        Arc::new(Budget::new("ns/pod", kib * KIB))
    }

    fn held(budget: &Arc<Budget>, bytes: usize) -> Held {
        let held = Held::new(Some(Purse::of(budget)));
        held.set(bytes);
        held
    }

    #[test]
    fn what_all_workers_hold_counts_together_and_nothing_is_left_of_it_at_the_end() {
        let budget = budget(1024);
        let here = held(&budget, 500 * KIB);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let there = held(&budget, 300 * KIB);
                assert_eq!(budget.buffered(), 800 * KIB);
                assert!(there.is_pressed() && !budget.is_full());
                there.set(524 * KIB);
                assert!(budget.is_full());
            });
        });
        assert_eq!(budget.buffered(), 500 * KIB);
        assert!(!here.is_pressed());
        assert_eq!(budget.refusals().pressed.load(Ordering::Relaxed), 1);
        drop(here);
        assert_eq!(budget.buffered(), 0);
        PURSES.with_borrow(|purses| assert!(purses.is_empty()));
    }

    #[test]
    fn a_buffer_that_comes_and_goes_does_not_touch_what_workers_share() {
        let budget = budget(64 * KIB);
        let one = held(&budget, 64 * KIB);
        let granted = budget.buffered();
        for _ in 0..100 {
            one.set(0);
            one.set(64 * KIB);
            assert_eq!(budget.buffered(), granted);
        }
    }

    #[test]
    fn without_a_limit_bytes_are_counted_and_nothing_is_refused() {
        let budget = budget(0);
        let held = held(&budget, 1 << 40);
        assert!(!held.is_pressed() && !budget.is_full());
        assert!(budget.buffered() >= 1 << 40);
        assert_eq!(budget.max(), 0);
    }

    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_waits_for_room_is_woken_when_there_is_some() {
        let budget = budget(1024);
        let held = held(&budget, 1024 * KIB);
        let purse = Purse::of(&budget);
        let woken = Arc::new(Count(AtomicU32::new(0)));
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        assert!(purse.poll_room(&mut context).is_pending());
        assert!(purse.poll_room(&mut context).is_pending());
        held.set(900 * KIB);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(purse.poll_room(&mut context).is_ready());
    }
}
