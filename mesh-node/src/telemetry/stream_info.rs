//! What is known of one stream (an HTTP request, or a TCP connection), gathered as it passes the stages.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::model::listener::Direction;
use crate::model::workload::Workload;
use crate::model::{DynamicMetadata, Str};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::peer::Peer;
pub use crate::telemetry::response_flags::ResponseFlags;
use crate::telemetry::trace::SpanContext;
use crate::turn;

/// Facts of the downstream connection, shared by its streams.
#[derive(Debug)]
pub struct ConnectionInfo {
    pub id: u64,
    /// Who the connection is from.
    pub peer: SocketAddr,
    /// The client: the peer, or whom it speaks for (PROXY protocol).
    pub remote: SocketAddr,
    /// Where the client wanted to go: the original destination where there is one, else the local address; or what the
    /// peer says.
    pub local: SocketAddr,
    pub original_dst: Option<SocketAddr>,
    pub direction: Direction,
    pub workload: Option<Arc<Workload>>,
    pub tls: Option<Box<TlsInfo>>,
    /// From the TLS inspector or the handshake.
    pub requested_server_name: Option<String>,
    /// The name of the filter chain.
    pub filter_chain: Str,
    /// Started when the connection should end: its listener is replaced, its pod leaves, or the process stops.
    pub drain: Arc<crate::drain::Signal>,
    /// `Listener.access_log`: written when the connection ends.
    pub listener_log: Vec<Arc<AccessLog>>,
}

/// Facts of a TLS session.
#[derive(Debug, Clone, Default)]
pub struct TlsInfo {
    pub version: &'static str,
    pub cipher: &'static str,
    pub alpn: Option<String>,
    pub peer_uri_sans: Vec<String>,
    pub peer_dns_sans: Vec<String>,
    /// RFC 2253 text.
    pub peer_subject: Option<String>,
    pub peer_issuer: Option<String>,
    /// DER, leaf first.
    pub peer_chain: Vec<Vec<u8>>,
    pub local_uri_sans: Vec<Str>,
    /// Our own certificate, DER.
    pub local_leaf: Option<Arc<[u8]>>,
    /// The client's certificate was verified.
    pub peer_validated: bool,
}

/// Facts of a connection to an upstream, shared by its streams.
#[derive(Debug)]
pub struct UpstreamConnection {
    /// Never given twice.
    pub id: u64,
    pub local: SocketAddr,
    pub tls: Option<TlsInfo>,
}

impl UpstreamConnection {
    /// Facts of a connection that is new.
    pub fn new(local: SocketAddr, tls: Option<TlsInfo>) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), local, tls })
    }
}

/// Facts of one stream. The data path fills it; access logs and header formats read it.
#[derive(Debug)]
pub struct StreamInfo {
    pub connection: Arc<ConnectionInfo>,
    pub start: Instant,
    pub start_wall: SystemTime,
    /// `HTTP/1.1` and so on; `None` for TCP.
    pub protocol: Option<http::Version>,
    /// The address after X-Forwarded-For is honoured.
    pub remote: SocketAddr,
    pub route_name: Option<Str>,
    pub virtual_host: Option<Str>,
    pub virtual_cluster: Option<Str>,
    pub flags: ResponseFlags,
    /// Envoy's response code details, such as `via_upstream`.
    pub response_code: Option<u16>,
    pub response_code_details: Option<Cow<'static, str>>,
    pub connection_termination_details: Option<Cow<'static, str>>,
    /// Body bytes (HTTP), or all bytes (TCP).
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Header names and values, without framing.
    pub request_headers_bytes: u64,
    pub response_headers_bytes: u64,
    pub upstream: UpstreamInfo,
    /// Times since `start`.
    pub last_downstream_rx: Option<Duration>,
    pub first_upstream_tx: Option<Duration>,
    pub last_upstream_tx: Option<Duration>,
    pub first_upstream_rx: Option<Duration>,
    pub last_upstream_rx: Option<Duration>,
    pub first_downstream_tx: Option<Duration>,
    pub last_downstream_tx: Option<Duration>,
    pub end: Option<Duration>,
    /// The stream came to its own end: the peer did not go away first.
    pub ended: bool,
    /// The other end, as it told itself.
    pub peer: Option<Arc<Peer>>,
    /// What filters have to say. Most streams have none.
    pub metadata: Option<Box<DynamicMetadata>>,
    /// It asks for the health of the proxy.
    pub health_check: bool,
    /// Which span the stream is, if its connection manager has a tracer.
    pub trace: Option<Box<SpanContext>>,
    /// Values that filters set, by name.
    pub filter_state: Option<Box<BTreeMap<String, String>>>,
}

/// Where a stream went.
#[derive(Debug, Clone, Default)]
pub struct UpstreamInfo {
    pub cluster: Option<Str>,
    pub host: Option<SocketAddr>,
    /// Hosts that were tried before `host`.
    pub earlier: Vec<SocketAddr>,
    /// The last connection that was had.
    pub connection: Option<Arc<UpstreamConnection>>,
    pub protocol: Option<http::Version>,
    pub transport_failure: Option<String>,
    pub attempts: u32,
}

impl UpstreamInfo {
    pub fn local(&self) -> Option<SocketAddr> {
        self.connection.as_ref().map(|connection| connection.local)
    }

    pub fn tls(&self) -> Option<&TlsInfo> {
        self.connection.as_ref()?.tls.as_ref()
    }
}

impl StreamInfo {
    /// Facts of a stream that begins now.
    pub fn new(connection: Arc<ConnectionInfo>) -> Self {
        let remote = connection.remote;
        Self {
            connection,
            start: turn::now(),
            start_wall: turn::wall(),
            protocol: None,
            remote,
            route_name: None,
            virtual_host: None,
            virtual_cluster: None,
            flags: ResponseFlags::default(),
            response_code: None,
            response_code_details: None,
            connection_termination_details: None,
            bytes_received: 0,
            bytes_sent: 0,
            request_headers_bytes: 0,
            response_headers_bytes: 0,
            upstream: UpstreamInfo::default(),
            last_downstream_rx: None,
            first_upstream_tx: None,
            last_upstream_tx: None,
            first_upstream_rx: None,
            last_upstream_rx: None,
            first_downstream_tx: None,
            last_downstream_tx: None,
            end: None,
            ended: false,
            peer: None,
            metadata: None,
            health_check: false,
            trace: None,
            filter_state: None,
        }
    }

    /// The dynamic metadata, to be written.
    pub fn metadata_mut(&mut self) -> &mut DynamicMetadata {
        self.metadata.get_or_insert_default()
    }
}
