//! A worker's side of capture: accepts on the listeners of every pod and hands out connections.
//! Everything here stays on the worker's own thread.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::watch;

use super::addresses::Addresses;
use super::enrol::Listeners;
use super::{CaptureSource, Captured};
use crate::model::listener::Direction;
use crate::model::workload::Workload;

/// Connections accepted and not yet taken; with more the kernel's queue holds them.
const ACCEPTED: usize = 64;
/// How often a worker shows that it is not wedged.
const PULSE: Duration = Duration::from_millis(250);
/// Wait after an accept that failed for want of descriptors or memory.
const RETRY: Duration = Duration::from_millis(50);

thread_local! {
    static CURRENT: Cell<u16> = const { Cell::new(0) };
}

/// The worker that the calling thread is, counted from 1; 0: it is none.
pub(super) fn current() -> u16 {
    CURRENT.get()
}

/// What the manager tells a worker.
pub(super) enum Assignment {
    Add {
        slot: u32,
        workload: Arc<Workload>,
        listeners: Listeners,
    },
    /// What is accepted from now on belongs to this workload.
    Update {
        slot: u32,
        workload: Arc<Workload>,
    },
    /// Close the listeners; what the kernel holds for them is served.
    Remove {
        slot: u32,
    },
}

/// The connections captured for one worker. To be used inside a `LocalSet`.
pub struct WorkerCapture {
    /// Counted from 1.
    number: u16,
    assignments: UnboundedReceiver<Assignment>,
    pulse: Arc<AtomicU64>,
    pods: HashMap<u32, Pod>,
    sender: mpsc::Sender<Captured>,
    captured: mpsc::Receiver<Captured>,
    addresses: Addresses,
    started: bool,
}

/// An enrolled pod, as its two accepting tasks see it.
struct Pod {
    /// Dropped when they are to close their listeners.
    _open: watch::Sender<()>,
    workload: Arc<ArcSwap<Workload>>,
}

impl WorkerCapture {
    pub(super) fn new(
        number: u16,
        assignments: UnboundedReceiver<Assignment>,
        pulse: Arc<AtomicU64>,
        addresses: Addresses,
    ) -> Self {
        let (sender, captured) = mpsc::channel(ACCEPTED);
        Self { number, assignments, pulse, pods: HashMap::new(), sender, captured, addresses, started: false }
    }

    /// Which pods connections are captured for.
    pub fn addresses(&self) -> Addresses {
        self.addresses.clone()
    }

    fn start(&mut self) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        CURRENT.set(self.number);
        let pulse = self.pulse.clone();
        let sender = self.sender.clone();
        tokio::task::spawn_local(async move {
            let mut ticks = tokio::time::interval(PULSE);
            // Ends with the receiver.
            while !sender.is_closed() {
                ticks.tick().await;
                pulse.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    fn apply(&mut self, assignment: Assignment) {
        match assignment {
            Assignment::Add { slot, workload, listeners } => {
                let (open, stopped) = watch::channel(());
                let workload = Arc::new(ArcSwap::new(workload));
                let Listeners { outbound, inbound, open: token } = listeners;
                let pairs = [(outbound, Direction::Outbound), (inbound, Direction::Inbound)];
                for (listener, direction) in pairs {
                    let listener = match TcpListener::from_std(listener) {
                        Ok(listener) => listener,
                        Err(error) => {
                            tracing::error!("pod {}: a listener is lost: {error}", workload.load().name);
                            continue;
                        }
                    };
                    let accepting = Accepting {
                        listener,
                        direction,
                        workload: workload.clone(),
                        failing: Cell::new(false),
                        _open: token.clone(),
                    };
                    tokio::task::spawn_local(accepting.run(self.sender.clone(), stopped.clone()));
                }
                self.pods.insert(slot, Pod { _open: open, workload });
            }
            Assignment::Update { slot, workload } => {
                if let Some(pod) = self.pods.get(&slot) {
                    pod.workload.store(workload);
                }
            }
            Assignment::Remove { slot } => drop(self.pods.remove(&slot)),
        }
    }
}

impl CaptureSource for WorkerCapture {
    async fn accept(&mut self) -> Option<Captured> {
        self.start();
        loop {
            tokio::select! {
                captured = self.captured.recv() => return captured,
                assignment = self.assignments.recv() => self.apply(assignment?),
            }
        }
    }
}

struct Accepting {
    listener: TcpListener,
    direction: Direction,
    workload: Arc<ArcSwap<Workload>>,
    failing: Cell<bool>,
    /// By which the manager knows when all of the pod's listeners are closed.
    _open: Arc<()>,
}

impl Accepting {
    async fn run(self, sender: mpsc::Sender<Captured>, mut stopped: watch::Receiver<()>) {
        // Nothing is ever sent.
        let end = stopped.changed();
        tokio::pin!(end);
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                _ = &mut end => break,
            };
            // Not cut short by the end: what was accepted is served. Meanwhile the kernel's queue holds the
            // others. (A place must not be taken before there is a connection for it: the listeners of some
            // tens of pods would hold all places, and the others' would wait for ever.)
            if let Some(captured) = accepted
                && sender.send(captured).await.is_err()
            {
                return;
            }
        }
        // What waits in the kernel's queue would be reset with the listener.
        while let Some(accepted) = self.accept().now_or_never() {
            if let Some(captured) = accepted
                && sender.send(captured).await.is_err()
            {
                return;
            }
        }
    }

    /// Accepts one connection, or says why not.
    async fn accept(&self) -> Option<Captured> {
        match self.listener.accept().await {
            Ok((io, source)) => {
                self.failing.set(false);
                // Connected to the listener itself, from inside the pod: there is no destination.
                let local = io.local_addr().ok().filter(|local| !local.ip().to_canonical().is_loopback())?;
                Some(Captured {
                    io,
                    source: canonical(source),
                    original_dst: canonical(local),
                    direction: self.direction,
                    workload: self.workload.load_full(),
                })
            }
            Err(error) if transient(&error) => None,
            Err(error) => {
                // Once, until accepting works again: this comes at every retry.
                if !self.failing.replace(true) {
                    tracing::warn!("pod {}: accept: {error}; connections wait", self.workload.load().name);
                }
                tokio::time::sleep(RETRY).await;
                None
            }
        }
    }
}

/// Errors of the connection that was to be accepted, not of the listener.
fn transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// An IPv4-mapped address is an IPv4 address everywhere after this.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::capture::local_workload;

    #[tokio::test]
    async fn on_a_node_of_many_pods_each_one_is_accepted_for() {
        let (assign, assignments) = mpsc::unbounded_channel();
        let mut capture = WorkerCapture::new(1, assignments, Arc::default(), Addresses::default());
        let mut addresses = Vec::new();
        for slot in 0..ACCEPTED as u32 {
            let mut listener = || {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                listener.set_nonblocking(true).unwrap();
                addresses.push(listener.local_addr().unwrap());
                listener
            };
            let listeners = Listeners { outbound: listener(), inbound: listener(), open: Arc::default() };
            let sent = assign.send(Assignment::Add { slot, workload: local_workload("pod"), listeners });
            assert!(sent.is_ok());
        }
        let every_one_is_heard = async {
            // The last first: those before are idle.
            for address in addresses.into_iter().rev() {
                let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
                // To the listener itself: accepted and closed.
                let end = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut [0])).await;
                assert_eq!(end.expect("accepted").unwrap(), 0);
            }
        };
        tokio::task::LocalSet::new()
            .run_until(async {
                tokio::select! {
                    () = every_one_is_heard => {}
                    _ = capture.accept() => unreachable!("connections to a listener itself are not handed out"),
                }
            })
            .await;
        drop(assign);
    }
}
