//! What is fuzzed: every converter of a resource, the readers of text, and the HTTP/1 and HTTP/2 entry points.
//!
//! Shared by the cargo-fuzz targets beside this file and by `tests/fuzz.rs`, which runs them on a stable toolchain.
//! A target panics if something is wrong, and says nothing else.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::BytesMut;
use http::HeaderMap;
use mesh_node::cluster::ClusterManager;
use mesh_node::filter::{WorkerContext, http as manager};
use mesh_node::http::h1::chunk::{Decoded, Decoder};
use mesh_node::http::h1::parse::{self, Asked, Framing, Limits, Progress};
use mesh_node::listener::proxy_header::{self, Verdict};
use mesh_node::model::listener::{Direction, ProxyProtocol};
use mesh_node::model::network::{HttpConnectionManager, NetworkFilter};
use mesh_node::model::{Published, Snapshot};
use mesh_node::telemetry::log_file::LogFiles;
use mesh_node::telemetry::stats::Store;
use mesh_node::telemetry::stream_info::ConnectionInfo;
use mesh_node::xds::{self, Context, XdsError};
use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use mesh_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use mesh_xds::prost::{Message, Name};
use mesh_xds::{Node, from_node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What is done with the bytes: it must come to an end, and not panic.
pub type Target = fn(&[u8]);

/// Name and target.
pub const TARGETS: &[(&str, Target)] = &[
    ("bootstrap_text", bootstrap_text),
    ("bootstrap", bootstrap),
    ("cluster", cluster),
    ("endpoints", endpoints),
    ("listener", listener),
    ("routes", routes),
    ("secret", secret),
    ("extension", extension),
    ("name_table", name_table),
    ("log_format", log_format),
    ("h1_request", h1_request),
    ("h1_response", h1_response),
    ("h1_chunk", h1_chunk),
    ("http1", http1),
    ("http2", http2),
    ("mongo", mongo),
    ("proxy_header", proxy_header),
];

/// A converter neither panics nor changes its mind, and says in one line what it refuses.
fn converts<T: Message + Name + Default>(
    data: &[u8],
    convert: impl Fn(&T, &mut Context<'_>) -> Result<(), XdsError>,
) {
    let Ok(message) = T::decode(data) else { return };
    let once = || {
        let (stats, log_files) = (Store::default(), LOG_FILES.clone());
        let mut context = Context {
            stats: &stats,
            log_files: &log_files,
            secrets: HashMap::new(),
            clusters: None,
            needs: RefCell::default(),
            ignored: xds::Ignored::default(),
        };
        convert(&message, &mut context).map_err(|error| error.to_string())
    };
    let first = once();
    assert_eq!(first, once());
    if let Err(reason) = first {
        assert!(!reason.is_empty());
    }
    // It can be shown too.
    let _ = mesh_xds::to_json(&message);
}

static LOG_FILES: LazyLock<Arc<LogFiles>> =
    LazyLock::new(|| LogFiles::start(Arc::default()).expect("a thread"));

pub fn bootstrap_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(node) = Node::parse(text) {
        let _ = from_node::<Bootstrap>(&node);
    }
}

pub fn bootstrap(data: &[u8]) {
    converts::<Bootstrap>(data, |m, context| xds::bootstrap(m, context).map(drop));
}

pub fn cluster(data: &[u8]) {
    converts(data, |m, context| xds::cluster("cluster", m, context).map(drop));
}

pub fn endpoints(data: &[u8]) {
    converts(data, |m, context| xds::assignment("load_assignment", m, context).map(drop));
}

pub fn listener(data: &[u8]) {
    converts(data, |m, context| {
        let found = xds::discovered("listener", m, context)?;
        let filled = xds::filled(m, &found, &|_| None);
        xds::listener("listener", filled.as_ref().unwrap_or(m), context).map(drop)
    });
}

pub fn routes(data: &[u8]) {
    converts(data, |m, context| xds::table("route_config", m, context).map(drop));
}

pub fn secret(data: &[u8]) {
    converts(data, |m, context| xds::secret("secret", m, context).map(drop));
}

pub fn extension(data: &[u8]) {
    converts::<TypedExtensionConfig>(data, |m, context| xds::extension("extension_config", m, context));
}

pub fn name_table(data: &[u8]) {
    if let Ok(table) = mesh_xds::istio::nds::NameTable::decode(data) {
        let _ = xds::name_table("name_table", &table);
    }
}

pub fn log_format(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = xds::parse_format(text);
    }
}

fn head_in_pieces(data: &[u8], step: usize) -> Option<(String, HeaderMap)> {
    let (mut buffer, mut progress) = (BytesMut::new(), Progress::default());
    for piece in data.chunks(step) {
        buffer.extend_from_slice(piece);
        match parse::request(&mut buffer, &mut progress, &Limits::default(), &mut HeaderMap::new()) {
            Ok(Some(head)) => {
                return Some((format!("{} {} {:?}", head.method, head.uri, head.framing), head.headers));
            }
            Ok(None) => {}
            Err(_) => return None,
        }
    }
    None
}

/// The same head whether it comes at once or byte by byte.
pub fn h1_request(data: &[u8]) {
    assert_eq!(head_in_pieces(data, usize::MAX), head_in_pieces(data, 1));
}

/// One length at most, and a connection is kept only where the body's end is known.
pub fn h1_response(data: &[u8]) {
    for asked in [Asked::Plain, Asked::Head, Asked::Connect, Asked::Upgrade] {
        let (mut buffer, mut spare) = (BytesMut::from(data), HeaderMap::new());
        let head =
            parse::response(&mut buffer, &mut Progress::default(), &Limits::default(), asked, &mut spare);
        if let Ok(Some(head)) = head {
            assert!(!(head.keep_alive && head.framing == Framing::UntilClose));
            if let Framing::Length(_) = head.framing {
                assert_eq!(head.headers.get_all("content-length").iter().count(), 1);
                assert!(!head.headers.contains_key("transfer-encoding"));
            }
        }
    }
}

fn chunks_in_pieces(data: &[u8], step: usize) -> Option<Vec<u8>> {
    let (mut buffer, mut decoder, mut out) = (BytesMut::new(), Decoder::new(Framing::Chunked), Vec::new());
    for piece in data.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer, false, &Limits::default()) {
                Ok(Decoded::Data(piece)) => out.extend_from_slice(&piece),
                Ok(Decoded::More) => break,
                Ok(Decoded::End | Decoded::Trailers(_)) => return Some(out),
                Err(_) => return None,
            }
        }
    }
    None
}

/// Never more data than came, and the same data however it is split.
pub fn h1_chunk(data: &[u8]) {
    let whole = chunks_in_pieces(data, usize::MAX);
    assert_eq!(whole, chunks_in_pieces(data, 1));
    assert!(whole.is_none_or(|out| out.len() <= data.len()));
}

pub fn http1(data: &[u8]) {
    serve(data);
}

pub fn http2(data: &[u8]) {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(data);
    serve(&bytes);
}

/// A connection manager with filters and routes that look at what a request has.
const MANAGER: &str = include_str!("manager.yaml");

static HCM: LazyLock<Arc<HttpConnectionManager>> = LazyLock::new(|| {
    let node = Node::parse(MANAGER).expect("YAML");
    let listener = from_node(&node).unwrap_or_else(|problems| panic!("{problems:?}"));
    let stats = Store::default();
    let mut context = Context {
        stats: &stats,
        log_files: &LOG_FILES,
        secrets: HashMap::new(),
        clusters: None,
        needs: RefCell::default(),
        ignored: xds::Ignored::default(),
    };
    let listener = xds::listener("listener", &listener, &mut context).unwrap_or_else(|e| panic!("{e}"));
    match &listener.filter_chains[0].filters[0] {
        NetworkFilter::HttpConnectionManager(manager) => manager.clone(),
        other => panic!("{other:?}"),
    }
});

/// A client that sends these bytes, reads what comes and goes away. The connection ends, whatever it sent.
fn serve(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let ended = runtime.block_on(local.run_until(async {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let clusters = Arc::new(ClusterManager::new(1));
        let snapshot = Snapshot::new(1, Vec::new(), std::iter::empty());
        let published: Published = Arc::new(arc_swap::ArcSwap::from_pointee(snapshot));
        let ctx = std::rc::Rc::new(WorkerContext::new(published, clusters, std::sync::Arc::default()));
        let connection = Arc::new(ConnectionInfo {
            id: 1,
            peer: "192.0.2.9:4000".parse().expect("an address"),
            remote: "192.0.2.9:4000".parse().expect("an address"),
            local: "192.0.2.2:80".parse().expect("an address"),
            original_dst: None,
            direction: Direction::Inbound,
            workload: None,
            tls: None,
            requested_server_name: None,
            filter_chain: "".into(),
            drain: Arc::default(),
            listener_log: Vec::new(),
        });
        let served = tokio::task::spawn_local(manager::serve(HCM.clone(), connection, server, ctx, None));
        let _ = client.write_all(data).await;
        let _ = client.shutdown().await;
        let mut answer = vec![0; 4096];
        let read = async { while let Ok(1..) = client.read(&mut answer).await {} };
        // A server may keep the connection for a moment for what the client might still read.
        let _ = tokio::time::timeout(Duration::from_secs(5), read).await;
        drop(client);
        tokio::time::timeout(Duration::from_secs(10), served).await
    }));
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
        Err(_) => panic!("the connection does not end"),
    }
}

/// A header that is found is found whatever follows, and in none of its beginnings.
fn proxy_header(data: &[u8]) {
    let filter = ProxyProtocol { optional: false, versions: [true; 2] };
    if let Verdict::Header { bytes, .. } = proxy_header::parse(data, &filter) {
        assert_eq!(proxy_header::parse(&data[..bytes], &filter), proxy_header::parse(data, &filter));
        (0..bytes).for_each(|end| assert_eq!(proxy_header::parse(&data[..end], &filter), Verdict::NeedMore));
    }
}

/// However the bytes come, the same is heard.
fn mongo(data: &[u8]) {
    let heard = |step: usize| {
        let (mut decoder, mut heard) = (mesh_node::filter::mongo::wire::Decoder::default(), Vec::new());
        let outcome: Result<(), _> =
            data.chunks(step.max(1)).try_for_each(|piece| decoder.feed(piece, &mut |op| heard.push(op)));
        (outcome, heard)
    };
    assert_eq!(heard(1), heard(data.len()));
}
