//! The bootstrap of a mesh-node that gets everything else from an xDS server.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::mesh::ADMIN_PORT;

/// The form of the protocol that a node speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Delta,
    StateOfTheWorld,
}

/// Clusters and listeners over one ADS stream from `server`.
pub fn bootstrap(server: SocketAddr, form: Form) -> Value {
    let api_type = match form {
        Form::Delta => "DELTA_GRPC",
        Form::StateOfTheWorld => "GRPC",
    };
    json!({
        "node": { "id": "node", "cluster": "node" },
        "admin": { "address": address("127.0.0.1", ADMIN_PORT) },
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type,
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }],
            },
            "cds_config": ads(),
            "lds_config": ads(),
        },
        "static_resources": { "clusters": [{
            "name": "xds",
            "connect_timeout": "5s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} },
                },
            },
            "load_assignment": { "cluster_name": "xds", "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": address(&server.ip().to_string(), server.port()) } },
            ] }] },
        }] },
    })
}

/// The source of what comes over the node's ADS stream.
pub fn ads() -> Value {
    json!({ "ads": {}, "resource_api_version": "V3" })
}

fn address(ip: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": ip, "port_value": port } })
}
