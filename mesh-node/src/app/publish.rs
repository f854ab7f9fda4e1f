//! Puts a compiled configuration into service, make-before-break: new addresses are bound first, then the
//! snapshot is published, then what is gone drains.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::worker::{Command, Worker};
use crate::cluster::ClusterManager;
use crate::dynamic::{Assembled, Outlet, Refused};
use crate::heap;
use crate::listener::bind;
use crate::model::listener::{Direction, Listener};
use crate::model::{Published, Snapshot};
use crate::runtime::{Runtime, Values};

/// The listener whose address cannot be listened on.
fn cannot_listen(listener: &Listener, source: &io::Error) -> Refused {
    let reason = format!("cannot listen on {}: {source}{}", listener.address, hint(source));
    Refused { listener: listener.name.to_string(), reason }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; stop what listens there (ss -ltnp shows it) or change the address",
        io::ErrorKind::AddrNotAvailable => "; no interface has this address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// How long a new configuration waits for its names; a name server that is slower must not hold up the rest.
const WARM_UP: Duration = Duration::from_secs(5);
/// Connections of replaced listeners end after their next request, which is still routed as before.
const REMOVED_CLUSTERS_STAY: Duration = Duration::from_secs(30);

/// Publishes configurations to the workers.
pub struct Publisher {
    pub published: Published,
    pub clusters: Arc<ClusterManager>,
    pub workers: Vec<Worker>,
    /// Steered listeners are entered through the sockets in the pods and not bound on the host.
    pub capture: bool,
    pub runtime: Arc<Runtime>,
    bound: HashSet<SocketAddr>,
}

impl Publisher {
    pub fn new(
        published: Published,
        clusters: Arc<ClusterManager>,
        workers: Vec<Worker>,
        capture: bool,
        runtime: Arc<Runtime>,
    ) -> Self {
        Self { published, clusters, workers, capture, runtime, bound: HashSet::new() }
    }

    /// An equal listener (by content hash) keeps its identity, so that its connections go on.
    async fn take(&mut self, assembled: Assembled) -> Result<(), Refused> {
        let listeners = keep_equal(assembled.listeners, &self.published.load());
        let wanted: HashSet<SocketAddr> =
            listeners.iter().filter(|l| self.is_bound_here(l)).map(|l| l.address).collect();
        let fresh = self.bind_new(&listeners)?;
        let assembled = Assembled { listeners, ..assembled };
        swap(&self.published, &self.clusters, assembled).await;
        for (address, sockets) in fresh {
            for (worker, socket) in self.workers.iter().zip(sockets) {
                worker.send(Command::Listen(address, socket));
            }
            self.bound.insert(address);
        }
        for address in self.bound.difference(&wanted) {
            self.workers.iter().for_each(|w| w.send(Command::Close(*address)));
        }
        self.bound = wanted;
        Ok(())
    }

    fn bind_new(
        &self,
        listeners: &[Arc<Listener>],
    ) -> Result<Vec<(SocketAddr, Vec<std::net::TcpListener>)>, Refused> {
        let mut fresh = Vec::new();
        for listener in listeners.iter().filter(|l| self.is_bound_here(l)) {
            let address = listener.address;
            if self.bound.contains(&address) {
                continue;
            }
            if bind::is_taken(address) {
                return Err(cannot_listen(listener, &io::ErrorKind::AddrInUse.into()));
            }
            let sockets = bind::bind(address, self.workers.len());
            fresh.push((address, sockets.map_err(|error| cannot_listen(listener, &error))?));
        }
        Ok(fresh)
    }

    fn is_bound_here(&self, listener: &Listener) -> bool {
        listener.bind_to_port && !(self.capture && listener.direction != Direction::Unspecified)
    }

    /// Tells every connection to end, and stops accepting, but for steered connections: without this process they
    /// would be refused, or go by the proxy.
    pub fn drain(&self) {
        self.workers.iter().for_each(|w| w.send(Command::CloseAll));
        for listener in &self.published.load().listeners {
            listener.drain.start();
        }
    }

    /// Takes no more steered connections.
    pub fn end_capture(&self) {
        self.workers.iter().for_each(|w| w.send(Command::EndCapture));
    }

    /// Tells connections of listeners to end and closes their sockets (`/drain_listeners`).
    pub fn drain_listeners(&self, inbound_only: bool) {
        for listener in &self.published.load().listeners {
            if inbound_only && listener.direction != Direction::Inbound {
                continue;
            }
            self.workers.iter().for_each(|w| w.send(Command::Close(listener.address)));
            listener.drain.start();
        }
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.workers.iter().map(Worker::connections).sum()
    }
}

impl Outlet for Publisher {
    async fn publish(&mut self, assembled: Assembled) -> Result<(), Refused> {
        let (listeners, clusters) = (assembled.listeners.len(), assembled.clusters.len());
        self.take(assembled).await?;
        heap::give_back();
        tracing::info!(listeners, clusters, "configuration taken");
        Ok(())
    }

    fn runtime(&self, name: &str, values: Option<Values>) {
        self.runtime.serve(name, values);
    }

    fn clusters(&self) -> &Arc<ClusterManager> {
        &self.clusters
    }
}

/// Publishes a snapshot: clusters first, then what refers to them, then what is gone drains.
pub(super) async fn swap(published: &Published, clusters: &ClusterManager, assembled: Assembled) {
    let previous = published.load_full();
    let listeners = keep_equal(assembled.listeners, &previous);
    let mut snapshot = Snapshot::new(previous.version + 1, listeners, assembled.clusters);
    snapshot.routes = assembled.routes;
    snapshot.scopes = assembled.scopes;
    let removed = clusters.apply(&snapshot);
    // Requests that a new route sends to a new cluster must find its names looked up.
    if tokio::time::timeout(WARM_UP, clusters.warmed()).await.is_err() {
        tracing::warn!("names of new clusters are not looked up yet; serving without them");
    }
    let current = Arc::new(snapshot);
    published.store(current.clone());
    tokio::spawn(async move {
        tokio::time::sleep(REMOVED_CLUSTERS_STAY).await;
        drop(removed);
    });
    let serving: HashSet<*const Listener> = current.listeners.iter().map(Arc::as_ptr).collect();
    for listener in previous.listeners.iter().filter(|l| !serving.contains(&Arc::as_ptr(l))) {
        tracing::info!(listener = %listener.name, "listener replaced or removed: its connections drain");
        listener.drain.start();
    }
}

fn keep_equal(listeners: Vec<Arc<Listener>>, previous: &Snapshot) -> Vec<Arc<Listener>> {
    let kept = |new: Arc<Listener>| {
        let same = |old: &&Arc<Listener>| old.content_hash == new.content_hash && old.name == new.name;
        previous.listeners.iter().find(same).cloned().unwrap_or(new)
    };
    listeners.into_iter().map(kept).collect()
}
