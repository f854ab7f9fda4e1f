//! The messages of Istio's own filters, written by hand: no published package has them. Their schema is in
//! `descriptors.rs`; field numbers are those of the proto files under `api/contrib/` in Envoy's repository.

use prost::Name;

/// Gives a message the full name `$package.$name`.
macro_rules! named {
    ($type:ty, $package:literal, $name:literal) => {
        impl Name for $type {
            const NAME: &'static str = $name;
            const PACKAGE: &'static str = $package;
        }
    };
}

/// `istio.stats`.
pub mod stats {
    use super::Name;
    use crate::pb::google::protobuf::Duration;

    /// `stats.PluginConfig`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct PluginConfig {
        #[prost(bool, tag = "6")]
        pub disable_host_header_fallback: bool,
        #[prost(message, optional, tag = "7")]
        pub tcp_reporting_duration: Option<Duration>,
        #[prost(message, repeated, tag = "8")]
        pub metrics: Vec<MetricConfig>,
        #[prost(message, repeated, tag = "9")]
        pub definitions: Vec<MetricDefinition>,
        #[prost(enumeration = "Reporter", tag = "10")]
        pub reporter: i32,
    }
    named!(PluginConfig, "stats", "PluginConfig");

    /// Overrides of one metric, or of all where it names none.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct MetricConfig {
        #[prost(map = "string, string", tag = "1")]
        pub dimensions: std::collections::HashMap<String, String>,
        #[prost(string, tag = "2")]
        pub name: String,
        #[prost(string, repeated, tag = "3")]
        pub tags_to_remove: Vec<String>,
        #[prost(string, tag = "4")]
        pub r#match: String,
        #[prost(bool, tag = "5")]
        pub drop: bool,
    }

    /// A metric of the configuration's own.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct MetricDefinition {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub value: String,
        #[prost(int32, tag = "3")]
        pub r#type: i32,
    }

    /// Who reports.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
    #[repr(i32)]
    pub enum Reporter {
        Unspecified = 0,
        ServerGateway = 1,
    }
}

/// `istio.alpn`.
pub mod alpn {
    use super::Name;

    /// `istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct FilterConfig {
        #[prost(message, repeated, tag = "1")]
        pub alpn_override: Vec<AlpnOverride>,
    }
    named!(FilterConfig, "istio.envoy.config.filter.http.alpn.v2alpha1", "FilterConfig");

    /// The ALPN list for one upstream protocol.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct AlpnOverride {
        #[prost(enumeration = "Protocol", tag = "1")]
        pub upstream_protocol: i32,
        #[prost(string, repeated, tag = "2")]
        pub alpn_override: Vec<String>,
    }

    /// What is spoken upstream.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
    #[repr(i32)]
    pub enum Protocol {
        Http10 = 0,
        Http11 = 1,
        Http2 = 2,
    }
}

/// `istio.metadata_exchange` among HTTP filters.
pub mod peer_metadata {
    use super::Name;

    /// `io.istio.http.peer_metadata.Config`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Config {
        #[prost(message, repeated, tag = "1")]
        pub downstream_discovery: Vec<DiscoveryMethod>,
        #[prost(message, repeated, tag = "2")]
        pub upstream_discovery: Vec<DiscoveryMethod>,
        #[prost(message, repeated, tag = "3")]
        pub downstream_propagation: Vec<PropagationMethod>,
        #[prost(message, repeated, tag = "4")]
        pub upstream_propagation: Vec<PropagationMethod>,
        #[prost(bool, tag = "5")]
        pub shared_with_upstream: bool,
        #[prost(string, repeated, tag = "6")]
        pub additional_labels: Vec<String>,
    }
    named!(Config, "io.istio.http.peer_metadata", "Config");

    /// How a peer is told; one of the three is given.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct DiscoveryMethod {
        #[prost(message, optional, tag = "1")]
        pub baggage: Option<Empty>,
        #[prost(message, optional, tag = "2")]
        pub workload_discovery: Option<Empty>,
        #[prost(message, optional, tag = "3")]
        pub istio_headers: Option<IstioHeaders>,
    }

    /// How a peer learns of us; one of the two is given.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct PropagationMethod {
        #[prost(message, optional, tag = "1")]
        pub istio_headers: Option<IstioHeaders>,
        #[prost(message, optional, tag = "2")]
        pub baggage: Option<Empty>,
    }

    /// `x-envoy-peer-metadata` and `x-envoy-peer-metadata-id`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct IstioHeaders {
        #[prost(bool, tag = "1")]
        pub skip_external_clusters: bool,
    }

    /// A method without settings.
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Empty {}
}

/// `istio.metadata_exchange` among network filters and in `cluster.filters`.
pub mod metadata_exchange {
    use super::Name;

    /// `envoy.tcp.metadataexchange.config.MetadataExchange`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct MetadataExchange {
        #[prost(string, tag = "1")]
        pub protocol: String,
        #[prost(bool, tag = "2")]
        pub enable_discovery: bool,
        #[prost(string, repeated, tag = "3")]
        pub additional_labels: Vec<String>,
    }
    named!(MetadataExchange, "envoy.tcp.metadataexchange.config", "MetadataExchange");
}

/// The names of a mesh with their addresses, for a DNS proxy.
pub mod nds {
    use std::collections::HashMap;

    use super::Name;

    /// `istio.networking.nds.v1.NameTable`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct NameTable {
        /// By host name.
        #[prost(map = "string, message", tag = "1")]
        pub table: HashMap<String, NameInfo>,
    }
    named!(NameTable, "istio.networking.nds.v1", "NameTable");

    /// One host.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct NameInfo {
        #[prost(string, repeated, tag = "1")]
        pub ips: Vec<String>,
        /// `Kubernetes` or `External`.
        #[prost(string, tag = "2")]
        pub registry: String,
        #[prost(string, tag = "3")]
        pub shortname: String,
        #[prost(string, tag = "4")]
        pub namespace: String,
    }
}
