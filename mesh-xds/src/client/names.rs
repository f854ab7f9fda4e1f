//! Equal names and versions are one string in the whole process.
//!
//! A node has a stream for each pod, and nearly all of them hold the same thousands of names: each would
//! otherwise keep its own copy. Nothing else may depend on two strings being the same one.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

static KNOWN: Mutex<Pool> = Mutex::new(Pool { strings: None, sweep_at: FIRST_SWEEP });

/// Strings that nobody holds leave when there are twice as many as after the last sweep.
const FIRST_SWEEP: usize = 1024;

struct Pool {
    strings: Option<HashSet<Arc<str>>>,
    sweep_at: usize,
}

/// The process's one copy of `text`.
pub fn shared(text: &str) -> Arc<str> {
    let mut pool = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let Pool { strings, sweep_at } = &mut *pool;
    let strings = strings.get_or_insert_default();
    if let Some(known) = strings.get(text) {
        return known.clone();
    }
    if strings.len() >= *sweep_at {
        strings.retain(|string| Arc::strong_count(string) > 1);
        strings.shrink_to_fit();
        *sweep_at = FIRST_SWEEP.max(strings.len() * 2);
    }
    let new: Arc<str> = text.into();
    strings.insert(new.clone());
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_one_and_those_of_nobody_do_not_pile_up() {
        let kept: Vec<_> = (0..10).map(|n| shared(&format!("kept-{n}"))).collect();
        for n in 0..100_000 {
            shared(&format!("gone-{n}"));
        }
        assert!(kept.iter().enumerate().all(|(n, k)| Arc::ptr_eq(k, &shared(&format!("kept-{n}")))));
        let pool = KNOWN.lock().unwrap();
        assert!(pool.strings.as_ref().unwrap().len() < 20_000);
    }
}
