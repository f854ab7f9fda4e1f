//! Connections that wait for their next request: per worker, and per workload, host, client address and server
//! name, so that nothing is shared between identities.
//!
//! HTTP/1 connections carry one request at a time and the one used last is used first; HTTP/2 connections are
//! shared. A closed or replaced host, a pod that is gone and the cluster's idle timeout end connections; a sweep
//! once a second finds them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::sync::Notify;

use super::handed::HandedH1;
use super::pooled::{Pooled, PooledH1, Share};
use super::{Target, UpstreamError, UpstreamPath};
use crate::cluster::{Host, RequestGuard};
use crate::http::{h1, h2};
use crate::model::Str;
use crate::model::http_filter::AlpnList;
use crate::model::workload::Workload;

/// How often idle connections are looked at; also the unit in which their age is counted.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The pools of one worker.
#[derive(Clone, Default)]
pub struct Pools(Rc<Shared>);

#[derive(Default)]
struct Shared {
    groups: RefCell<HashMap<Key, Group, ahash::RandomState>>,
    /// Sweeps so far: the clock of idle connections.
    now: Cell<u64>,
    sweeping: Cell<bool>,
}

/// What must be equal for connections to be interchangeable. The addresses are those of a `Workload` and of a
/// `Host`'s signal, whose allocations the group keeps, so they are not given out again while the group lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    workload: usize,
    /// Stands for the cluster, the address and the transport with its identity.
    host: usize,
    /// The client's address, where connections carry it.
    source: Option<IpAddr>,
    /// Where the request decides it (`auto_sni`).
    server_name: Option<Str>,
    /// What TLS offers, where a filter decides it.
    alpn: Option<AlpnList>,
}

impl Key {
    pub(super) fn new(target: &Target, server_name: Option<Str>) -> Self {
        Self {
            workload: target.workload.as_ref().map_or(0, |workload| Arc::as_ptr(workload) as usize),
            host: Arc::as_ptr(&target.host.removed) as usize,
            source: match target.path {
                UpstreamPath::Network => None,
                UpstreamPath::Application { source } => Some(source.ip()),
            },
            server_name,
            alpn: target.alpn.clone(),
        }
    }
}

/// The connections of one key.
pub(super) struct Group {
    workload: Option<std::sync::Weak<Workload>>,
    host: Arc<Host>,
    idle: Vec<Idle>,
    h2: Vec<SharedH2>,
    /// An HTTP/2 connection on its way.
    connecting: Option<Rc<Attempt>>,
    pub(super) slots: Rc<Slots>,
    /// What ALPN said last time (`auto_config`).
    pub(super) speaks_h2: bool,
}

struct Idle {
    connection: Http1,
    since: u64,
}

/// An HTTP/1 connection between two requests.
pub(super) enum Http1 {
    Wire(Box<PooledH1>),
    Handed(Box<HandedH1>),
}

impl Http1 {
    pub(super) fn share(&self) -> &Share {
        match self {
            Self::Wire(connection) => connection.io().meter(),
            Self::Handed(connection) => connection.share(),
        }
    }

    pub(super) fn exchanges(&self) -> u32 {
        match self {
            Self::Wire(connection) => connection.exchanges(),
            Self::Handed(connection) => connection.exchanges(),
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::Wire(connection) => connection.poll_idle(cx),
            Self::Handed(connection) => connection.poll_idle(cx),
        }
    }

    fn release_memory(&mut self) {
        if let Self::Wire(connection) = self {
            connection.release_memory();
        }
    }
}

struct SharedH2 {
    handle: h2::Handle,
    /// Sweep at which it was last seen in use.
    used: u64,
}

/// Connections of a group that exist, and requests that wait for one.
#[derive(Debug, Default)]
pub(super) struct Slots {
    pub(super) open: Cell<usize>,
    waiting: Cell<usize>,
    freed: Notify,
}

/// One connection of a group, from the attempt to the close.
pub(super) struct Slot(Rc<Slots>);

impl Slot {
    pub(super) fn take(slots: Rc<Slots>) -> Self {
        slots.open.set(slots.open.get() + 1);
        Self(slots)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.free_one();
    }
}

impl Slots {
    /// A connection became free, or room for one did.
    fn free_one(&self) {
        if self.waiting.get() > 0 {
            self.freed.notify_one();
        }
    }

    /// Returns when it is worth another look.
    pub(super) async fn wait(&self) {
        struct Waiting<'a>(&'a Cell<usize>);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() - 1);
            }
        }
        self.waiting.set(self.waiting.get() + 1);
        let _waiting = Waiting(&self.waiting);
        self.freed.notified().await;
    }
}

/// An HTTP/2 connection that several requests wait for.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    done: Notify,
    failed: RefCell<Option<UpstreamError>>,
}

impl Attempt {
    /// Waits for the outcome. The error of a failed attempt is that of all who waited.
    pub(super) async fn outcome(&self) -> Result<(), UpstreamError> {
        self.done.notified().await;
        self.failed.borrow().clone().map_or(Ok(()), Err)
    }
}

/// How a request gets to an HTTP/2 connection.
pub(super) enum Via {
    Ready(h2::Handle),
    Wait(Rc<Attempt>),
    /// The caller connects for all.
    Connect(Connecting),
}

/// The right and the duty to end an attempt; dropped, the next request tries again.
pub(super) struct Connecting {
    pools: Pools,
    key: Key,
    attempt: Rc<Attempt>,
}

impl Connecting {
    pub(super) fn succeeded(self, handle: h2::Handle) {
        let used = self.pools.0.now.get();
        if let Some(group) = self.pools.0.groups.borrow_mut().get_mut(&self.key) {
            group.h2.push(SharedH2 { handle, used });
        }
        self.pools.sweep_soon();
    }

    pub(super) fn failed(self, error: &UpstreamError) {
        *self.attempt.failed.borrow_mut() = Some(error.clone());
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        if let Some(group) = self.pools.0.groups.borrow_mut().get_mut(&self.key) {
            group.connecting = None;
        }
        self.attempt.done.notify_waiters();
    }
}

impl Pools {
    /// Runs `f` on the group of `key`, which is made if there is none.
    pub(super) fn with_group<R>(&self, key: &Key, target: &Target, f: impl FnOnce(&mut Group) -> R) -> R {
        let mut groups = self.0.groups.borrow_mut();
        if let Some(group) = groups.get_mut(key) {
            return f(group);
        }
        self.sweep_soon();
        f(groups.entry(key.clone()).or_insert_with(|| Group {
            workload: target.workload.as_ref().map(Arc::downgrade),
            host: target.host.clone(),
            idle: Vec::new(),
            h2: Vec::new(),
            connecting: None,
            slots: Rc::default(),
            speaks_h2: false,
        }))
    }

    /// The idle HTTP/1 connection that was used last, if one is still good.
    pub(super) fn take_idle(&self, key: &Key) -> Option<Http1> {
        loop {
            let idle = self.0.groups.borrow_mut().get_mut(key)?.idle.pop()?;
            let mut connection = idle.connection;
            if connection.poll_idle(&mut Context::from_waker(Waker::noop())) {
                return Some(connection);
            }
        }
    }

    /// A shared HTTP/2 connection with room, or how to get one.
    pub(super) fn shared(&self, key: &Key, target: &Target) -> Via {
        let now = self.0.now.get();
        self.with_group(key, target, |group| {
            group.h2.retain_mut(|shared| shared.handle.is_open());
            let limit = target.cluster.config.max_requests_per_connection;
            let fresh = |handle: &h2::Handle| limit == 0 || handle.exchanges() < limit;
            if let Some(shared) = group
                .h2
                .iter_mut()
                .find_map(|shared| (fresh(&shared.handle) && shared.handle.has_room()).then_some(shared))
            {
                shared.used = now;
                return Via::Ready(shared.handle.clone());
            }
            if let Some(attempt) = &group.connecting {
                return Via::Wait(attempt.clone());
            }
            let attempt = Rc::new(Attempt::default());
            group.connecting = Some(attempt.clone());
            Via::Connect(Connecting { pools: self.clone(), key: key.clone(), attempt })
        })
    }

    /// Connections that wait for a request now, both versions.
    pub fn idle(&self) -> usize {
        self.0.groups.borrow().values().map(|group| group.idle.len() + group.h2.len()).sum()
    }

    /// Returns when the peer of an idle connection has closed it and the close has arrived.
    #[cfg(test)]
    pub(super) async fn idle_closed(&self) {
        std::future::poll_fn(|cx| {
            let mut groups = self.0.groups.borrow_mut();
            let mut idle = groups.values_mut().flat_map(|group| &mut group.idle);
            match idle.any(|idle| !idle.connection.poll_idle(cx)) {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
    }

    fn put_back(&self, key: &Key, connection: Http1) {
        let since = self.0.now.get();
        let surplus = match self.0.groups.borrow_mut().get_mut(key) {
            Some(group) if !group.host.removed.started() => {
                group.idle.push(Idle { connection, since });
                group.slots.free_one();
                None
            }
            _ => Some(connection),
        };
        // Dropped with no borrow held: that frees a slot.
        drop(surplus);
        self.sweep_soon();
    }

    fn sweep_soon(&self) {
        if self.0.sweeping.replace(true) {
            return;
        }
        let shared = Rc::downgrade(&self.0);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP_INTERVAL).await;
                let Some(shared) = shared.upgrade() else { return };
                if !sweep(&shared) {
                    shared.sweeping.set(false);
                    return;
                }
            }
        });
    }
}

/// Ends what is over. False: nothing is left to look after.
fn sweep(shared: &Shared) -> bool {
    let now = shared.now.get() + 1;
    shared.now.set(now);
    let mut ended = Vec::new();
    let mut context = Context::from_waker(Waker::noop());
    let mut groups = shared.groups.borrow_mut();
    groups.retain(|_, group| {
        let gone = group.host.removed.started()
            || group.workload.as_ref().is_some_and(|workload| workload.strong_count() == 0);
        for mut idle in std::mem::take(&mut group.idle) {
            let cluster = idle.connection.share().guard.cluster();
            let limit = cluster.config.idle_timeout;
            let expired = limit.is_some_and(|limit| SWEEP_INTERVAL * ticks(now - idle.since) > limit);
            if expired {
                cluster.stats.upstream_cx_idle_timeout.inc();
            }
            if gone || expired || !idle.connection.poll_idle(&mut context) {
                ended.push(idle.connection);
            } else {
                if now - idle.since == 1 {
                    idle.connection.release_memory();
                }
                group.idle.push(idle);
            }
        }
        group.h2.retain_mut(|shared| {
            if shared.handle.active() > 0 {
                shared.used = now;
            }
            let idle = SWEEP_INTERVAL * ticks(now - shared.used);
            !gone && shared.handle.is_open() && shared.handle.idle_timeout().is_none_or(|limit| idle <= limit)
        });
        !group.idle.is_empty()
            || !group.h2.is_empty()
            || group.connecting.is_some()
            || group.slots.open.get() > 0
            || group.slots.waiting.get() > 0
    });
    let busy = !groups.is_empty();
    drop(groups);
    drop(ended);
    busy
}

fn ticks(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// What belongs to one HTTP/1 exchange: its share of the circuit breaker and the way back to the pool.
pub(super) struct Lease {
    pools: Weak<Shared>,
    key: Key,
    _request: RequestGuard,
}

impl Lease {
    pub(super) fn new(pools: &Pools, key: Key, request: RequestGuard) -> Self {
        Self { pools: Rc::downgrade(&pools.0), key, _request: request }
    }

    /// See [`h1::Lease::release`].
    pub(super) fn release_handed(self, connection: Box<HandedH1>) {
        self.give_back(Http1::Handed(connection));
    }

    fn give_back(self, connection: Http1) {
        let cluster = connection.share().guard.cluster();
        let limit = cluster.config.max_requests_per_connection;
        if limit > 0 && connection.exchanges() >= limit {
            cluster.stats.upstream_cx_max_requests.inc();
            return;
        }
        if let Some(shared) = self.pools.upgrade() {
            Pools(shared).put_back(&self.key, connection);
        }
    }
}

impl h1::Lease<Pooled> for Lease {
    fn release(self, connection: Box<PooledH1>) {
        if !connection.io().get_ref().is_some_and(|io| io.transport().is_outgrown()) {
            self.give_back(Http1::Wire(connection));
        }
    }
}
