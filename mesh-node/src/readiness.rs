//! Whether the node is ready, and if not, what it waits for.
//!
//! Each task that must finish first holds a guard; dropping the guard says "this is ready".

use std::sync::{Arc, Mutex, PoisonError};

/// What is not ready yet.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    waiting_for: Arc<Mutex<Vec<&'static str>>>,
}

/// Held by a task until what it stands for is ready.
#[derive(Debug)]
#[must_use = "dropping the guard says that the task is ready"]
pub struct Guard {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Not ready until the guard is dropped.
    pub fn task(&self, name: &'static str) -> Guard {
        self.names().push(name);
        Guard { name, readiness: self.clone() }
    }

    /// The tasks that are not ready; empty means ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.names().clone()
    }

    fn names(&self) -> std::sync::MutexGuard<'_, Vec<&'static str>> {
        self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut names = self.readiness.names();
        if let Some(at) = names.iter().position(|n| *n == self.name) {
            names.remove(at);
        }
        tracing::debug!(task = self.name, still_waiting_for = ?*names, "ready");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_every_task_is() {
        let readiness = Readiness::default();
        let pods = readiness.task("pods");
        let config = readiness.task("configuration");
        drop(pods);
        assert_eq!(readiness.pending(), ["configuration"]);
        drop(config);
        assert!(readiness.pending().is_empty());
    }
}
