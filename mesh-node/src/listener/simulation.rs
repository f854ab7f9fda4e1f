//! Calls of which Istio itself says where they end: listener, filter chain, route and cluster.
//!
//! The worlds lie beside the repository; without them the test says so and ends.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_xds::{Node, from_node};
use serde_json::Value;

use super::chain_match::{Facts, choose};
use crate::model::Snapshot;
use crate::model::listener::{Direction, FilterChain, Listener, PortPredicate};
use crate::model::network::{NetworkFilter, RouteSource, TcpClusters};
use crate::model::route::RouteTable;
use crate::router::{Decision, RequestHead, route};
use crate::telemetry::log_file::LogFiles;
use crate::telemetry::stats::Store;
use crate::xds;

/// Where a call ended; what does not apply is empty.
#[derive(Debug, Default, Clone, PartialEq)]
struct End {
    listener: String,
    filter_chain: String,
    route_config: String,
    virtual_host: String,
    route: String,
    cluster: String,
    error: String,
}

impl End {
    fn of(want: &Value) -> Self {
        let text = |key: &str| want[key].as_str().unwrap_or_default().to_owned();
        Self {
            listener: text("listener"),
            filter_chain: text("filterChain"),
            route_config: text("routeConfig"),
            virtual_host: text("virtualHost"),
            route: text("route"),
            cluster: text("cluster"),
            error: text("error"),
        }
    }

    /// Name, text here and text there.
    fn pairs<'a>(&'a self, other: &'a Self) -> [(&'static str, &'a str, &'a str); 7] {
        [
            ("listener", &self.listener, &other.listener),
            ("filterChain", &self.filter_chain, &other.filter_chain),
            ("routeConfig", &self.route_config, &other.route_config),
            ("virtualHost", &self.virtual_host, &other.virtual_host),
            ("route", &self.route, &other.route),
            ("cluster", &self.cluster, &other.cluster),
            ("error", &self.error, &other.error),
        ]
    }
}

struct World {
    snapshot: Snapshot,
    tables: HashMap<String, RouteTable>,
    /// The listeners as they came, in the same order.
    listeners: Vec<Value>,
    router: bool,
}

impl World {
    fn new(world: &Value) -> Result<Self, String> {
        let stats = Store::default();
        let log_files = LogFiles::start(stats.filesystem().clone()).map_err(|e| e.to_string())?;
        let mut context = xds::Context {
            stats: &stats,
            log_files: &log_files,
            secrets: HashMap::new(),
            clusters: None,
            needs: Default::default(),
            ignored: xds::Ignored::default(),
        };
        let each = |kind: &str| world[kind].as_array().cloned().unwrap_or_default();
        let mut listeners = Vec::new();
        for listener in each("listeners") {
            let message = read(&listener)?;
            let listener = xds::listener("listener", &message, &mut context).map_err(|e| e.to_string())?;
            listeners.push(Arc::new(listener));
        }
        let mut tables = HashMap::new();
        for table in each("routes") {
            let message = read(&table)?;
            let table = xds::table("table", &message, &mut context).map_err(|e| e.to_string())?;
            tables.insert(table.name.to_string(), table);
        }
        Ok(Self {
            snapshot: Snapshot::new(1, listeners, []),
            tables,
            listeners: each("listeners"),
            router: world["proxy"]["type"] == "router",
        })
    }

    fn entry(&self, call: &Value, destination: SocketAddr) -> Option<&Arc<Listener>> {
        let bound = || {
            let port = destination.port();
            self.snapshot.listeners.iter().find(|l| l.bind_to_port && l.address.port() == port)
        };
        if call["mode"] == "inbound" {
            return self.snapshot.entry(Direction::Inbound);
        }
        if self.router {
            return bound();
        }
        self.snapshot.by_original_dst(destination).or_else(|| self.snapshot.entry(Direction::Outbound))
    }

    fn run(&self, call: &Value) -> End {
        let text = |key: &str| call[key].as_str().unwrap_or_default();
        let mut end = End::default();
        let address: IpAddr = text("address").parse().expect("an address");
        let destination = SocketAddr::new(address, call["port"].as_u64().expect("a port") as u16);
        let Some(listener) = self.entry(call, destination) else {
            end.error = "no listener matched".to_owned();
            return end;
        };
        end.listener = listener.name.to_string();
        let facts = Seen::of(call, listener, destination.port());
        let source: SocketAddr = "9.9.9.9:40000".parse().expect("an address");
        let chosen = choose(
            listener,
            &Facts {
                destination,
                direct_source: source,
                source,
                server_name: facts.server_name.as_deref(),
                transport_protocol: if facts.tls { "tls" } else { "raw_buffer" },
                application_protocols: &facts.alpn,
            },
        );
        let Some(chain) = chosen else {
            end.error = "no filter chains matched".to_owned();
            return end;
        };
        end.filter_chain = chain.name.to_string();
        // Istio's simulation takes mutual TLS for broken where the server does not ask for it, too.
        let mutual = text("tls") == "mtls";
        if chain.tls.is_some() && self.requires_client_certificate(listener, chain) != mutual {
            end.error = "invalid mTLS".to_owned();
            return end;
        }
        match chain.filters.last() {
            Some(NetworkFilter::TcpProxy(proxy)) => {
                if let TcpClusters::Single(name) = &proxy.cluster {
                    end.cluster = name.to_string();
                }
            }
            Some(NetworkFilter::HttpConnectionManager(manager)) => {
                let table = match &manager.routes {
                    RouteSource::Inline(table) => Some(&**table),
                    RouteSource::Named(name) => {
                        end.route_config = name.to_string();
                        self.tables.get(&**name)
                    }
                    RouteSource::Scoped(_) => None,
                };
                match table {
                    Some(table) => self.follow(call, table, &mut end),
                    None => end.error = "no route table".to_owned(),
                }
            }
            _ => end.error = "nothing serves".to_owned(),
        }
        end
    }

    fn follow(&self, call: &Value, table: &RouteTable, end: &mut End) {
        end.route_config = table.name.to_string();
        let mut headers = HeaderMap::new();
        for (name, values) in call["headers"].as_object().into_iter().flatten() {
            let value = values[0].as_str().unwrap_or_default();
            headers.insert(
                HeaderName::try_from(name.to_ascii_lowercase()).expect("a name"),
                HeaderValue::from_str(value).expect("a value"),
            );
        }
        let tls = call["tls"] != "plaintext";
        let scheme = if tls { "https" } else { "http" };
        headers.insert("x-forwarded-proto", HeaderValue::from_static(scheme));
        let host = headers.get("host").and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned();
        let head = RequestHead {
            method: &Method::GET,
            scheme,
            authority: &host,
            path: call["path"].as_str().unwrap_or("/"),
            headers: &headers,
        };
        match route(table, &head, 0) {
            Decision::NotFound(virtual_host) => {
                end.virtual_host = virtual_host.map(|v| v.name.to_string()).unwrap_or_default();
                end.error = "no route matched".to_owned();
            }
            Decision::TlsRedirect(virtual_host) => {
                end.virtual_host = virtual_host.name.to_string();
                end.error = "tls required, sending 301".to_owned();
            }
            Decision::Route(routed) => {
                end.virtual_host = routed.virtual_host.name.to_string();
                end.route = routed.route.name.to_string();
                end.cluster = routed.cluster(&head).unwrap_or_default().into_owned();
            }
        }
    }

    fn requires_client_certificate(&self, listener: &Listener, chain: &Arc<FilterChain>) -> bool {
        let raw = self.listeners.iter().find(|raw| raw["name"] == *listener.name);
        let at = listener.filter_chains.iter().position(|of| Arc::ptr_eq(of, chain));
        let of = raw.zip(at).map(|(raw, at)| &raw["filterChains"][at]["transportSocket"]["typedConfig"]);
        of.is_some_and(|context| context["requireClientCertificate"] == true)
    }
}

/// What listener filters find out about a call.
struct Seen {
    tls: bool,
    server_name: Option<String>,
    alpn: Vec<String>,
}

impl Seen {
    fn of(call: &Value, listener: &Listener, port: u16) -> Self {
        let text = |key: &str| call[key].as_str().unwrap_or_default();
        let on = |filter: &Option<PortPredicate>| filter.as_ref().is_some_and(|off| !off.matches(port));
        let http = text("protocol").starts_with("http");
        let http2 = text("protocol") == "http2";
        if text("tls") != "plaintext" {
            if !on(&listener.listener_filters.tls_inspector) {
                return Self { tls: false, server_name: None, alpn: Vec::new() };
            }
            let alpn = match (text("alpn"), text("tls")) {
                ("", "mtls") if http2 => "istio-h2",
                ("", "mtls") if http => "istio-http/1.1",
                ("", "mtls") => "istio",
                ("", _) if http2 => "h2",
                ("", _) if http => "http/1.1",
                (given, _) => given,
            };
            let server_name = Some(text("sni").to_ascii_lowercase()).filter(|name| !name.is_empty());
            let alpn = if alpn.is_empty() { Vec::new() } else { vec![alpn.to_owned()] };
            return Self { tls: true, server_name, alpn };
        }
        let seen = http && on(&listener.listener_filters.http_inspector);
        let version = if http2 { "h2c" } else { "http/1.1" };
        Self { tls: false, server_name: None, alpn: if seen { vec![version.to_owned()] } else { Vec::new() } }
    }
}

fn read<T: mesh_xds::prost::Message + mesh_xds::prost::Name + Default>(value: &Value) -> Result<T, String> {
    let node = Node::parse(&value.to_string()).map_err(|e| e.to_string())?;
    from_node(&node).map_err(|problems| problems[0].to_string())
}

#[test]
fn calls_end_where_istios_own_simulation_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("shared/data/istio-sim/cases.jsonl"))
        .find(|file| file.is_file());
    let Some(file) = file else {
        eprintln!("SKIPPED: no shared/data/istio-sim beside the repository");
        return;
    };
    let (mut right, mut wrong) = (0, BTreeMap::new());
    for line in std::fs::read_to_string(file).unwrap().lines() {
        let world: Value = serde_json::from_str(line).unwrap();
        let name = world["test"].as_str().unwrap_or_default().to_owned();
        let simulated = match World::new(&world) {
            Ok(simulated) => simulated,
            Err(error) => {
                wrong.insert(name, error);
                continue;
            }
        };
        for case in world["calls"].as_array().unwrap() {
            let want = End::of(&case["want"]);
            let got = simulated.run(&case["call"]);
            let strict = case["want"]["strict"] == true;
            let differs = want.pairs(&got).into_iter().any(|(what, want, got)| {
                // What is not named may be anything, but a call that is to get through must.
                want != got && (!want.is_empty() || strict || what == "error")
            });
            if differs {
                wrong.insert(format!("{name} / {}", case["name"]), format!("{}: got {got:?}", case["call"]));
            } else {
                right += 1;
            }
        }
    }
    let lines: Vec<_> = wrong.iter().map(|(name, why)| format!("{name}: {why}")).collect();
    assert!(lines.is_empty(), "{right} right, {} wrong:\n{}", lines.len(), lines.join("\n"));
    assert!(right >= 74, "{right}");
}
