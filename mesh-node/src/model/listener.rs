//! Listeners and filter chains (`envoy.config.listener.v3`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::Str;
use super::network::{NetworkFilter, RouteSource, TcpClusters};
use super::scopes::{ScopeRoutes, Scopes};
use super::tls::{DownstreamTls, TlsContext};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::stats::ListenerStats;

/// `core.v3.TrafficDirection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Direction {
    #[default]
    Unspecified,
    Inbound,
    Outbound,
}

/// A compiled `Listener`.
#[derive(Debug, Clone)]
pub struct Listener {
    pub name: Str,
    pub address: SocketAddr,
    /// Other addresses by which connections are handed to it; never bound.
    pub additional_addresses: Vec<SocketAddr>,
    pub direction: Direction,
    /// False: never bound; entered from a `use_original_dst` listener by original destination.
    pub bind_to_port: bool,
    /// Hand a connection to the listener that matches its original destination.
    pub use_original_dst: bool,
    pub listener_filters: ListenerFilters,
    /// Time for all listener filters; `None` is no limit (`0s`). Envoy's default is 15 s.
    pub listener_filters_timeout: Option<Duration>,
    pub continue_on_listener_filters_timeout: bool,
    pub filter_chains: Vec<Arc<FilterChain>>,
    pub default_filter_chain: Option<Arc<FilterChain>>,
    pub access_log: Vec<Arc<AccessLog>>,
    /// Envoy's default is 1 MiB.
    pub per_connection_buffer_limit_bytes: u32,
    pub stats: Arc<ListenerStats>,
    /// Started when the listener is replaced, removed or the process stops; `Default` when compiled.
    pub drain: Arc<crate::drain::Signal>,
    /// Hash of the resource: equal resources keep their connections when configuration changes.
    pub content_hash: u64,
}

/// Which listener filters run before a filter chain is chosen. Each says on which destination ports it is
/// disabled (`filter_disabled`).
#[derive(Debug, Default, Clone)]
pub struct ListenerFilters {
    pub original_dst: bool,
    pub tls_inspector: Option<PortPredicate>,
    pub http_inspector: Option<PortPredicate>,
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// Connections begin with a header of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Connections without a header are served, too (`allow_requests_without_proxy_protocol`).
    pub optional: bool,
    /// Versions 1 and 2: which are not disallowed.
    pub versions: [bool; 2],
}

/// `ListenerFilterChainMatchPredicate`: true where the filter is disabled.
#[derive(Debug, Clone, Default)]
pub enum PortPredicate {
    #[default]
    Never,
    Any,
    /// Half open, as `type.v3.Int32Range`.
    DestinationPorts {
        start: u16,
        end: u32,
    },
    Or(Vec<PortPredicate>),
    And(Vec<PortPredicate>),
    Not(Box<PortPredicate>),
}

impl Listener {
    /// Calls `f` with the name of each cluster that its chains send to, other than by named routes.
    pub fn for_each_cluster(&self, f: &mut dyn FnMut(&Str)) {
        let chains = self.filter_chains.iter().chain(&self.default_filter_chain);
        for filter in chains.flat_map(|chain| &chain.filters) {
            match filter {
                NetworkFilter::TcpProxy(proxy) => match &proxy.cluster {
                    TcpClusters::Single(name) => f(name),
                    TcpClusters::Weighted { clusters, .. } => clusters.iter().for_each(|(name, _)| f(name)),
                },
                NetworkFilter::HttpConnectionManager(manager) => match &manager.routes {
                    RouteSource::Inline(table) => table.for_each_cluster(f),
                    RouteSource::Scoped(scoped) => {
                        if let Scopes::Inline(scopes) = &scoped.scopes {
                            for scope in scopes {
                                if let ScopeRoutes::Inline(table) = &scope.routes {
                                    table.for_each_cluster(f);
                                }
                            }
                        }
                    }
                    RouteSource::Named(_) => {}
                },
                NetworkFilter::Rbac(_)
                | NetworkFilter::LocalRateLimit(_)
                | NetworkFilter::ConnectionLimit(_)
                | NetworkFilter::MetadataExchange(_)
                | NetworkFilter::IstioStats(_)
                | NetworkFilter::SniForwardProxy(_)
                | NetworkFilter::MongoProxy(_)
                | NetworkFilter::SniCluster => {}
            }
        }
    }
}

impl PortPredicate {
    /// Is the filter disabled for a connection to this destination port?
    pub fn matches(&self, port: u16) -> bool {
        match self {
            Self::Never => false,
            Self::Any => true,
            Self::DestinationPorts { start, end } => port >= *start && u32::from(port) < *end,
            Self::Or(of) => of.iter().any(|p| p.matches(port)),
            Self::And(of) => of.iter().all(|p| p.matches(port)),
            Self::Not(of) => !of.matches(port),
        }
    }
}

/// One filter chain and what a connection must look like to enter it.
#[derive(Debug)]
pub struct FilterChain {
    pub name: Str,
    pub matches: FilterChainMatch,
    pub tls: Option<TlsContext<DownstreamTls>>,
    /// Non-terminal filters first, one terminal filter (`tcp_proxy` or HTTP connection manager) last.
    pub filters: Vec<NetworkFilter>,
    /// `transport_socket_connect_timeout`: bound on the TLS handshake.
    pub transport_socket_connect_timeout: Option<Duration>,
}

/// `FilterChainMatch`. Empty lists match everything.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct FilterChainMatch {
    pub destination_port: Option<u16>,
    pub prefix_ranges: Vec<Cidr>,
    /// Lower case; a leading `*.` is a suffix wildcard.
    pub server_names: Vec<String>,
    /// `tls` or `raw_buffer`; empty matches either.
    pub transport_protocol: String,
    pub application_protocols: Vec<String>,
    pub direct_source_prefix_ranges: Vec<Cidr>,
    pub source_type: SourceType,
    pub source_prefix_ranges: Vec<Cidr>,
    pub source_ports: Vec<u16>,
}

/// `FilterChainMatch.ConnectionSourceType`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum SourceType {
    #[default]
    Any,
    SameIpOrLoopback,
    External,
}

/// An address prefix (`core.v3.CidrRange`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix_len: u8,
}

impl Cidr {
    /// Is `ip` inside? IPv4-mapped IPv6 addresses are compared as IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address.to_canonical(), ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let shift = 32 - u32::from(self.prefix_len.min(32));
                shift == 32 || (net.to_bits() ^ ip.to_bits()) >> shift == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let shift = 128 - u32::from(self.prefix_len.min(128));
                shift == 128 || (net.to_bits() ^ ip.to_bits()) >> shift == 0
            }
            _ => false,
        }
    }
}
