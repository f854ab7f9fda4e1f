//! Requests to whatever host they name (`envoy.filters.http.dynamic_forward_proxy`): the name is looked up before the
//! router asks for a host of the cluster.

use std::net::SocketAddr;

use http::StatusCode;

use super::super::local_reply::LocalReply;
use super::super::request::Request;
use super::Decoding;
use crate::model::cluster::{Discovery, DnsCache};
use crate::model::http_filter::{ForwardTo, HttpFilter, Override};
use crate::telemetry::stream_info::ResponseFlags;

pub(super) async fn decode(
    decoding: &Decoding<'_>,
    filter: &HttpFilter,
    own: &DnsCache,
    request: &mut Request,
) -> Option<LocalReply> {
    let stream = decoding.stream;
    let name = decoding.routed?.cluster(&request.head())?.into_owned();
    let cluster = stream.manager.ctx.clusters.get(&name)?;
    if !matches!(cluster.config.discovery, Discovery::ForwardProxy(_)) {
        return None;
    }
    match decoding.override_of(filter) {
        Some(Override::ForwardTo(ForwardTo::Literal(host))) => request.set_authority(host),
        Some(Override::ForwardTo(ForwardTo::Header(name))) => {
            let value = request.parts.headers.get(name).and_then(|value| value.to_str().ok());
            if let Some(host) = value.map(str::to_owned) {
                request.set_authority(&host);
            }
        }
        _ => {}
    }
    let default_port = if cluster.config.transport_socket.is_tls() { 443 } else { 80 };
    let (host, port) = host_and_port(request.authority(), default_port);
    match stream.manager.ctx.clusters.resolve(host, own).await {
        Some(ip) => {
            stream.chain.forward_to.set(Some(SocketAddr::new(ip, port)));
            None
        }
        None => {
            let reply = LocalReply::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "DNS resolution failure",
                "dns_resolution_failure",
            );
            Some(reply.flag(ResponseFlags::DNS_RESOLUTION_FAILED))
        }
    }
}

/// The parts of an authority; an address of IPv6 loses its brackets.
fn host_and_port(authority: &str, default_port: u16) -> (&str, u16) {
    let (host, port) = match authority.rsplit_once(':') {
        // A colon within brackets belongs to the address.
        Some((host, port)) if !port.contains(']') => (host, port.parse().unwrap_or(default_port)),
        _ => (authority, default_port),
    };
    (host.trim_matches(['[', ']']), port)
}

#[test]
fn the_port_of_a_name_is_the_one_it_gives_or_its_transports() {
    assert_eq!(host_and_port("a.test:81", 80), ("a.test", 81));
    assert_eq!(host_and_port("a.test", 443), ("a.test", 443));
    assert_eq!(host_and_port("[::1]:81", 80), ("::1", 81));
    assert_eq!(host_and_port("[::1]", 80), ("::1", 80));
}
