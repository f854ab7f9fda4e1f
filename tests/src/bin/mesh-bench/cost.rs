//! `mesh-bench cost`: what the HTTP filters of a plain istiod sidecar cost a request, and what a long
//! configuration does.
//!
//! Three proxies stand between one client and one server, equal but for their configuration, and take turns. No
//! steering is involved: what is compared is the work on a request. Results go to `cost.json`.

use std::fs;
use std::path::Path as FilePath;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use mesh_tests::netns::{Node, Pod};
use mesh_tests::process::{self, Process};

use crate::load::Generator;
use crate::machine;
use crate::results::Sample;
use crate::rows::{Row, STANDARD};
use crate::servers::{self, Port};

/// Services of a small and of a large configuration.
const FEW: usize = 10;
const MANY: usize = 10_000;

/// A configuration that is measured.
struct Variant {
    name: &'static str,
    services: usize,
    istio: bool,
}

const VARIANTS: [Variant; 3] = [
    Variant { name: "bare route", services: FEW, istio: false },
    Variant { name: "filters of a sidecar", services: FEW, istio: true },
    Variant { name: "10,000 clusters and virtual hosts", services: MANY, istio: false },
];

/// The file of results.
#[derive(Serialize)]
struct Costs {
    date: String,
    machine: Value,
    runs: usize,
    seconds_per_run: u32,
    connections: u32,
    variants: Vec<Cost>,
    /// Requests per second with the sidecar's filters ÷ without; the goal is 0.85.
    filters: f64,
    /// Processor time of a request with the long configuration ÷ with the short one; the goal is 1.1.
    growth: f64,
}

#[derive(Serialize)]
struct Cost {
    name: &'static str,
    requests_per_s: f64,
    proxy_cpu_us_per_request: f64,
}

/// Measures and writes `cost.json`.
pub fn measure(folder: &FilePath, output: &FilePath, runs: usize, seconds: u32) -> Result<()> {
    servers::write_nginx(folder)?;
    let node = Node::new("cost", 1)?;
    let (client, server) = (node.pod("client")?, node.pod("server")?);
    let _servers = servers::start(&server, folder)?;
    let mut proxies = Vec::new();
    for (number, variant) in VARIANTS.iter().enumerate() {
        let pod = node.pod(&format!("proxy-{number}"))?;
        let file = folder.join(format!("cost-{number}.json"));
        fs::write(&file, bootstrap(variant, &server).to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
        let mut command = Command::new(process::binary("mesh-node")?);
        command.arg("--bootstrap").arg(&file).arg("run");
        let process = pod.spawn(command)?;
        proxies.push((pod, process));
    }
    let generator = Generator::new(folder)?;
    let row = STANDARD
        .iter()
        .find(|row| row.scenario == "same-node-http1" && row.connections > 1)
        .context("no row with many connections")?;
    for (pod, process) in &mut proxies {
        wait(&generator, row, &client, pod, process)?;
    }
    let mut samples: Vec<Vec<Sample>> = VARIANTS.iter().map(|_| Vec::new()).collect();
    for round in 0..=runs {
        for ((pod, process), samples) in proxies.iter().zip(&mut samples) {
            let seconds = if round == 0 { 1 } else { seconds };
            let sample = generator.run(row, &client, pod.v4(), &[process.id()], seconds)?;
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    let variants: Vec<Cost> = VARIANTS.iter().zip(&samples).map(|(of, samples)| cost(of, samples)).collect();
    let costs = Costs {
        date: machine::date()?,
        machine: serde_json::to_value(machine::describe())?,
        runs,
        seconds_per_run: seconds,
        connections: row.connections,
        filters: variants[1].requests_per_s / variants[0].requests_per_s,
        growth: variants[2].proxy_cpu_us_per_request / variants[0].proxy_cpu_us_per_request,
        variants,
    };
    for of in &costs.variants {
        let Cost { name, requests_per_s, proxy_cpu_us_per_request } = of;
        println!(
            "{name:<36}{requests_per_s:>10.0} requests/s {proxy_cpu_us_per_request:>8.2} µs of proxy CPU"
        );
    }
    println!("with the filters of a sidecar {:.3} of a bare route's requests/s (goal 0.85)", costs.filters);
    println!("10,000 services: {:.3} times the CPU of a request with 10 (goal 1.1)", costs.growth);
    let file = output.join("cost.json");
    fs::write(&file, serde_json::to_string_pretty(&costs)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))
}

/// Waits until a proxy serves.
fn wait(generator: &Generator, row: &Row, client: &Pod, pod: &Pod, process: &mut Process) -> Result<()> {
    let until = std::time::Instant::now() + process::deadline();
    loop {
        match generator.run(row, client, pod.v4(), &[process.id()], 1) {
            Ok(_) => return Ok(()),
            Err(error) if std::time::Instant::now() > until => return Err(error.context(process.errors())),
            Err(_) => {}
        }
    }
}

fn cost(of: &Variant, samples: &[Sample]) -> Cost {
    let median = |pick: fn(&Sample) -> Option<f64>| {
        let mut values: Vec<f64> = samples.iter().filter_map(pick).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    Cost {
        name: of.name,
        requests_per_s: median(|sample| sample.requests_per_s),
        proxy_cpu_us_per_request: median(|sample| sample.proxy_cpu_s_per_10k) * 100.0,
    }
}

/// A listener that sends everything to the server, among as many services as wanted.
fn bootstrap(variant: &Variant, server: &Pod) -> Value {
    let address = |host: &str, port: u16| json!({"socket_address": {"address": host, "port_value": port}});
    let cluster = |name: String| {
        let endpoint = address(&server.v4().to_string(), Port::Http1.number());
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "10s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": endpoint}}]}]},
        })
    };
    let name = |n: usize| format!("outbound|8080||svc-{n}.default.svc.cluster.local");
    let host = |domains: Vec<String>, cluster: &str| {
        json!({
            "name": domains[0], "domains": domains,
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}],
        })
    };
    let mut hosts: Vec<Value> = (0..variant.services)
        .map(|n| {
            let full = format!("svc-{n}.default.svc.cluster.local");
            host(
                vec![full.clone(), format!("{full}:8080"), format!("svc-{n}"), format!("svc-{n}.default")],
                &name(n),
            )
        })
        .collect();
    hosts.push(host(vec!["*".to_owned()], &name(variant.services / 2)));
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    });
    let mut filters = if variant.istio { istio_filters() } else { Vec::new() };
    filters.push(router);
    json!({
        "node": {"id": "sidecar~192.0.2.1~cost-0.default~default.svc.cluster.local", "cluster": "cost.default",
            "metadata": {"NAME": "cost-0", "NAMESPACE": "default", "WORKLOAD_NAME": "cost",
                "LABELS": {"app": "cost", "service.istio.io/canonical-name": "cost"}}},
        "static_resources": {
            "clusters": (0..variant.services).map(|n| cluster(name(n))).collect::<Vec<_>>(),
            "listeners": [{
                "name": "cost", "traffic_direction": "OUTBOUND",
                "address": address("0.0.0.0", Port::Http1.number()),
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                        "stat_prefix": "cost", "normalize_path": true,
                        "route_config": {"name": "cost", "virtual_hosts": hosts},
                        "http_filters": filters,
                    },
                }]}],
            }],
        },
    })
}

/// As istiod sends them to a sidecar without policies, for its outbound listeners.
fn istio_filters() -> Vec<Value> {
    let plain = |name: &str, message: &str| {
        let url = format!("type.googleapis.com/{message}");
        json!({"name": name, "typed_config": {"@type": url}})
    };
    let mut grpc_stats =
        plain("envoy.filters.http.grpc_stats", "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig");
    grpc_stats["typed_config"]["emit_filter_state"] = true.into();
    grpc_stats["typed_config"]["stats_for_all_methods"] = false.into();
    let mut alpn = plain("istio.alpn", "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig");
    alpn["typed_config"]["alpn_override"] = json!([
        {"alpn_override": ["istio-http/1.0", "istio", "http/1.0"]},
        {"upstream_protocol": "HTTP11", "alpn_override": ["istio-http/1.1", "istio", "http/1.1"]},
        {"upstream_protocol": "HTTP2", "alpn_override": ["istio-h2", "istio", "h2"]},
    ]);
    vec![
        json!({
            "name": "istio.metadata_exchange",
            "typed_config": {
                "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
                "type_url": "type.googleapis.com/io.istio.http.peer_metadata.Config",
                "value": {
                    "upstream_discovery": [{"istio_headers": {}}, {"workload_discovery": {}}],
                    "upstream_propagation": [{"istio_headers": {}}],
                },
            },
        }),
        grpc_stats,
        alpn,
        plain("envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault"),
        plain("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors"),
        plain("istio.stats", "stats.PluginConfig"),
    ]
}
