//! A worker: one thread, one single-threaded runtime. A connection lives on the worker that accepted it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, LocalSet};

use super::sidecars::{Serving, Servings};
use crate::capture::{Addresses, CaptureSource, Captured, WorkerCapture};
use crate::filter::WorkerContext;
use crate::listener::{self, Accepted, Incoming, Rest};
use crate::model::Str;
use crate::model::listener::Direction;
use crate::model::workload::Workload;
use crate::turn;
use crate::upstream::{Handed, Neighbours};

/// After a failed accept (file descriptors used up) the next try waits this long.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// What the main thread asks of a worker.
pub enum Command {
    /// Take steered connections from here. Each is served by its pod's own sidecar, or by what serves all.
    Capture(WorkerCapture, Option<Arc<Servings>>),
    /// Accept on this socket. The listener is looked up by address when a connection comes, so a changed
    /// listener keeps its socket.
    Listen(SocketAddr, std::net::TcpListener),
    /// Close the socket of this address.
    Close(SocketAddr),
    /// Close every socket.
    CloseAll,
    /// Take no more steered connections.
    EndCapture,
}

/// A running worker.
pub struct Worker {
    commands: mpsc::UnboundedSender<Command>,
    thread: thread::JoinHandle<()>,
    /// Connections open now.
    connections: Arc<AtomicUsize>,
}

impl Worker {
    /// Starts worker `index`. The context is built on the worker's own thread: it is not `Send`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(index: usize, context: impl FnOnce() -> WorkerContext + Send + 'static) -> io::Result<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .event_interval(61)
                .build()
                .expect("a worker needs epoll and timers");
            let local = LocalSet::new();
            local.block_on(&runtime, async move {
                let ctx = Rc::new(context());
                Loop { ctx, count, accepting: HashMap::new(), captured: None }.run(inbox).await;
            });
        })?;
        Ok(Self { commands, thread, connections })
    }

    /// Sends a command; a worker that has ended takes none.
    pub fn send(&self, command: Command) {
        if self.commands.send(command).is_err() {
            tracing::debug!("a worker has ended already");
        }
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Ends the worker and every connection that is left, and waits for its thread.
    pub fn stop(self) {
        drop(self.commands);
        if self.thread.join().is_err() {
            tracing::error!("a worker ended by a panic");
        }
    }
}

struct Loop {
    ctx: Rc<WorkerContext>,
    count: Arc<AtomicUsize>,
    accepting: HashMap<SocketAddr, AbortHandle>,
    captured: Option<AbortHandle>,
}

impl Loop {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        while let Some(command) = inbox.recv().await {
            match command {
                Command::Capture(source, servings) => {
                    let contexts = Contexts::new(self.ctx.clone(), servings);
                    let addresses = source.addresses();
                    let pods = Pods {
                        addresses: addresses.clone(),
                        contexts: contexts.clone(),
                        count: self.count.clone(),
                    };
                    self.ctx.upstreams.set_neighbours(Some(Rc::new(pods)));
                    let accepting = accept_captured(source, addresses, contexts, self.count.clone());
                    self.captured = Some(tokio::task::spawn_local(accepting).abort_handle());
                }
                Command::Listen(address, socket) => self.listen(address, socket),
                Command::Close(address) => self.close(address),
                Command::CloseAll => {
                    let open: Vec<_> = self.accepting.keys().copied().collect();
                    open.into_iter().for_each(|address| self.close(address));
                }
                Command::EndCapture => self.captured.iter().for_each(AbortHandle::abort),
            }
        }
        // They hold the context, which holds them.
        self.ctx.upstreams.set_neighbours(None);
    }

    fn listen(&mut self, address: SocketAddr, socket: std::net::TcpListener) {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => return tracing::error!(%address, %error, "listening socket is lost"),
        };
        let task =
            tokio::task::spawn_local(accept_bound(socket, address, self.ctx.clone(), self.count.clone()));
        self.accepting.insert(address, task.abort_handle());
    }

    fn close(&mut self, address: SocketAddr) {
        if let Some(task) = self.accepting.remove(&address) {
            task.abort();
        }
    }
}

async fn accept_bound(
    socket: TcpListener,
    address: SocketAddr,
    ctx: Rc<WorkerContext>,
    count: Arc<AtomicUsize>,
) {
    let failing = Cell::new(false);
    loop {
        let Some((io, source)) = accepted(socket.accept().await, &failing).await else { continue };
        let snapshot = ctx.published.load();
        let Some(&index) = snapshot.by_address.get(&address) else { continue };
        let listener = snapshot.listeners[index].clone();
        drop(snapshot);
        let Ok(local) = io.local_addr() else { continue };
        let accepted = Accepted {
            io: Incoming::Socket(io),
            source: canonical(source),
            original_dst: canonical(local),
            direction: listener.direction,
            workload: None,
        };
        let ctx = ctx.clone();
        serve(async move { listener::serve_bound(accepted, &listener, ctx).await }, &count);
    }
}

/// The connection, or `None` after a pause when accepting fails.
async fn accepted(
    result: io::Result<(TcpStream, SocketAddr)>,
    failing: &Cell<bool>,
) -> Option<(TcpStream, SocketAddr)> {
    match result {
        Ok(accepted) => {
            failing.set(false);
            Some(accepted)
        }
        Err(error) => {
            if !failing.replace(true) {
                tracing::warn!(%error, "connections cannot be accepted; raise the open files limit if it says so");
            }
            tokio::time::sleep(ACCEPT_BACK_OFF).await;
            None
        }
    }
}

async fn accept_captured(
    mut source: impl CaptureSource,
    addresses: Addresses,
    contexts: Rc<Contexts>,
    count: Arc<AtomicUsize>,
) {
    while let Some(Captured { io, source, original_dst, direction, workload }) = source.accept().await {
        if direction == Direction::Inbound && addresses.is_knock(source) {
            continue;
        }
        let io = Incoming::Socket(io);
        let accepted = Accepted { io, source, original_dst, direction, workload: Some(workload) };
        serve(serve_captured(accepted, contexts.clone()), &count);
    }
}

async fn serve_captured(accepted: Accepted, contexts: Rc<Contexts>) -> Option<Rest> {
    match contexts.of(&accepted).await {
        Some(ctx) => listener::serve_captured(accepted, ctx).await,
        None => {
            tracing::warn!("connection closed: its pod has no configuration yet");
            None
        }
    }
}

/// Serves a connection by a task of its own, which is small once only bytes are to be copied.
fn serve(deciding: impl Future<Output = Option<Rest>> + 'static, count: &Arc<AtomicUsize>) {
    let (deciding, open) = (Box::pin(deciding), Open::new(count));
    tokio::task::spawn_local(async move {
        let rest = turn::Each::new(deciding).await;
        if let Some(rest) = rest {
            turn::Each::new(rest).await;
        }
        drop(open);
    });
}

/// The pods of this node, for connections between them that need no socket. They stay on the worker that makes
/// them.
struct Pods {
    addresses: Addresses,
    contexts: Rc<Contexts>,
    count: Arc<AtomicUsize>,
}

impl Neighbours for Pods {
    fn pod(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        self.addresses.pod(ip)
    }

    fn expect_knock(&self, source: SocketAddr) {
        self.addresses.expect_knock(source);
    }

    fn serve(&self, handed: Handed) {
        let Handed { pipe, source, destination, workload, speaks, offer } = handed;
        let accepted = Accepted {
            io: Incoming::Memory { pipe, speaks, offer },
            source,
            original_dst: destination,
            direction: Direction::Inbound,
            workload: Some(workload),
        };
        serve(serve_captured(accepted, self.contexts.clone()), &self.count);
    }
}

/// The context made for a pod, and the configuration that it was made of.
type Made = (Arc<Serving>, Rc<WorkerContext>);

/// The contexts of one worker: what serves the pods.
struct Contexts {
    common: Rc<WorkerContext>,
    /// With a sidecar for each pod.
    servings: Option<Arc<Servings>>,
    /// By the pod's uid. One that is old is replaced by the next connection.
    made: RefCell<HashMap<Str, Made, ahash::RandomState>>,
}

impl Contexts {
    fn new(common: Rc<WorkerContext>, servings: Option<Arc<Servings>>) -> Rc<Self> {
        Rc::new(Self { common, servings, made: RefCell::default() })
    }

    async fn of(&self, accepted: &Accepted) -> Option<Rc<WorkerContext>> {
        let (Some(servings), Some(workload)) = (&self.servings, &accepted.workload) else {
            return Some(self.common.clone());
        };
        let serving = servings.of(workload).await?;
        let mut made = self.made.borrow_mut();
        if let Some((same, context)) = made.get(&workload.uid)
            && Arc::ptr_eq(same, &serving)
        {
            return Some(context.clone());
        }
        // Pods that are gone leave when another one comes.
        made.retain(|uid, (held, _)| servings.get(uid).is_some_and(|now| Arc::ptr_eq(&now, held)));
        let context = self.common.serving(serving.published.clone(), serving.clusters.clone());
        let context = Rc::new(context);
        made.insert(workload.uid.clone(), (serving, context.clone()));
        Some(context)
    }
}

/// IPv4-mapped addresses as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Counts one open connection while it lives.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
