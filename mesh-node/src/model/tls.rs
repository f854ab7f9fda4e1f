//! Compiled TLS contexts (`envoy.extensions.transport_sockets.tls.v3`).

use std::sync::Arc;

use super::Str;

/// A `DownstreamTlsContext`: what a filter chain needs to accept TLS.
#[derive(Debug)]
pub struct DownstreamTls {
    /// With ALPN and client verification as configured.
    pub config: Arc<rustls::ServerConfig>,
    /// The same without ALPN, if `config` has it: for clients that offer only other protocols, which Envoy
    /// serves without one instead of refusing them.
    pub without_alpn: Option<Arc<rustls::ServerConfig>>,
    pub require_client_certificate: bool,
    /// URI SANs of our own certificate.
    pub local_uri_sans: Vec<Str>,
}

/// An `UpstreamTlsContext`: what a connection to an endpoint needs.
#[derive(Debug)]
pub struct UpstreamTls {
    /// With ALPN, roots, SAN matching and client certificate as configured.
    pub config: Arc<rustls::ClientConfig>,
    /// `sni`; `None` sends none unless `auto_sni` gives one.
    pub sni: Option<Str>,
    /// Never shared between workloads or trust settings: part of the pool key.
    pub identity_hash: u64,
}
