//! The bootstrap of a case file for one proxy.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::case::CaseFile;

/// Ports are the same everywhere: each proxy has an address of its own.
pub const LISTENER_PORT: u16 = 10_000;
pub const ADMIN_PORT: u16 = 9901;
const FIRST_BACKEND_PORT: u16 = 8001;

/// One line per stream: who, and what the proxy thinks of it.
const LOG_FORMAT: &str = "%REQ(X-CASE)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% \
    %BYTES_SENT% %PROTOCOL% %ROUTE_NAME% %UPSTREAM_CLUSTER% %REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%";

/// The port of each backend.
pub fn ports(file: &CaseFile) -> BTreeMap<String, u16> {
    file.backends.keys().cloned().zip(FIRST_BACKEND_PORT..).collect()
}

/// The bootstrap as JSON. `${ip}`, `${certs}`, `${log}`, `${port:NAME}`, `${server.hash}` and `${server.spki}` in the case
/// file are replaced.
pub fn bootstrap(file: &CaseFile, ip: IpAddr, certs: &Path, log: &Path) -> Result<String> {
    let ports = ports(file);
    let clusters = file
        .clusters
        .iter()
        .map(|(name, cluster)| {
            self::cluster(name, cluster, ip, &ports).with_context(|| format!("cluster {name}"))
        })
        .collect::<Result<Vec<_>>>()?;
    let filter = file.network_filter.clone().unwrap_or_else(|| connection_manager(file, log));
    let mut chain = json!({ "filters": [filter] });
    merge(&mut chain, &file.filter_chain);
    let mut listener = json!({
        "name": "main",
        "address": socket_address(ip, LISTENER_PORT),
        "filter_chains": [chain],
    });
    merge(&mut listener, &file.listener);
    let mut bootstrap = json!({
        "node": { "id": "node-1", "cluster": "cluster-1" },
        "admin": { "address": socket_address(ip, ADMIN_PORT) },
        "static_resources": { "listeners": [listener], "clusters": clusters },
    });
    merge(&mut bootstrap, &file.bootstrap);
    let mut text = serde_json::to_string_pretty(&bootstrap)?
        .replace("${ip}", &ip.to_string())
        .replace("${certs}", &certs.display().to_string())
        .replace("${log}", &log.display().to_string());
    for pin in ["server.hash", "server.spki"] {
        let read = || std::fs::read_to_string(certs.join(pin)).with_context(|| format!("reading {pin}"));
        if text.contains(&format!("${{{pin}}}")) {
            text = text.replace(&format!("${{{pin}}}"), &read()?);
        }
    }
    for (name, port) in ports {
        text = text.replace(&format!("${{port:{name}}}"), &port.to_string());
    }
    Ok(text)
}

fn socket_address(ip: IpAddr, port: u16) -> Value {
    json!({ "socket_address": { "address": ip.to_string(), "port_value": port } })
}

fn merge(value: &mut Value, over: &Map<String, Value>) {
    if let Some(object) = value.as_object_mut() {
        object.extend(over.clone());
    }
}

fn connection_manager(file: &CaseFile, log: &Path) -> Value {
    let mut routes = json!({ "name": "local", "virtual_hosts": file.virtual_hosts });
    merge(&mut routes, &file.route_config);
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": routes,
        "access_log": [{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": log.display().to_string(),
                "log_format": { "text_format_source": { "inline_string": format!("{LOG_FORMAT}{}\n", file.log) } },
            },
        }],
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    merge(&mut config, &file.hcm);
    json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": config })
}

fn cluster(
    name: &str,
    given: &Map<String, Value>,
    ip: IpAddr,
    ports: &BTreeMap<String, u16>,
) -> Result<Value> {
    let mut over = given.clone();
    let mut cluster = json!({ "name": name, "type": "STATIC", "connect_timeout": "1s" });
    if let Some(hosts) = over.remove("hosts") {
        let hosts: Vec<String> = serde_json::from_value(hosts).context("hosts")?;
        let endpoints = hosts
            .iter()
            .map(|host| {
                let port = ports.get(host).with_context(|| format!("no backend {host}"))?;
                Ok(json!({ "endpoint": { "address": socket_address(ip, *port) } }))
            })
            .collect::<Result<Vec<_>>>()?;
        cluster["load_assignment"] =
            json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] });
    }
    if over.remove("http2").is_some() {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        });
    }
    if let Some(sni) = over.remove("tls") {
        cluster["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": sni,
                "common_tls_context": {
                    "validation_context": { "trusted_ca": { "filename": "${certs}/ca.pem" } },
                },
            },
        });
    }
    if over.contains_key("cluster_type") {
        // It stands in place of `type`.
        cluster.as_object_mut().map(|cluster| cluster.remove("type"));
    }
    merge(&mut cluster, &over);
    Ok(cluster)
}
