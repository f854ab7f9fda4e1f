//! Earliest deadline first: picks entries in proportion to their weights, spread evenly over time.
//!
//! The rule is Envoy's `EdfScheduler`: an entry of weight w is due every 1/w; of those due at the same
//! time, the one that was put in first goes first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A schedule over entry indices `0..n`.
#[derive(Debug, Default)]
pub(crate) struct Edf {
    now: f64,
    order: u64,
    queue: BinaryHeap<Entry>,
}

#[derive(Debug)]
struct Entry {
    deadline: f64,
    order: u64,
    index: usize,
}

impl Ord for Entry {
    /// Reversed: the heap's greatest is the entry that is due first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl Edf {
    /// A schedule in the state after about `picks` picks, so that workers do not all begin at the same
    /// entry. Entries without weight are never picked.
    pub(crate) fn new(weights: impl IntoIterator<Item = f64>, picks: u64) -> Self {
        let weights: Vec<f64> = weights.into_iter().collect();
        let total: f64 = weights.iter().filter(|w| **w > 0.0).sum();
        let mut edf = Self::default();
        if total <= 0.0 {
            return edf;
        }
        // Whole picks of each entry at once, in one pass; what rounding leaves (fewer than there are
        // entries) one by one.
        let mut done = 0;
        for (index, weight) in weights.iter().copied().enumerate().filter(|(_, w)| *w > 0.0) {
            let earlier = (picks as f64 * weight / total).floor();
            done += earlier as u64;
            edf.push((earlier + 1.0) / weight, index);
        }
        for _ in done..picks {
            edf.pick(|index| weights[index]);
        }
        edf
    }

    /// The entry that is due; it is due again after 1/`weight`.
    pub(crate) fn pick(&mut self, weight: impl FnOnce(usize) -> f64) -> Option<usize> {
        let entry = self.queue.pop()?;
        self.now = entry.deadline;
        // A weight that has become 0 must not stop the clock for ever.
        let weight = weight(entry.index).max(f64::MIN_POSITIVE);
        self.push(self.now + 1.0 / weight, entry.index);
        Some(entry.index)
    }

    fn push(&mut self, deadline: f64, index: usize) {
        self.queue.push(Entry { deadline, order: self.order, index });
        self.order += 1;
    }
}
