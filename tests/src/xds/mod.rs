//! A small xDS server: ADS, delta and state of the world, a configuration for each node.
//!
//! The demo and the tests push through it what a control plane would. It knows the protocol (subscriptions,
//! nonces, ACK and NACK, one response of a type under way at a time) and nothing of what resources mean.

mod bootstrap;
mod delta;
mod snapshot;
mod sotw;
mod stream;
mod types;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_xds::client::ResourceType;
use tokio::sync::{oneshot, watch};

pub use bootstrap::{Form, ads, bootstrap};
pub use snapshot::Snapshot;

/// How a node stands with one type of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Resources of this type that the node holds or was sent.
    pub resources: usize,
    /// Version of the last response, and when it was sent.
    pub sent: Option<(String, Instant)>,
    /// How many resources the last response held and removed: with delta only what had changed.
    pub last: (usize, usize),
    /// Version of the last response that the node took, and when it said so.
    pub acked: Option<(String, Instant)>,
    /// What the node said of the last response that it refused; gone with the next one that it takes.
    pub nacked: Option<String>,
}

/// By node id and type.
pub type Standings = BTreeMap<(String, ResourceType), Standing>;

/// What all streams share.
#[derive(Debug)]
struct Shared {
    snapshots: Mutex<Snapshots>,
    /// Moves with every push.
    changed: watch::Sender<u64>,
    book: Mutex<Standings>,
    /// Told when the book has changed.
    written: Condvar,
}

#[derive(Debug, Default)]
struct Snapshots {
    of_node: BTreeMap<String, Arc<Snapshot>>,
    of_others: Option<Arc<Snapshot>>,
}

impl Shared {
    /// A node for which nothing was pushed yet waits.
    fn snapshot(&self, node: &str) -> Option<Arc<Snapshot>> {
        let snapshots = lock(&self.snapshots);
        snapshots.of_node.get(node).or(snapshots.of_others.as_ref()).cloned()
    }

    fn write(&self, node: &str, kind: ResourceType, f: impl FnOnce(&mut Standing)) {
        f(lock(&self.book).entry((node.to_owned(), kind)).or_default());
        self.written.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The running server. Dropping it ends all streams.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Serves on a thread of its own. The socket decides from which network namespace it is reached.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub fn start(socket: TcpListener) -> Result<Server> {
        let address = socket.local_addr().context("the server's own address")?;
        socket.set_nonblocking(true).context("the server's socket")?;
        let shared = Arc::new(Shared {
            snapshots: Mutex::default(),
            changed: watch::Sender::new(0),
            book: Mutex::default(),
            written: Condvar::new(),
        });
        let (end, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = stream::serve(socket, shared.clone());
        let thread = std::thread::Builder::new().name("xds-server".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    outcome = serving => {
                        let Err(error) = outcome;
                        eprintln!("xDS server: {error}");
                    }
                    _ = ended => {}
                }
            });
        })?;
        Ok(Server { address, shared, end: Some(end), thread: Some(thread) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// This is the configuration of the node with that id now. What is as before keeps its version.
    pub fn push(&self, node: &str, snapshot: Snapshot) {
        let mut snapshots = lock(&self.shared.snapshots);
        let before = snapshots.of_node.get(node).cloned();
        let next = snapshot.after(before.as_deref());
        snapshots.of_node.insert(node.to_owned(), Arc::new(next));
        drop(snapshots);
        self.shared.changed.send_modify(|pushes| *pushes += 1);
    }

    /// This is the configuration of all nodes that have none of their own.
    pub fn push_to_others(&self, snapshot: Snapshot) {
        let mut snapshots = lock(&self.shared.snapshots);
        let next = snapshot.after(snapshots.of_others.as_deref());
        snapshots.of_others = Some(Arc::new(next));
        drop(snapshots);
        self.shared.changed.send_modify(|pushes| *pushes += 1);
    }

    /// How all nodes that ever asked stand.
    pub fn standings(&self) -> Standings {
        lock(&self.shared.book).clone()
    }

    /// Waits until `holds` of how the nodes stand.
    ///
    /// # Errors
    /// When that does not come in time; names how they stand then.
    pub fn wait(&self, what: &str, within: Duration, holds: impl Fn(&Standings) -> bool) -> Result<()> {
        let until = Instant::now() + within;
        let mut book = lock(&self.shared.book);
        while !holds(&book) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{what} did not come within {within:?}; the nodes stand at {book:#?}");
            }
            let waited = self.shared.written.wait_timeout(book, left);
            book = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Waits until the node has taken this version of that type.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_acked(&self, node: &str, kind: ResourceType, version: &str, within: Duration) -> Result<()> {
        let key = (node.to_owned(), kind);
        self.wait(&format!("{node}'s ACK of {kind} {version}"), within, |book| {
            let acked = book.get(&key).and_then(|standing| standing.acked.as_ref());
            acked.is_some_and(|(acked, _)| acked == version)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            // Without a receiver it has ended.
            let _ = end.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
