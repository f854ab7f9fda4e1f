//! Opens one connection to the host of a target: the socket in the workload's namespace, TCP options, TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls_pki_types::ServerName;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::error::{ErrorKind, UpstreamError};
use super::stream::UpstreamStream;
use super::{Target, UpstreamPath, proxy_header};
use crate::cluster::{ConnectionGuard, RoutingPriority};
use crate::model::cluster::{Cluster, Transport};
use crate::model::tls::UpstreamTls;
use crate::model::workload::Workload;
use crate::pipe::Pipe;
use crate::stream::Stream;
use crate::telemetry::stream_info::{TlsInfo, UpstreamConnection};
use crate::telemetry::tls_session::session_info;

/// How long an address of several is given before the next one is tried beside it.
const NEXT_ADDRESS: Duration = Duration::from_millis(300);

/// An open connection to a host. It counts against the cluster's circuit breaker until dropped.
#[derive(Debug)]
pub struct Connection {
    pub stream: UpstreamStream,
    pub facts: Arc<UpstreamConnection>,
    pub remote: SocketAddr,
    pub guard: ConnectionGuard,
}

/// Connects, within the cluster's `connect_timeout` (TLS included, as in Envoy).
///
/// `server_name` overrides the TLS context's SNI (`auto_sni`).
///
/// # Errors
/// Why the host cannot be reached; counted in the cluster's and the host's statistics.
pub async fn connect(
    target: &Target,
    guard: ConnectionGuard,
    server_name: Option<&str>,
) -> Result<Connection, UpstreamError> {
    within_timeout(target, guard, establish(target, server_name)).await
}

/// Finishes a connection that is handed over in memory, likewise: TLS is spoken as on a wire, so that both ends
/// know each other by the same certificates.
pub(super) async fn connect_over(
    target: &Target,
    guard: ConnectionGuard,
    server_name: Option<&str>,
    pipe: Pipe,
    local: SocketAddr,
) -> Result<Connection, UpstreamError> {
    let ends = (local, target.host.address);
    let secured = secure(target, server_name, Stream::Memory(pipe), ends);
    let established = async {
        let (stream, tls) = secured.await?;
        Ok(Established { stream, facts: UpstreamConnection::new(local, tls), remote: target.host.address })
    };
    within_timeout(target, guard, established).await
}

async fn within_timeout(
    target: &Target,
    guard: ConnectionGuard,
    establishing: impl Future<Output = Result<Established, UpstreamError>>,
) -> Result<Connection, UpstreamError> {
    let config = &target.cluster.config;
    match tokio::time::timeout(config.connect_timeout, establishing).await {
        Ok(Ok(Established { stream, facts, remote })) => {
            guard.connected();
            Ok(Connection { stream, facts, remote, guard })
        }
        Ok(Err(error)) => {
            guard.connect_failed();
            Err(error)
        }
        Err(_) => {
            guard.connect_timed_out();
            Err(UpstreamError::new(ErrorKind::ConnectTimeout))
        }
    }
}

/// Takes the connection's share of the circuit breaker and connects.
///
/// # Errors
/// `Overflow`, or what [`connect`] says.
pub async fn connect_within_limits(
    target: &Target,
    priority: RoutingPriority,
    server_name: Option<&str>,
) -> Result<Connection, UpstreamError> {
    let guard = target
        .cluster
        .connection(&target.host, priority)
        .map_err(|overflow| UpstreamError::with(ErrorKind::Overflow, overflow))?;
    connect(target, guard, server_name).await
}

/// A connection that nobody counts yet.
pub(super) struct Established {
    pub(super) stream: UpstreamStream,
    facts: Arc<UpstreamConnection>,
    remote: SocketAddr,
}

/// Connects, TLS included. Takes as long as it takes, and is counted nowhere but in what TLS counts.
pub(super) async fn establish(
    target: &Target,
    server_name: Option<&str>,
) -> Result<Established, UpstreamError> {
    let (io, remote) = reach(target).await?;
    io.set_nodelay(true).map_err(refused)?;
    set_keepalive(&io, &target.cluster.config).map_err(refused)?;
    let local = io.local_addr().map_err(refused)?;
    let io = match (&target.workload, target.path) {
        (Some(workload), UpstreamPath::Application { .. }) => Stream::to_application(io, workload, remote),
        (workload, _) => Stream::new(io, workload.as_deref()),
    };
    let (stream, tls) = secure(target, server_name, io, (local, remote)).await?;
    Ok(Established { stream, facts: UpstreamConnection::new(local, tls), remote })
}

/// Asks the network whether a connection of `workload` to `remote` is let through. `announce` is told the address
/// that it comes from before it comes.
pub(super) async fn knock(
    workload: &Workload,
    source: IpAddr,
    remote: SocketAddr,
    limit: Duration,
    announce: impl FnOnce(SocketAddr),
) -> Result<(), UpstreamError> {
    let connecting = async {
        let socket =
            workload.sockets.to_network(remote, Some(SocketAddr::new(source, 0))).map_err(refused)?;
        if let Some(local) = socket.local_addr().map_err(refused)?.as_socket() {
            announce(local);
        }
        TcpSocket::from_std_stream(socket.into()).connect(remote).await.map_err(not_connected)
    };
    match tokio::time::timeout(limit, connecting).await {
        // Closed by a reset: nothing is left of it at once.
        Ok(connected) => Stream::new(connected?, None).abort().map_err(refused),
        Err(_) => Err(UpstreamError::new(ErrorKind::ConnectTimeout)),
    }
}

/// TLS, where the host's transport is that, and the facts of its session. `ends`: this end, and the other.
async fn secure(
    target: &Target,
    server_name: Option<&str>,
    mut io: Stream,
    ends: (SocketAddr, SocketAddr),
) -> Result<(UpstreamStream, Option<TlsInfo>), UpstreamError> {
    let mut transport = &target.host.transport;
    if let Transport::Proxied(version, inner) = transport {
        let header = proxy_header::header(*version, target.client, ends);
        io.write_all(&header).await.map_err(refused)?;
        transport = inner;
    }
    Ok(match transport {
        // The converter lets one header be the first.
        Transport::Raw | Transport::Proxied(..) => (UpstreamStream::Raw(io), None),
        Transport::Tls(tls) => {
            let tls = target.cluster.secrets.upstream(tls).map_err(|error| {
                target.cluster.stats.upstream_context_secrets_not_ready.inc();
                UpstreamError::with(ErrorKind::TlsFailure, error)
            })?;
            let stream = handshake(target, &tls, server_name, io).await?;
            let mut info = session_info(stream.get_ref().1);
            info.local_uri_sans = tls.local_uri_sans.clone();
            info.local_leaf = tls.local_leaf.clone();
            (UpstreamStream::Tls(Box::new(stream)), Some(info))
        }
    })
}

fn refused(error: io::Error) -> UpstreamError {
    UpstreamError::with(ErrorKind::ConnectFailure, error)
}

/// A connection to the host's address, or to one of its additional ones: these are tried one after the other, when
/// the one before has failed or is silent for a while (RFC 8305, with Envoy's delay).
async fn reach(target: &Target) -> Result<(TcpStream, SocketAddr), UpstreamError> {
    let first = target.host.address;
    let additional = target.host.endpoint.as_ref().map_or(&[][..], |endpoint| &endpoint.additional);
    if additional.is_empty() {
        return dial(target, first).await;
    }
    let mut waiting = by_turns(first, additional).into_iter();
    let mut trying = FuturesUnordered::new();
    trying.push(dial(target, first));
    loop {
        let pause = tokio::time::sleep(NEXT_ADDRESS);
        let outcome = tokio::select! {
            outcome = trying.next() => outcome,
            () = pause, if waiting.len() > 0 => None,
        };
        match outcome {
            Some(Ok(connected)) => return Ok(connected),
            Some(Err(error)) if trying.is_empty() && waiting.len() == 0 => return Err(error),
            Some(Err(_)) | None => trying.extend(waiting.next().map(|address| dial(target, address))),
        }
    }
}

/// The additional addresses, families by turns, beginning with the other one.
fn by_turns(first: SocketAddr, additional: &[SocketAddr]) -> Vec<SocketAddr> {
    let (same, other): (Vec<_>, Vec<_>) =
        additional.iter().partition(|address| address.is_ipv4() == first.is_ipv4());
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    let mut turns = Vec::with_capacity(additional.len());
    loop {
        let (a, b) = (other.next(), same.next());
        if a.is_none() && b.is_none() {
            return turns;
        }
        turns.extend(a.into_iter().chain(b).copied());
    }
}

async fn dial(target: &Target, remote: SocketAddr) -> Result<(TcpStream, SocketAddr), UpstreamError> {
    let socket = open(target, remote).map_err(refused)?;
    let socket = TcpSocket::from_std_stream(socket.into());
    Ok((socket.connect(remote).await.map_err(not_connected)?, remote))
}

/// In Envoy's words, which operators search their logs for.
fn not_connected(error: io::Error) -> UpstreamError {
    let reason = match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_owned(),
        None => error.to_string(),
    };
    UpstreamError::with(ErrorKind::ConnectFailure, format!("delayed connect error: {reason}"))
}

/// An unconnected, non-blocking socket for the target.
fn open(target: &Target, remote: SocketAddr) -> io::Result<Socket> {
    let source = target.cluster.config.bind_source(remote);
    match (&target.workload, target.path) {
        (Some(workload), UpstreamPath::Network) => workload.sockets.to_network(remote, source),
        (Some(workload), UpstreamPath::Application { source }) => {
            workload.sockets.to_application(source, remote)
        }
        (None, _) => {
            let socket =
                Socket::new(Domain::for_address(remote), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            if let Some(source) = source {
                socket.bind(&source.into())?;
            }
            Ok(socket)
        }
    }
}

fn set_keepalive(io: &TcpStream, config: &Cluster) -> io::Result<()> {
    let Some(wanted) = config.tcp_keepalive else { return Ok(()) };
    let mut keepalive = TcpKeepalive::new();
    if let Some(probes) = wanted.probes {
        keepalive = keepalive.with_retries(probes);
    }
    if let Some(time) = wanted.time {
        keepalive = keepalive.with_time(time);
    }
    if let Some(interval) = wanted.interval {
        keepalive = keepalive.with_interval(interval);
    }
    SockRef::from(io).set_tcp_keepalive(&keepalive)
}

async fn handshake(
    target: &Target,
    tls: &UpstreamTls,
    server_name: Option<&str>,
    io: Stream,
) -> Result<tokio_rustls::client::TlsStream<Stream>, UpstreamError> {
    let failed = |error: &dyn std::fmt::Display| UpstreamError::with(ErrorKind::TlsFailure, error);
    let stats = &target.cluster.stats;
    let name = match tls.sni.as_deref().or(server_name) {
        Some(name) => ServerName::try_from(name.to_owned()).map_err(|error| failed(&error))?,
        // An address is never sent as server name.
        None => ServerName::from(target.host.address.ip()),
    };
    let offering = |protocols: Vec<Vec<u8>>| {
        let mut config = rustls::ClientConfig::clone(&tls.config);
        config.alpn_protocols = protocols;
        Arc::new(config)
    };
    let config = match &target.alpn {
        Some(alpn) => offering(alpn.to_vec()),
        None if tls.config.alpn_protocols.is_empty() && !target.implied_alpn.is_empty() => {
            offering(target.implied_alpn.iter().map(|protocol| protocol.to_vec()).collect())
        }
        None => tls.config.clone(),
    };
    match TlsConnector::from(config).connect(name, io).await {
        Ok(stream) => {
            stats.ssl_handshake.inc();
            Ok(stream)
        }
        Err(error) => {
            stats.ssl_connection_error.inc();
            Err(failed(&error))
        }
    }
}
