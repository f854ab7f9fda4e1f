//! One HTTP request to one host: finds or opens a connection, sends, and says what failed.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, Uri, Version, header};

use super::Target;
use super::connect::{Connection, connect, connect_over};
use super::error::{ErrorKind, UpstreamError};
use super::handed::HandedH1;
use super::neighbour::{Handing, Neighbourhood, Neighbours, Speaks};
use super::pool::{Connecting, Http1, Key, Lease, Pools, Slot, Via};
use super::pooled::{Pooled, pooled};
use super::stream::UpstreamStream;
use crate::budget::{Held, Purse};
use crate::cluster::{ConnectionGuard, Outcome, RequestGuard, RoutingPriority};
use crate::http::body::Body;
use crate::http::h1::handed::{Callee, Offered};
use crate::http::h1::parse::Limits;
use crate::http::{h1, h2};
use crate::model::Str;
use crate::model::cluster::UpstreamProtocol;
use crate::telemetry::stream_info::UpstreamConnection;
use crate::turn;

/// The connections that a worker keeps to endpoints for HTTP requests.
#[derive(Clone, Default)]
pub struct Upstreams {
    pub(super) pools: Pools,
    neighbourhood: Neighbourhood,
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstreams").field("idle", &self.pools.idle()).finish()
    }
}

/// A response and where it came from.
#[derive(Debug)]
pub struct Exchange {
    /// Its body holds the connection, and gives it back at its end. Dropped before, an HTTP/1 connection is closed
    /// and an HTTP/2 stream reset.
    pub response: Response<Body>,
    /// When the connection began to send the request.
    pub begun: Instant,
    pub connection: Arc<UpstreamConnection>,
    pub remote: SocketAddr,
    pub protocol: Version,
}

/// What all steps of one request need.
struct Sending<'a> {
    upstreams: &'a Upstreams,
    pools: &'a Pools,
    target: &'a Target,
    priority: RoutingPriority,
    key: Key,
    server_name: Option<Str>,
}

/// A new transport, and who answers in memory what would be sent over it.
struct Opened {
    transport: Pooled,
    callee: Option<Rc<dyn Callee>>,
}

impl Upstreams {
    /// Sends a request to the target's host. `downstream` is the version that the client spoke, for clusters that
    /// follow it. The request's URI or `host` names the authority.
    ///
    /// # Errors
    /// There is no response; nothing is retried here.
    pub async fn request(
        &self,
        target: &Target,
        priority: RoutingPriority,
        downstream: Version,
        request: Request<Body>,
    ) -> Result<Exchange, UpstreamError> {
        let guard = target
            .cluster
            .request(&target.host, priority)
            .map_err(|overflow| UpstreamError::with(ErrorKind::Overflow, overflow))?;
        let server_name = target.cluster.config.auto_sni.then(|| server_name(&request)).flatten();
        let key = Key::new(target, server_name.clone());
        let sending = Sending { upstreams: self, pools: &self.pools, target, priority, key, server_name };
        let outcome = match target.cluster.config.protocol {
            UpstreamProtocol::Http1 => sending.http1(request, guard).await,
            UpstreamProtocol::Http2 => sending.http2(request, guard).await,
            UpstreamProtocol::Downstream if downstream == Version::HTTP_2 => {
                sending.http2(request, guard).await
            }
            UpstreamProtocol::Downstream => sending.http1(request, guard).await,
            UpstreamProtocol::Auto => Box::pin(sending.by_alpn(request, guard)).await,
        };
        target.host.counters.finish(match &outcome {
            Ok(exchange) if !exchange.response.status().is_server_error() => Outcome::Success,
            _ => Outcome::Error,
        });
        outcome
    }

    /// Connects for a stream of bytes, taking the connection's share of the circuit breaker.
    ///
    /// # Errors
    /// `Overflow`, or why the host cannot be reached.
    pub async fn connect(
        &self,
        target: &Target,
        priority: RoutingPriority,
    ) -> Result<Connection, UpstreamError> {
        let guard = target
            .cluster
            .connection(&target.host, priority)
            .map_err(|overflow| UpstreamError::with(ErrorKind::Overflow, overflow))?;
        self.open(target, guard, None, Speaks::Anything).await.map(|(connection, _)| connection)
    }

    /// A new connection: in memory where the host is a pod of this node that takes it so.
    async fn open(
        &self,
        target: &Target,
        guard: ConnectionGuard,
        server_name: Option<&str>,
        speaks: Speaks,
    ) -> Result<(Connection, Option<Offered>), UpstreamError> {
        match self.neighbourhood.hand_over(target, speaks).await {
            Ok(None) => connect(target, guard, server_name).await.map(|connection| (connection, None)),
            Ok(Some(Handing { pipe, local, offered })) => {
                let connection = connect_over(target, guard, server_name, pipe, local).await?;
                Ok((connection, offered))
            }
            Err(error) => {
                match error.kind {
                    ErrorKind::ConnectTimeout => guard.connect_timed_out(),
                    _ => guard.connect_failed(),
                }
                Err(error)
            }
        }
    }

    /// Who serves connections to pods of this node.
    pub fn set_neighbours(&self, neighbours: Option<Rc<dyn Neighbours>>) {
        self.neighbourhood.set(neighbours);
    }

    /// Connections that wait for a request now.
    pub fn idle_connections(&self) -> usize {
        self.pools.idle()
    }
}

// What opens a connection is in memory of its own: a request that finds one open, as nearly all do, would have to have
// room for it.
impl Sending<'_> {
    async fn http1(&self, request: Request<Body>, guard: RequestGuard) -> Result<Exchange, UpstreamError> {
        let connection = match self.pools.take_idle(&self.key) {
            Some(connection) => connection,
            None => Box::pin(self.new_http1()).await?,
        };
        self.send_http1(connection, request, guard).await
    }

    async fn send_http1(
        &self,
        connection: Http1,
        request: Request<Body>,
        guard: RequestGuard,
    ) -> Result<Exchange, UpstreamError> {
        guard.attached();
        let facts = connection.share().facts.clone();
        let reused = connection.exchanges() > 0;
        let lease = Lease::new(self.pools, self.key.clone(), guard);
        let begun = turn::now();
        let outcome = match connection {
            Http1::Wire(connection) => connection.exchange(request, lease).await,
            Http1::Handed(connection) => connection.exchange(request, lease).await,
        };
        match outcome {
            Ok(response) => {
                let protocol = response.version();
                Ok(Exchange {
                    response,
                    begun,
                    connection: facts,
                    remote: self.target.host.address,
                    protocol,
                })
            }
            Err(failure) => Err(self.http1_failed(failure, reused)),
        }
    }

    fn http1_failed(&self, failure: h1::Failure, reused: bool) -> UpstreamError {
        match failure {
            // Half a response head is no response at all, to Envoy too.
            h1::Failure::Connection { untouched: false, error }
                if error.kind() == io::ErrorKind::UnexpectedEof =>
            {
                self.target.cluster.stats.upstream_cx_protocol_error.inc();
                UpstreamError::new(ErrorKind::ProtocolError)
            }
            h1::Failure::Connection { untouched, .. } => {
                UpstreamError::new(ErrorKind::Reset { reused: reused && untouched, request_started: true })
            }
            h1::Failure::Protocol(error) => {
                self.target.cluster.stats.upstream_cx_protocol_error.inc();
                tracing::debug!(host = %self.target.host.address, %error, "response refused");
                UpstreamError::new(ErrorKind::ProtocolError)
            }
            h1::Failure::RequestBody(error) => {
                tracing::debug!(%error, "request body failed");
                UpstreamError::new(ErrorKind::Reset { reused: false, request_started: true })
            }
        }
    }

    /// A free HTTP/1 connection: a new one, or one that is given back while the limit of connections is reached.
    async fn new_http1(&self) -> Result<Http1, UpstreamError> {
        let opened = loop {
            if let Some(opened) = self.try_open(Speaks::Http1).await? {
                break opened;
            }
            let slots = self.pools.with_group(&self.key, self.target, |group| group.slots.clone());
            let _pending = self.pending()?;
            slots.wait().await;
            if let Some(connection) = self.pools.take_idle(&self.key) {
                return Ok(connection);
            }
        };
        Ok(self.start_http1(opened))
    }

    fn start_http1(&self, Opened { transport, callee }: Opened) -> Http1 {
        let config = &self.target.cluster.config;
        config.stats.upstream_cx_http1_total.inc();
        if let Some(callee) = callee {
            return Http1::Handed(HandedH1::new(transport, callee, config.http1.enable_trailers));
        }
        let limits = Limits {
            accept_http_10: true,
            allow_chunked_length: config.http1.allow_chunked_length,
            keep_case: config.http1.keep_case,
            ..Limits::default()
        };
        let options = h1::client::Options {
            limits,
            trailers: config.http1.enable_trailers,
            proper_case: config.http1.proper_case,
        };
        Http1::Wire(h1::Connection::new(transport, options, Held::new(self.purse())))
    }

    /// Where the bytes held for the workload count.
    fn purse(&self) -> Option<Rc<Purse>> {
        self.target.workload.as_ref().map(|workload| Purse::of(&workload.limits.buffers))
    }

    /// Opens a connection. `None`: the circuit breaker is open and this worker has a connection to the host
    /// already, so that waiting for it makes sense; else one is opened all the same, as Envoy does.
    async fn try_open(&self, speaks: Speaks) -> Result<Option<Opened>, UpstreamError> {
        let Target { cluster, host, .. } = self.target;
        let slots = self.pools.with_group(&self.key, self.target, |group| group.slots.clone());
        let guard = match cluster.connection(host, self.priority) {
            Ok(guard) => guard,
            Err(_) if slots.open.get() > 0 => return Ok(None),
            Err(_) => cluster.connection_over_limit(host, self.priority),
        };
        let slot = Slot::take(slots);
        let _pending = self.pending()?;
        let server_name = self.server_name.as_deref();
        let (connection, offered) = self.upstreams.open(self.target, guard, server_name, speaks).await?;
        let callee = match offered {
            Some(offered) => offered.taken().await,
            None => None,
        };
        Ok(Some(Opened { transport: pooled(connection, slot), callee }))
    }

    fn pending(&self) -> Result<crate::cluster::PendingGuard, UpstreamError> {
        self.target
            .cluster
            .pending(self.priority)
            .map_err(|overflow| UpstreamError::with(ErrorKind::Overflow, overflow))
    }

    async fn http2(&self, request: Request<Body>, guard: RequestGuard) -> Result<Exchange, UpstreamError> {
        loop {
            match self.pools.shared(&self.key, self.target) {
                Via::Ready(handle) => return self.send_http2(handle, request, guard).await,
                Via::Wait(attempt) => {
                    let _pending = self.pending()?;
                    attempt.outcome().await?;
                }
                Via::Connect(connecting) => {
                    let handle = Box::pin(self.new_http2(connecting)).await?;
                    return self.send_http2(handle, request, guard).await;
                }
            }
        }
    }

    /// A new transport, waiting for room under the limit of connections.
    async fn open_or_wait(&self, speaks: Speaks) -> Result<Opened, UpstreamError> {
        loop {
            if let Some(opened) = self.try_open(speaks).await? {
                return Ok(opened);
            }
            let slots = self.pools.with_group(&self.key, self.target, |group| group.slots.clone());
            slots.wait().await;
        }
    }

    async fn new_http2(&self, connecting: Connecting) -> Result<h2::Handle, UpstreamError> {
        match self.open_or_wait(Speaks::Http2).await {
            Ok(opened) => self.start_http2(opened.transport, connecting).await,
            Err(error) => {
                connecting.failed(&error);
                Err(error)
            }
        }
    }

    async fn start_http2(
        &self,
        transport: Pooled,
        connecting: Connecting,
    ) -> Result<h2::Handle, UpstreamError> {
        let config = &self.target.cluster.config;
        config.stats.upstream_cx_http2_total.inc();
        let facts = transport.meter().facts.clone();
        match h2::connect(transport, facts, &config.http2, config.idle_timeout, self.purse()).await {
            Ok(handle) => {
                connecting.succeeded(handle.clone());
                Ok(handle)
            }
            Err(failure) => {
                let error = self.http2_failed(failure);
                connecting.failed(&error);
                Err(error)
            }
        }
    }

    async fn send_http2(
        &self,
        mut handle: h2::Handle,
        mut request: Request<Body>,
        guard: RequestGuard,
    ) -> Result<Exchange, UpstreamError> {
        *request.uri_mut() = absolute(&request, self.target.host.transport.is_tls())
            .ok_or_else(|| UpstreamError::with(ErrorKind::ProtocolError, "no authority"))?;
        guard.attached();
        let connection = handle.connection().clone();
        let begun = turn::now();
        match handle.exchange(request, guard).await {
            Ok(response) => {
                let remote = self.target.host.address;
                Ok(Exchange { response, begun, connection, remote, protocol: Version::HTTP_2 })
            }
            Err(failure) => Err(self.http2_failed(failure)),
        }
    }

    fn http2_failed(&self, failure: h2::Failure) -> UpstreamError {
        let stats = &self.target.cluster.stats;
        match failure {
            h2::Failure::Refused => {
                stats.upstream_rq_rx_reset.inc();
                UpstreamError::new(ErrorKind::RefusedStream)
            }
            h2::Failure::NotSent => {
                UpstreamError::new(ErrorKind::Reset { reused: true, request_started: false })
            }
            h2::Failure::Reset(reason) => {
                stats.upstream_rq_rx_reset.inc();
                let protocol = matches!(reason, ::h2::Reason::PROTOCOL_ERROR);
                UpstreamError::new(if protocol { ErrorKind::ProtocolError } else { ErrorKind::RemoteReset })
            }
            h2::Failure::RequestBody(error) => {
                tracing::debug!(%error, "request body failed");
                UpstreamError::new(ErrorKind::Reset { reused: false, request_started: true })
            }
            h2::Failure::Connection(error) => {
                tracing::debug!(host = %self.target.host.address, %error, "HTTP/2 connection failed");
                UpstreamError::new(ErrorKind::Reset { reused: false, request_started: true })
            }
        }
    }

    /// `auto_config`: the version that ALPN chooses; HTTP/1 where it chooses none.
    async fn by_alpn(&self, request: Request<Body>, guard: RequestGuard) -> Result<Exchange, UpstreamError> {
        if self.pools.with_group(&self.key, self.target, |group| group.speaks_h2) {
            return self.http2(request, guard).await;
        }
        if let Some(connection) = self.pools.take_idle(&self.key) {
            return self.send_http1(connection, request, guard).await;
        }
        let opened = self.open_or_wait(Speaks::Anything).await?;
        if opened.transport.get_ref().and_then(UpstreamStream::alpn) != Some(b"h2") {
            return self.send_http1(self.start_http1(opened), request, guard).await;
        }
        self.pools.with_group(&self.key, self.target, |group| group.speaks_h2 = true);
        match self.pools.shared(&self.key, self.target) {
            // Another request was faster.
            Via::Ready(handle) => self.send_http2(handle, request, guard).await,
            Via::Wait(_) => self.http2(request, guard).await,
            Via::Connect(connecting) => {
                let handle = self.start_http2(opened.transport, connecting).await?;
                self.send_http2(handle, request, guard).await
            }
        }
    }
}

/// The host of a request without its port.
fn server_name(request: &Request<Body>) -> Option<Str> {
    let authority = authority(request)?;
    Some(authority.host().trim_matches(['[', ']']).into())
}

fn authority(request: &Request<Body>) -> Option<Authority> {
    match request.uri().authority() {
        Some(authority) => Some(authority.clone()),
        None => Authority::try_from(request.headers().get(header::HOST)?.as_bytes()).ok(),
    }
}

/// HTTP/2 names scheme and authority in the target.
fn absolute(request: &Request<Body>, tls: bool) -> Option<Uri> {
    let uri = request.uri();
    if uri.scheme().is_some() && uri.authority().is_some() {
        return Some(uri.clone());
    }
    let authority = authority(request)?;
    if *request.method() == Method::CONNECT {
        return Some(Uri::from(authority));
    }
    let scheme = match request.headers().get("x-forwarded-proto").map(|proto| proto.as_bytes()) {
        Some(b"https") => Scheme::HTTPS,
        Some(b"http") => Scheme::HTTP,
        _ if tls => Scheme::HTTPS,
        _ => Scheme::HTTP,
    };
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build().ok()
}
