//! What the tests run on the cluster: Bookinfo as Deployments over the nodes, and visitors.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::cluster::{Cluster, PROGRAMS};

/// The port of Bookinfo's services and pods.
pub const PORT: u16 = 9080;
/// What the mesh adds to answers in [`MARKING`].
pub const MARK: &str = "x-mesh-outbound";

const SERVICES: [&str; 4] = ["details", "ratings", "reviews", "productpage"];
/// Services and versions, and what each calls.
const BOOKINFO: [(&str, &str, &[&str]); 6] = [
    ("details", "v1", &[]),
    ("ratings", "v1", &[]),
    ("reviews", "v1", &[]),
    ("reviews", "v2", &["ratings"]),
    ("reviews", "v3", &["ratings"]),
    ("productpage", "v1", &["details", "reviews"]),
];

/// Deploys Bookinfo and a client that does nothing by itself, and waits until they are reached.
pub fn bookinfo(cluster: &Cluster) -> Result<()> {
    for service in SERVICES {
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {service}}}, \
             spec: {{selector: {{app: {service}}}, ports: [{{name: http, port: {PORT}}}]}}}}"
        ))?;
    }
    let mut manifests = Vec::new();
    for (service, version, upstreams) in BOOKINFO {
        let mut args = vec![format!("--service={service}"), format!("--version={version}")];
        for upstream in upstreams {
            args.push(format!("--upstream={upstream}={}:{PORT}", address(cluster, upstream)?));
        }
        let probe = format!("{{httpGet: {{path: /health, port: {PORT}}}, periodSeconds: 1}}");
        manifests.push(deployment(service, version, "/bookinfo", &args, &format!("readinessProbe: {probe}")));
    }
    manifests.push(deployment("client", "v1", "/mesh-peer", &["mixed".to_owned()], "stdin: true"));
    cluster.apply(&manifests.join("\n---\n"))?;
    cluster.kubectl("wait --for=condition=Available deployment -l part-of=bookinfo --timeout=90s")?;
    cluster.until("services are reached from every node", || reached(cluster))
}

/// Fails unless a pod of each node reaches every service: kube-proxy hears of a service's pods later than others do.
fn reached(cluster: &Cluster) -> Result<()> {
    let pods = cluster.json("get pods -l part-of=bookinfo")?;
    let pods = pods["items"].as_array().into_iter().flatten();
    let one_of_each: BTreeMap<_, _> =
        pods.map(|pod| (pod["spec"]["nodeName"].as_str(), pod["metadata"]["name"].as_str())).collect();
    for pod in one_of_each.into_values().flatten() {
        for service in SERVICES {
            let to = address(cluster, service)?;
            cluster.kubectl(&format!(
                "exec {pod} -- /mesh-peer visit --to {to}:{PORT} --path /health --count 1"
            ))?;
        }
    }
    visit_pages(cluster, 10).map(drop)
}

fn deployment(service: &str, version: &str, program: &str, args: &[String], more: &str) -> String {
    let args = serde_json::json!(args);
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {service}-{version}, labels: {{part-of: bookinfo}}}}
spec:
  selector: {{matchLabels: {{app: {service}, version: {version}}}}}
  template:
    metadata: {{labels: {{app: {service}, version: {version}, part-of: bookinfo}}}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector: {{matchLabels: {{part-of: bookinfo}}}}
      containers:
      - name: {service}
        image: {PROGRAMS}
        imagePullPolicy: IfNotPresent
        command: [{program}]
        args: {args}
        {more}
        securityContext: {{runAsUser: 65534, capabilities: {{drop: [ALL]}}}}
"
    )
}

pub fn remove_bookinfo(cluster: &Cluster) -> Result<()> {
    cluster.kubectl("delete deployment -l part-of=bookinfo --wait=true")?;
    cluster.kubectl("wait --for=delete pod -l part-of=bookinfo --timeout=60s")?;
    cluster.kubectl(&format!("delete service {}", SERVICES.join(" "))).map(drop)
}

/// The address of a service.
pub fn address(cluster: &Cluster, service: &str) -> Result<String> {
    cluster.kubectl(&format!("get service {service} -o jsonpath={{.spec.clusterIP}}"))
}

/// The name of the one pod of an application.
pub fn pod_of(cluster: &Cluster, app: &str) -> Result<String> {
    let name = cluster.kubectl(&format!("get pods -l app={app} -o jsonpath={{.items[0].metadata.name}}"))?;
    ensure!(!name.is_empty(), "no pod of {app}");
    Ok(name)
}

/// What a visitor tells.
#[derive(Debug, Deserialize)]
pub struct Visits {
    pub visits: u64,
    pub failed: u64,
    pub carried: u64,
    pub first_us: u64,
    pub errors: BTreeMap<String, u64>,
}

pub fn visits(line: &str) -> Result<Visits> {
    serde_json::from_str(line).with_context(|| format!("a visitor said {line:?}"))
}

/// The client visits the product page so many times.
pub fn visit_pages(cluster: &Cluster, count: u32) -> Result<Visits> {
    let (pod, to) = (pod_of(cluster, "client")?, address(cluster, "productpage")?);
    let told = cluster.kubectl(&format!(
        "exec {pod} -- /mesh-peer visit --to {to}:{PORT} --path /productpage --count {count} --header {MARK}"
    ))?;
    visits(told.trim())
}

/// What was steered in a direction for the pods that `status` names: lines `NAMESPACE/POD::steered::N outbound, M inbound`.
pub fn steered(status: &str, direction: &str) -> u64 {
    let counted = status.lines().filter_map(|line| line.split_once("::steered::"));
    let of = |(_, counts): (&str, &str)| {
        counts.split(", ").find_map(|count| count.strip_suffix(direction)?.trim().parse::<u64>().ok())
    };
    counted.filter_map(of).sum()
}

/// A bootstrap that serves HTTP where Bookinfo speaks it, and marks the answers: so that a client sees whether its
/// request went through the mesh.
pub const MARKING: &str = r#"
node: { id: mesh-node, cluster: mesh-node }
admin:
  address: { socket_address: { address: 127.0.0.1, port_value: 15000 } }
static_resources:
  listeners:
  - name: virtualOutbound
    traffic_direction: OUTBOUND
    use_original_dst: true
    address: { socket_address: { address: 0.0.0.0, port_value: 15001 } }
    filter_chains:
    - filter_chain_match: { destination_port: 9080 }
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: outbound
          route_config:
            name: outbound
            response_headers_to_add: [{ header: { key: x-mesh-outbound, value: "1" } }]
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{ match: { prefix: / }, route: { cluster: PassthroughCluster } }]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
    default_filter_chain:
      filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: PassthroughCluster
          cluster: PassthroughCluster
  - name: virtualInbound
    traffic_direction: INBOUND
    address: { socket_address: { address: 0.0.0.0, port_value: 15006 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: InboundPassthroughCluster
          cluster: InboundPassthroughCluster
  clusters:
  - { name: PassthroughCluster, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 10s }
  - { name: InboundPassthroughCluster, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 10s }
"#;
