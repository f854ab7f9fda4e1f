//! The enrolled pods by address, as workers see them: for connections between two of them that need no socket.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::model::workload::Workload;

/// A connection that only asks the network is accepted within this time, or never.
const KNOCK: Duration = Duration::from_secs(30);

type Pods = HashMap<IpAddr, Arc<Workload>, ahash::RandomState>;

/// Shared by the manager, who keeps it, and the workers.
#[derive(Debug, Default, Clone)]
pub struct Addresses(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    pods: ArcSwap<Pods>,
    /// Our own ends of connections that are made to learn whether the network lets them through, and when that
    /// was. They concern nobody.
    knocks: Mutex<HashMap<SocketAddr, Instant, ahash::RandomState>>,
}

impl Addresses {
    pub(super) fn set(&self, pods: Pods) {
        self.0.pods.store(Arc::new(pods));
    }

    /// The enrolled pod that has this address.
    pub fn pod(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        self.0.pods.load().get(&ip).cloned()
    }

    /// A connection from `source` is about to be made that only asks the network.
    pub fn expect_knock(&self, source: SocketAddr) {
        let mut knocks = self.0.knocks.lock().unwrap_or_else(PoisonError::into_inner);
        knocks.retain(|_, since| since.elapsed() < KNOCK);
        knocks.insert(source, Instant::now());
    }

    /// Is the accepted connection from `source` such a one? To be asked once of each.
    pub fn is_knock(&self, source: SocketAddr) -> bool {
        self.0.knocks.lock().unwrap_or_else(PoisonError::into_inner).remove(&source).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_only_asks_is_told_from_the_next_of_the_same_address() {
        let addresses = Addresses::default();
        let source = SocketAddr::from(([10, 0, 0, 1], 40000));
        assert!(!addresses.is_knock(source));
        addresses.expect_knock(source);
        assert!(addresses.is_knock(source));
        assert!(!addresses.is_knock(source));
    }
}
