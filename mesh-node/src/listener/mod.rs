//! From an accepted connection to its filter chain: which listener, what protocol, whose certificate.
//!
//! A connection comes from `capture` (steered, with its original destination) or from a bound address. The
//! listener is told by original destination, listener filters look at the first bytes, the filter chain is
//! chosen from what they saw, TLS is accepted, and the chain's network filters take over.

pub mod bind;
mod chain_match;
mod detect;
pub mod inspect;
pub mod proxy_header;
mod replay;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
pub mod tls;

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use tokio::net::TcpStream;

use crate::budget::Purse;
use crate::drain::Signal;
use crate::filter::{self, Copying, Downstream, WorkerContext, tcp_proxy};
use crate::http::h1::handed::Offer;
use crate::model::listener::{Direction, FilterChain, Listener};
use crate::model::workload::Workload;
use crate::model::{Snapshot, Str};
use crate::pipe::Pipe;
use crate::stream::Stream;
use crate::telemetry::stats::ListenerStats;
use crate::telemetry::stream_info::{ConnectionInfo, ResponseFlags, StreamInfo, TlsInfo};
use crate::upstream::Speaks;

use detect::First;
use proxy_header::Ends;
pub use replay::Replay;

impl Downstream for Replay<Stream> {
    fn transport(&self) -> &Stream {
        self.get_ref()
    }
    fn transport_mut(&mut self) -> &mut Stream {
        self.get_mut()
    }
    fn is_plain(&self) -> bool {
        true
    }
}

impl Downstream for tokio_rustls::server::TlsStream<Replay<Stream>> {
    fn transport(&self) -> &Stream {
        self.get_ref().0.get_ref()
    }
    fn transport_mut(&mut self) -> &mut Stream {
        self.get_mut().0.get_mut()
    }
    fn is_plain(&self) -> bool {
        false
    }
}

/// A connection as it was accepted.
pub struct Accepted {
    pub io: Incoming,
    /// The peer; IPv4-mapped addresses are given as IPv4.
    pub source: SocketAddr,
    /// Where the peer wanted to go; the local address of a bound listener.
    pub original_dst: SocketAddr,
    pub direction: Direction,
    /// The pod whose connection it is; `None` on a bound listener.
    pub workload: Option<Arc<Workload>>,
}

/// What a connection is made of.
pub enum Incoming {
    Socket(TcpStream),
    /// From the outbound half of another pod of this node.
    Memory {
        pipe: Pipe,
        /// What the client will say, which the listener filters need not read then.
        speaks: Speaks,
        /// The client would rather hand over messages.
        offer: Option<Offer>,
    },
}

impl Incoming {
    /// Ends a connection with a reset, so that the peer knows at once that it was refused.
    fn reset(&self) {
        match self {
            Self::Socket(socket) => {
                let abort = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
                if let Err(error) = abort {
                    tracing::debug!(%error, "connection could not be reset");
                }
            }
            Self::Memory { pipe, .. } => pipe.abort(),
        }
    }
}

/// How long a silent client is given before the server is asked whether it speaks first. Envoy waits for
/// `listener_filters_timeout`, which istiod sets to "for ever".
const CLIENT_FIRST: Duration = Duration::from_millis(5);

/// Connection ids are unique in the process (`%CONNECTION_ID%`).
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What is left of a connection when everything about it is decided, so that all that was needed for that is let go:
/// its bytes are copied, and it is counted meanwhile.
pub struct Rest {
    copying: Copying,
    _active: Active,
    _slot: Option<Slot>,
}

impl Future for Rest {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.copying.as_mut().poll(cx)
    }
}

/// One open connection of a listener's statistics.
struct Active(Arc<ListenerStats>);

impl Active {
    fn new(stats: &Arc<ListenerStats>) -> Self {
        stats.downstream_cx_total.inc();
        stats.downstream_cx_active.inc();
        Self(stats.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.downstream_cx_active.dec();
        self.0.downstream_cx_destroy.inc();
    }
}

/// Serves a steered connection: enters the listener of its direction. To be followed by what it returns.
pub async fn serve_captured(accepted: Accepted, ctx: Rc<WorkerContext>) -> Option<Rest> {
    let slot = accepted.workload.as_ref().map(Slot::take).transpose();
    let snapshot = ctx.published.load_full();
    let Some(entry) = snapshot.entry(accepted.direction) else {
        tracing::debug!(direction = ?accepted.direction, "connection refused: no listener of this direction");
        accepted.io.reset();
        return None;
    };
    let slot = match slot {
        Ok(slot) => slot,
        Err(limit) => {
            tracing::debug!(source = %accepted.source, ?limit, "connection refused: its pod is at a limit");
            match limit {
                Limit::Connections => entry.stats.downstream_cx_overflow.inc(),
                Limit::BufferedBytes => entry.stats.downstream_cx_overload_reject.inc(),
            }
            accepted.io.reset();
            return None;
        }
    };
    serve_from(accepted, slot, &snapshot, entry, ctx).await
}

/// Serves a connection of a bound listener. To be followed by what it returns.
pub async fn serve_bound(
    accepted: Accepted,
    listener: &Arc<Listener>,
    ctx: Rc<WorkerContext>,
) -> Option<Rest> {
    let snapshot = ctx.published.load_full();
    serve_from(accepted, None, &snapshot, listener, ctx).await
}

async fn serve_from(
    accepted: Accepted,
    slot: Option<Slot>,
    snapshot: &Snapshot,
    entry: &Arc<Listener>,
    ctx: Rc<WorkerContext>,
) -> Option<Rest> {
    let listener = if entry.use_original_dst {
        snapshot.by_original_dst(accepted.original_dst).unwrap_or(entry).clone()
    } else {
        entry.clone()
    };
    let active = Active::new(&listener.stats);
    let copying = serve_listener(accepted, listener, ctx).await?;
    Some(Rest { copying, _active: active, _slot: slot })
}

async fn serve_listener(
    accepted: Accepted,
    listener: Arc<Listener>,
    ctx: Rc<WorkerContext>,
) -> Option<Copying> {
    let Accepted { io, source, original_dst, direction, workload } = accepted;
    let (mut io, speaks, offer) = match io {
        Incoming::Socket(socket) => (Stream::new(socket, workload.as_deref()), Speaks::Anything, None),
        Incoming::Memory { pipe, speaks, offer } => (Stream::Memory(pipe), speaks, offer),
    };
    // Latency of small messages matters more than the number of segments.
    if let Err(error) = io.set_nodelay() {
        tracing::debug!(%error, "connection ended before it was served");
        return None;
    }
    let Some((bytes, named)) = named_by_a_proxy(&mut io, &listener, source, speaks).await else {
        reset(&io);
        return None;
    };
    // Who the client is, and where it wanted to go, as it says or a proxy in front of it.
    let (remote, local) = named.unwrap_or((source, original_dst));
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    // Of a pod that has left already, the last few connections are served as those of a pod that stays: told to
    // end before they began, clients would come again and again.
    let drain = match workload.as_ref().filter(|workload| !workload.drain.started()) {
        Some(workload) => Signal::either(&listener.drain, &workload.drain),
        None => listener.drain.clone(),
    };
    let connection = |tls: Option<TlsInfo>, requested_server_name: Option<String>, filter_chain: &Str| {
        Arc::new(ConnectionInfo {
            id,
            peer: source,
            remote,
            local,
            original_dst: Some(original_dst),
            direction,
            workload: workload.clone(),
            tls: tls.map(Box::new),
            requested_server_name,
            filter_chain: filter_chain.clone(),
            drain: drain.clone(),
            listener_log: listener.access_log.clone(),
        })
    };
    let chosen = |detected: &inspect::Detected| choose(&listener, source, (remote, local), detected);
    let server = || async {
        // Where the client says nothing, as raw bytes would go. Most clients do say something at once.
        tokio::time::sleep(CLIENT_FIRST).await;
        let Some(chain) = chosen(&inspect::Detected::default()) else { return std::future::pending().await };
        let Some(config) = filter::server_first(&chain) else { return std::future::pending().await };
        let opened = filter::open_first(&chain, config, connection(None, None, &chain.name), &ctx).await;
        let Some(dialed) = opened else { return std::future::pending().await };
        dialed.server_spoke().await;
        (config.clone(), dialed)
    };
    let first = if speaks == Speaks::Anything {
        let server = Box::pin(server());
        Box::pin(detect::first_bytes(&mut io, bytes, &listener, local.port(), server)).await
    } else {
        First::Client(detect::told(&listener, local.port(), speaks))
    };
    let first = match first {
        First::Client(first) => first,
        First::Server(bytes, (config, dialed)) => {
            config.stats.downstream_cx_total.inc();
            return tcp_proxy::serve(config, dialed, Replay::new(bytes, io));
        }
        First::Nobody => return None,
    };
    let Some(chain) = chosen(&first.detected) else {
        listener.stats.no_filter_chain_match.inc();
        tracing::debug!(listener = %listener.name, %source, %original_dst, seen = ?first.detected,
            "no filter chain matches");
        log_unserved(
            connection(None, first.detected.server_name, &Str::default()),
            Some("filter_chain_not_found"),
        );
        reset(&io);
        return None;
    };
    let io = Replay::new(first.bytes, io);
    let Some(tls) = &chain.tls else {
        let connection = connection(None, first.detected.server_name, &chain.name);
        return log_served(&chain, &connection, filter::run(&chain, connection.clone(), io, ctx, offer))
            .await;
    };
    let tls = match ctx.clusters.secrets().downstream(tls) {
        Ok(tls) => tls,
        Err(error) => {
            listener.stats.downstream_context_secrets_not_ready.inc();
            tracing::debug!(chain = %chain.name, %source, %error, "connection refused");
            log_unserved(connection(None, first.detected.server_name, &chain.name), None);
            reset(io.get_ref());
            return None;
        }
    };
    let accepting = tls::accept(&tls, io, chain.transport_socket_connect_timeout, &listener.stats);
    match Box::pin(accepting).await {
        Ok((stream, session)) => {
            let connection = connection(Some(session), first.detected.server_name, &chain.name);
            let serving = Box::pin(filter::run(&chain, connection.clone(), stream, ctx, offer));
            log_served(&chain, &connection, serving).await
        }
        Err(error) => {
            tracing::debug!(chain = %chain.name, %source, %error, "TLS handshake failed");
            log_unserved(connection(None, first.detected.server_name, &chain.name), None);
            None
        }
    }
}

/// What the PROXY protocol says of the client, where the listener speaks it, and what was read after that. `None`: it is not
/// served.
async fn named_by_a_proxy(
    io: &mut Stream,
    listener: &Listener,
    source: SocketAddr,
    speaks: Speaks,
) -> Option<(BytesMut, Option<Ends>)> {
    let mut bytes = BytesMut::new();
    let Some(filter) = &listener.listener_filters.proxy_protocol else { return Some((bytes, None)) };
    let named = match speaks {
        Speaks::Anything => {
            let taking = Box::pin(proxy_header::take(io, &mut bytes, filter));
            match listener.listener_filters_timeout {
                None => taking.await,
                Some(limit) => match tokio::time::timeout(limit, taking).await {
                    Ok(named) => named,
                    Err(_) => {
                        listener.stats.downstream_pre_cx_timeout.inc();
                        let goes_on = listener.continue_on_listener_filters_timeout;
                        if goes_on { Ok(None) } else { Err("it did not come in time") }
                    }
                },
            }
        }
        // A client whose bytes are known has begun with other ones.
        _ if filter.optional => Ok(None),
        _ => Err("there is none"),
    };
    match named {
        Ok(named) => Some((bytes, named)),
        Err(why) => {
            tracing::debug!(listener = %listener.name, %source, why, "no good header of the PROXY protocol");
            None
        }
    }
}

/// Serves a connection, then writes the listener's log. Of a TCP proxy the filter writes it: it knows the rest.
async fn log_served(
    chain: &FilterChain,
    connection: &Arc<ConnectionInfo>,
    serve: impl Future<Output = Option<Copying>>,
) -> Option<Copying> {
    let start = (Instant::now(), SystemTime::now());
    let copying = serve.await;
    if !connection.listener_log.is_empty() && !filter::ends_in_tcp_proxy(chain) {
        let mut info = StreamInfo::new(connection.clone());
        (info.start, info.start_wall) = start;
        info.end = Some(info.start.elapsed());
        connection.listener_log.iter().for_each(|log| log.log(&info, None, None, None, None));
    }
    copying
}

/// The listener's log of a connection that nothing serves. `details`: why no filter chain does.
fn log_unserved(connection: Arc<ConnectionInfo>, details: Option<&'static str>) {
    if connection.listener_log.is_empty() {
        return;
    }
    let mut info = StreamInfo::new(connection);
    if let Some(details) = details {
        info.flags.set(ResponseFlags::NO_ROUTE_FOUND);
        info.response_code_details = Some(details.into());
    }
    info.end = Some(info.start.elapsed());
    info.connection.listener_log.iter().for_each(|log| log.log(&info, None, None, None, None));
}

fn choose(
    listener: &Listener,
    direct_source: SocketAddr,
    (source, destination): (SocketAddr, SocketAddr),
    detected: &inspect::Detected,
) -> Option<Arc<FilterChain>> {
    let facts = chain_match::Facts {
        destination,
        direct_source,
        source,
        server_name: detected.server_name.as_deref(),
        transport_protocol: if detected.tls { "tls" } else { "raw_buffer" },
        application_protocols: &detected.application_protocols,
    };
    chain_match::choose(listener, &facts).cloned()
}

/// Ends a connection with a reset, so that the peer knows at once that it was refused.
fn reset(io: &Stream) {
    if let Err(error) = io.abort() {
        tracing::debug!(%error, "connection could not be reset");
    }
}

/// A limit of a workload that a new connection meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Connections,
    BufferedBytes,
}

/// One connection of a workload's allowance, given back when dropped.
#[derive(Debug)]
struct Slot {
    workload: Arc<Workload>,
    /// Kept so that all that the connection holds counts in one purse, whatever comes and goes.
    _purse: Rc<Purse>,
}

impl Slot {
    /// Takes a connection of the allowance.
    fn take(workload: &Arc<Workload>) -> Result<Self, Limit> {
        let limits = &workload.limits;
        let before = limits.connections.fetch_add(1, Ordering::Relaxed);
        let slot = Self { workload: workload.clone(), _purse: Purse::of(&limits.buffers) };
        if limits.max_connections != 0 && before >= limits.max_connections {
            limits.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Limit::Connections);
        }
        if limits.buffers.is_full() {
            limits.buffers.refusals().connections.fetch_add(1, Ordering::Relaxed);
            return Err(Limit::BufferedBytes);
        }
        Ok(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.workload.limits.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
