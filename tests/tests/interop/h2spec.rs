//! HTTP/2 as RFC 9113 and RFC 7541 want it of a server, by the cases of h2spec, a program that others wrote.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Result, ensure};
use mesh_tests::process::{self, Process};
use serde_json::{Value, json};

use crate::server::{address, backend, free_address, get, until};

#[test]
fn h2spec_finds_nothing_in_plain_text() -> Result<()> {
    passes(None)
}

#[test]
fn h2spec_finds_nothing_where_the_protocol_is_negotiated() -> Result<()> {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let inline = |text: String| json!({ "inline_string": text });
    passes(Some(json!({ "name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [{
                "certificate_chain": inline(key.cert.pem()),
                "private_key": inline(key.signing_key.serialize_pem()),
            }],
        },
    } })))
}

fn passes(tls: Option<Value>) -> Result<()> {
    let Some(h2spec) = std::env::var_os("MESH_H2SPEC") else {
        eprintln!("SKIPPED: h2spec is built and started by `cargo xtask conformance`");
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (admin, listener, backend) =
        runtime.block_on(async { (free_address().await, free_address().await, backend().await) });
    let mut node = Command::new(process::binary("mesh-node")?);
    node.args(["--config-yaml", &bootstrap(admin, listener, backend, tls.as_ref()).to_string()]);
    let _node = Process::spawn(node, None)?;
    runtime.block_on(until("the admin server", async || get(admin, "/ready").await.is_some()));
    let mut command = Command::new(h2spec);
    command.args(["-h", "127.0.0.1", "-p", &listener.port().to_string(), "-o", "2"]);
    if tls.is_some() {
        command.args(["-t", "-k"]);
    }
    // It ends by itself: no case waits for longer than that.
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(said.contains(" 0 skipped, 0 failed"), "{said}");
    Ok(())
}

fn bootstrap(admin: SocketAddr, listener: SocketAddr, backend: SocketAddr, tls: Option<&Value>) -> Value {
    let of = "type.googleapis.com/envoy.extensions.filters";
    // Negotiated, it is found out; in plain text a wrong preface would be taken for HTTP/1.
    let codec = if tls.is_some() { "AUTO" } else { "HTTP2" };
    json!({
        "admin": { "address": address(admin) },
        "static_resources": {
            "listeners": [{ "name": "l", "address": address(listener), "filter_chains": [{
                "transport_socket": tls,
                "filters": [{ "name": "hcm", "typed_config": {
                    "@type": format!("{of}.network.http_connection_manager.v3.HttpConnectionManager"),
                    "stat_prefix": "x",
                    "codec_type": codec,
                    "route_config": { "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
                        { "match": { "prefix": "/" }, "route": { "cluster": "backend" } }] }] },
                    "http_filters": [{ "name": "router", "typed_config": {
                        "@type": format!("{of}.http.router.v3.Router") } }],
                } }],
            }] }],
            "clusters": [{
                "name": "backend",
                "load_assignment": { "cluster_name": "backend", "endpoints": [{ "lb_endpoints": [
                    { "endpoint": { "address": address(backend) } }] }] },
            }],
        },
    })
}
