//! Connections of a bound listener, from outside.

use std::collections::HashMap;

use mesh_xds::{Node, from_node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::*;
use crate::cluster::ClusterManager;
use crate::model::Published;
use crate::telemetry::log_file::LogFiles;
use crate::telemetry::stats::Store;
use crate::xds;

/// A listener from YAML, with the files that it logs to.
fn listener(yaml: &str) -> (Arc<Listener>, Arc<LogFiles>) {
    let proto = from_node(&Node::parse(yaml).unwrap()).unwrap_or_else(|problems| panic!("{problems:?}"));
    let (stats, log_files) = (Store::default(), LogFiles::start(Arc::default()).unwrap());
    let mut context = xds::Context {
        stats: &stats,
        log_files: &log_files,
        secrets: HashMap::new(),
        clusters: None,
        needs: Default::default(),
        ignored: xds::Ignored::default(),
    };
    let listener = xds::listener("listener", &proto, &mut context).unwrap();
    (Arc::new(listener), log_files)
}

/// One client of the listener: sends, and reads to the end.
fn client(listener: &Arc<Listener>, sends: &str) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let accepts = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = accepts.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (io, source) = accepts.accept().await.unwrap();
        let direction = Direction::Unspecified;
        let io = Incoming::Socket(io);
        let accepted = Accepted { io, source, original_dst: address, direction, workload: None };
        let published: Published =
            Arc::new(arc_swap::ArcSwap::from_pointee(Snapshot::new(1, Vec::new(), std::iter::empty())));
        let ctx = Rc::new(WorkerContext::new(published, Arc::new(ClusterManager::new(1)), Arc::default()));
        client.write_all(sends.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        // A refused connection is reset.
        let serving = async {
            let rest = serve_bound(accepted, listener, ctx).await;
            if let Some(rest) = rest {
                rest.await;
            }
        };
        let (_, ()) = tokio::join!(client.read_to_end(&mut read), serving);
        read
    })
}

fn logging(chains: &str, path: &std::path::Path) -> String {
    format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}, filter_chains: [{chains}], \
         access_log: [\
         {{name: a, typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, \
         path: '{path}', log_format: {{text_format_source: {{inline_string: \"%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
         %UPSTREAM_CLUSTER%\\n\"}}}}}}}}, \
         {{name: b, filter: {{response_flag_filter: {{flags: [NR]}}}}, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: '{path}', \
         log_format: {{text_format_source: {{inline_string: \"no route\\n\"}}}}}}}}]}}",
        path = path.display()
    )
}

const TCP: &str = "{name: t, typed_config: {'@type': \
    type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: s, cluster: nowhere}}";

#[test]
fn a_connection_that_no_filter_chain_takes_is_in_the_listeners_log() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let chain = format!("{{filter_chain_match: {{destination_port: 1}}, filters: [{TCP}]}}");
    let (listener, files) = listener(&logging(&chain, file.path()));
    client(&listener, "x");
    files.flush();
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "NR filter_chain_not_found -\nno route\n");
}

#[test]
fn the_listeners_log_knows_where_a_tcp_proxy_wanted_to_go() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (listener, files) = listener(&logging(&format!("{{filters: [{TCP}]}}"), file.path()));
    client(&listener, "x");
    files.flush();
    let lines = std::fs::read_to_string(file.path()).unwrap();
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(lines.starts_with("NC "), "{lines}");
}

#[test]
fn a_connection_with_http_has_one_line_of_its_own_beside_those_of_its_requests() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let http = "{name: h, typed_config: {'@type': \
        type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
        stat_prefix: s, route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, \
        direct_response: {status: 200}}]}]}, http_filters: [{name: r, typed_config: {'@type': \
        type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}";
    let (listener, files) = listener(&logging(&format!("{{filters: [{http}]}}"), file.path()));
    let (request, last) = ("GET / HTTP/1.1\r\nHost: a\r\n", "Connection: close\r\n\r\n");
    let answer = client(&listener, &format!("{request}\r\n{request}{last}"));
    assert_eq!(String::from_utf8_lossy(&answer).matches("200 OK").count(), 2);
    files.flush();
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "- - -\n");
}
