//! The case files (`tests/differential/*.yaml`).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// One file: a configuration, and cases that run one after the other.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseFile {
    /// Name and kind of the servers behind the proxy.
    #[serde(default)]
    pub backends: BTreeMap<String, BackendKind>,
    /// Merged into the bootstrap.
    #[serde(default)]
    pub bootstrap: Map<String, Value>,
    /// Merged into the listener.
    #[serde(default)]
    pub listener: Map<String, Value>,
    /// Merged into the only filter chain.
    #[serde(default)]
    pub filter_chain: Map<String, Value>,
    /// Merged into the connection manager.
    #[serde(default)]
    pub hcm: Map<String, Value>,
    /// Merged into the route configuration.
    #[serde(default)]
    pub route_config: Map<String, Value>,
    #[serde(default)]
    pub virtual_hosts: Vec<Value>,
    /// In place of the connection manager.
    #[serde(default)]
    pub network_filter: Option<Value>,
    /// Clusters as Envoy has them, with `hosts` (names of backends), `http2` and `tls` as short forms.
    #[serde(default)]
    pub clusters: BTreeMap<String, Map<String, Value>>,
    /// Appended to each line of the access log.
    #[serde(default)]
    pub log: String,
    pub cases: Vec<Case>,
}

/// What a backend speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendKind {
    Http1,
    Http2,
    /// HTTP/1 over TLS with the certificate of `server.test`.
    TlsHttp1,
    TlsHttp2,
    /// HTTP/1 over TLS; asks for a client certificate.
    MtlsHttp1,
    /// Sends back what it gets.
    TcpEcho,
    /// Sends a line before it reads, then what it gets.
    TcpGreeting,
    /// Nobody listens.
    Refused,
}

/// One case: requests and how their outcomes are compared.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    pub send: Vec<Send>,
    /// Each request but the last is sent when the one before has arrived at its backend (which holds it if it says
    /// `x-do: hold`), and the last one after them.
    #[serde(default)]
    pub overlap: bool,
    #[serde(default)]
    pub compare: Compare,
}

/// One request.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Send {
    #[serde(default = "get")]
    pub method: String,
    #[serde(default = "root")]
    pub path: String,
    #[serde(default = "host")]
    pub host: String,
    /// `name: value`, in order.
    #[serde(default)]
    pub headers: Vec<String>,
    #[serde(default)]
    pub body: String,
    /// Sends that many bytes in place of `body`.
    #[serde(default)]
    pub body_size: usize,
    /// In chunks, with `trailers` at the end.
    #[serde(default)]
    pub chunked: bool,
    #[serde(default)]
    pub trailers: Vec<String>,
    #[serde(default)]
    pub protocol: Protocol,
    /// TLS to the proxy.
    #[serde(default)]
    pub tls: Option<ClientTls>,
    /// Bytes as they stand (YAML escapes), in place of a request.
    #[serde(default)]
    pub raw: Option<String>,
    /// Waits for 100 before it sends the body.
    #[serde(default)]
    pub expect_continue: bool,
    /// HTTP/2: an extended CONNECT for this protocol (RFC 8441).
    #[serde(default)]
    pub tunnel: Option<String>,
    /// Sent to the admin interface; of its headers only the content type counts, and JSON in any order.
    #[serde(default)]
    pub admin: bool,
    /// Sent after a 101, or the answer to CONNECT, and awaited back. `protocol: tcp`: what the answer ends with, awaited
    /// before the write side is closed.
    #[serde(default)]
    pub after_upgrade: Option<String>,
    /// Goes away without an answer after that many milliseconds.
    #[serde(default)]
    pub give_up_after_ms: Option<u64>,
    #[serde(default = "once")]
    pub repeat: usize,
}

/// What the client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    H1,
    /// HTTP/1.0
    H10,
    /// HTTP/2 by prior knowledge, or by ALPN with TLS.
    H2,
    /// No HTTP: `body` is sent and the write side closed, the answer read to its end.
    Tcp,
}

/// How the client speaks TLS.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientTls {
    #[serde(default = "server_name")]
    pub sni: String,
    #[serde(default)]
    pub client_certificate: bool,
}

/// How outcomes are compared.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compare {
    pub choice: Choice,
    /// Only status codes and whether the connection stayed open.
    pub status_only: bool,
    /// Headers whose values may differ (both have them or none).
    pub mask: Vec<String>,
    /// The access log is not compared, with the reason.
    pub no_log: Option<String>,
}

/// How the choice of endpoints is compared.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The same backends in the same order.
    #[default]
    Exact,
    /// The same order from some starting point on.
    Cyclic,
    /// Any; how many requests each backend got is the same within this share of all.
    Share(f64),
    /// The same backends as a set of counts.
    Counts,
}

fn get() -> String {
    "GET".to_owned()
}
fn root() -> String {
    "/".to_owned()
}
fn host() -> String {
    "app.test".to_owned()
}
fn server_name() -> String {
    "server.test".to_owned()
}
fn once() -> usize {
    1
}

impl CaseFile {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<CaseFile> {
        let text = std::fs::read_to_string(path)?;
        // By way of JSON: there a rule with a value is a map, not a tag.
        let value: Value =
            serde_yaml_ng::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        serde_json::from_value(value).with_context(|| format!("in {}", path.display()))
    }
}
