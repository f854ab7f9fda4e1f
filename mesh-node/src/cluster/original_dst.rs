//! Hosts of an original destination cluster: made when a connection asks for them, forgotten when unused.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use super::Host;
use crate::model::cluster::Cluster;

/// Hosts by address. Reads are the common case; the lock is held for a lookup only.
#[derive(Debug, Default)]
pub(crate) struct OriginalDstHosts(RwLock<HashMap<SocketAddr, Arc<Host>, ahash::RandomState>>);

impl OriginalDstHosts {
    /// The host at `address`; true when it was made just now.
    pub(crate) fn get_or_add(&self, cluster: &Cluster, address: SocketAddr) -> (Arc<Host>, bool) {
        if let Some(host) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&address) {
            host.touch();
            return (host.clone(), false);
        }
        let mut hosts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut added = false;
        let host = hosts.entry(address).or_insert_with(|| {
            added = true;
            Arc::new(Host::of_original_dst(cluster, address, Arc::default()))
        });
        host.touch();
        (host.clone(), added)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Host>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Forgets hosts that nobody holds and that were not chosen since the last sweep. Returns how many.
    pub(crate) fn sweep(&self) -> usize {
        let mut hosts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = hosts.len();
        hosts.retain(|_, host| host.take_touched() || Arc::strong_count(host) > 1);
        before - hosts.len()
    }
}
