//! Retries in other priorities than those that were tried (`envoy.retry_priorities.previous_priorities`).
//!
//! Kept for one request. It only computes shares of the load; who serves in a priority is chosen as ever.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::priority::{Counts, Loads};

/// What the tries of a request have seen of priorities.
#[derive(Debug)]
pub struct Spread {
    /// `update_frequency`: after so many tries the shares are computed anew.
    every: usize,
    seen: RefCell<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    tried: Vec<usize>,
    left_out: BTreeSet<usize>,
    loads: Option<Loads>,
}

impl Spread {
    pub fn new(every: usize) -> Self {
        Self { every: every.max(1), seen: RefCell::default() }
    }

    /// A host of this priority was chosen.
    pub(super) fn note(&self, priority: usize) {
        self.seen.borrow_mut().tried.push(priority);
    }

    /// The shares for the next try; `None`: as for any request.
    pub(super) fn loads(&self, counts: &[Counts], overprovisioning_percent: u32) -> Option<Loads> {
        let mut seen = self.seen.borrow_mut();
        let seen = &mut *seen;
        if seen.tried.len() < self.every {
            return None;
        }
        if seen.tried.len().is_multiple_of(self.every) {
            seen.left_out.extend(&seen.tried);
            seen.loads = Loads::without(&seen.left_out, counts, overprovisioning_percent).or_else(|| {
                // None is left: it begins again.
                seen.left_out.clear();
                seen.tried.clear();
                Loads::without(&seen.left_out, counts, overprovisioning_percent)
            });
        }
        seen.loads.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(healthy: &[usize]) -> Vec<Counts> {
        healthy.iter().map(|healthy| Counts { all: 2, healthy: *healthy, ..Counts::default() }).collect()
    }

    #[test]
    fn priorities_that_were_tried_come_last_as_in_envoys_example() {
        let counts = counts(&[2, 0, 1]);
        let spread = Spread::new(1);
        assert!(spread.loads(&counts, 100).is_none());
        let next = || spread.loads(&counts, 100).unwrap().choose(7).unwrap().priority();
        for (tried, then) in [(0, 2), (2, 0), (0, 2)] {
            spread.note(tried);
            assert_eq!(next(), then);
        }
    }

    #[test]
    fn shares_change_only_so_often_and_not_at_all_where_nobody_serves() {
        let spread = Spread::new(2);
        let good = counts(&[2, 2]);
        spread.note(0);
        assert!(spread.loads(&good, 140).is_none());
        spread.note(0);
        assert_eq!(spread.loads(&good, 140).unwrap().choose(5).unwrap().priority(), 1);
        let none = Spread::new(1);
        none.note(0);
        assert!(none.loads(&counts(&[0, 0]), 140).is_none());
    }
}
