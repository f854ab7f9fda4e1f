//! Who a pod's sidecar is to an xDS server: node id and metadata as pilot-agent builds them from the pod.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_xds::pb::envoy::config::core::v3::{Locality, Node};
use mesh_xds::pb::google::protobuf::value::Kind;
use mesh_xds::pb::google::protobuf::{Struct, Value};

use crate::cluster::{LocalCluster, LocalityName};
use crate::model::source::Dynamic;
use crate::model::workload::Workload;

/// The version of Istio that pods say they have where the bootstrap names none: what servers send depends on it.
const ISTIO_VERSION: &str = "1.32.0";
const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
const TLS_MODE: &str = "security.istio.io/tlsMode";
/// By which a pod says where it is: region, zone and subzone.
const LOCALITY: [&str; 2] = ["topology.istio.io/locality", "istio-locality"];
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotations that say nothing about the mesh and may be as long as the pod's definition.
const NOT_TOLD: [&str; 3] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "kubernetes.io/config.seen",
    "kubernetes.io/config.source",
];

/// The node of a pod. What `base`, the node of the bootstrap, says of this machine (locality, metadata such as
/// `CLUSTER_ID`) holds for all its pods; what the pod says of itself comes before it.
pub fn node_of(workload: &Workload, base: &Node) -> Node {
    let ips: Vec<String> = workload.ips.iter().map(IpAddr::to_string).collect();
    let (name, namespace) = (&*workload.name, &*workload.namespace);
    let details = &workload.details;
    let owner = details.owner(name, namespace, &workload.labels);
    let app = workload.labels.get("app").map_or(owner.name.as_str(), String::as_str);
    let mut metadata = base.metadata.clone().unwrap_or_default();
    let mut default = |key: &str, value: Value| {
        metadata.fields.entry(key.to_owned()).or_insert(value);
    };
    default("CLUSTER_ID", text("Kubernetes"));
    default("MESH_ID", text("cluster.local"));
    default("NETWORK", text(""));
    default("ISTIO_VERSION", text(ISTIO_VERSION));
    default("INTERCEPTION_MODE", text("REDIRECT"));
    default("PROXY_CONFIG", Value { kind: Some(Kind::StructValue(Struct::default())) });
    let mut set = |key: &str, value: Value| drop(metadata.fields.insert(key.to_owned(), value));
    set("NAME", text(name));
    set("NAMESPACE", text(namespace));
    set("SERVICE_ACCOUNT", text(&workload.service_account));
    set("INSTANCE_IPS", text(&ips.join(",")));
    set("POD_PORTS", text(&serde_json::to_string(&details.ports).unwrap_or_default()));
    set("LABELS", labels(workload, &owner.name));
    set("WORKLOAD_NAME", text(&owner.name));
    set("OWNER", text(&owner.url));
    if !details.containers.is_empty() {
        set("APP_CONTAINERS", text(&details.containers.join(",")));
    }
    if !details.node_name.is_empty() {
        set("NODE_NAME", text(&details.node_name));
    }
    let told = workload.annotations.iter().filter(|(key, _)| !NOT_TOLD.contains(&key.as_str()));
    let told: BTreeMap<&String, &String> = told.collect();
    if !told.is_empty() {
        set("ANNOTATIONS", map(told));
    }
    let ip = ips.first().map_or("127.0.0.1", String::as_str);
    Node {
        id: format!("sidecar~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: format!("{app}.{namespace}"),
        metadata: Some(metadata),
        locality: base.locality.clone().or_else(|| locality(&workload.labels)),
        ..base.clone()
    }
}

/// The cluster that a node belongs to, if the bootstrap names one, and where the node is.
pub fn local_cluster(dynamic: &Dynamic, node: &Node) -> Option<LocalCluster> {
    let name = dynamic.local_cluster.clone()?;
    let at = node.locality.clone().unwrap_or_default();
    let locality =
        LocalityName { region: at.region.into(), zone: at.zone.into(), sub_zone: at.sub_zone.into() };
    Some(LocalCluster::new(name, locality))
}

/// Where the pod runs, by a label that it has for that (as for pilot-agent), or those that Kubernetes copies to it from
/// its node.
fn locality(labels: &BTreeMap<String, String>) -> Option<Locality> {
    if let Some(label) = LOCALITY.iter().find_map(|key| labels.get(*key)).filter(|label| !label.is_empty()) {
        // A label has no slashes: dots stand for them, unless it has some all the same.
        let separator = if label.contains('/') { '/' } else { '.' };
        let mut parts = label.splitn(3, separator).map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        return Some(Locality { region: next(), zone: next(), sub_zone: next() });
    }
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let region = label("topology.kubernetes.io/region");
    (!region.is_empty()).then(|| Locality {
        region,
        zone: label("topology.kubernetes.io/zone"),
        sub_zone: label("topology.istio.io/subzone"),
    })
}

fn labels(workload: &Workload, owner: &str) -> Value {
    let label = |keys: &[&str]| keys.iter().find_map(|key| workload.labels.get(*key)).map(String::as_str);
    let mut told: BTreeMap<&String, &String> = workload.labels.iter().collect();
    // Pods of one Deployment are to be alike.
    told.remove(&TEMPLATE_HASH.to_owned());
    // What the injector adds: peers speak mutual TLS only to pods that say so.
    let name = label(&["app.kubernetes.io/name", "app"]).unwrap_or(owner).to_owned();
    let revision = label(&["app.kubernetes.io/version", "version"]).unwrap_or("latest").to_owned();
    let added = [(CANONICAL_NAME, name), (CANONICAL_REVISION, revision), (TLS_MODE, "istio".to_owned())];
    let added = added.map(|(key, value)| (key.to_owned(), value));
    for (key, value) in &added {
        told.entry(key).or_insert(value);
    }
    map(told)
}

fn map(of: BTreeMap<&String, &String>) -> Value {
    let fields = of.into_iter().map(|(key, value)| (key.clone(), text(value))).collect();
    Value { kind: Some(Kind::StructValue(Struct { fields })) }
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pod::{ContainerPort, Controller, PodDetails};

    const REGION: &str = "topology.kubernetes.io/region";

    #[test]
    fn a_pods_node_is_the_one_that_pilot_agent_would_send() {
        let workload = Workload {
            uid: "u".into(),
            namespace: "clients".into(),
            name: "sleep-6d5bb66bc9-g76qp".into(),
            service_account: "sleep".into(),
            labels: [("app", "sleep"), ("pod-template-hash", "6d5bb66bc9"), (REGION, "eu")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            annotations: [("prometheus.io/port", "80"), (NOT_TOLD[0], "{}")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            details: PodDetails {
                controller: Some(Controller {
                    api_version: "apps/v1".to_owned(),
                    kind: "ReplicaSet".to_owned(),
                    name: "sleep-6d5bb66bc9".to_owned(),
                }),
                generated_name: true,
                node_name: "node-a".to_owned(),
                containers: vec!["sleep".to_owned(), "log".to_owned()],
                ports: vec![ContainerPort {
                    name: Some("http".to_owned()),
                    container_port: 80,
                    protocol: Some("TCP".to_owned()),
                }],
            },
            ips: vec!["10.244.1.31".parse().unwrap(), "fd00::1".parse().unwrap()],
            sockets: std::sync::Arc::new(crate::capture::LocalSockets),
            limits: Default::default(),
            peer: Default::default(),
            drain: Default::default(),
            hand_over: Default::default(),
        };
        let base = Node { id: "host".to_owned(), cluster: "host".to_owned(), ..Node::default() };
        let node = node_of(&workload, &base);
        assert_eq!(node.id, "sidecar~10.244.1.31~sleep-6d5bb66bc9-g76qp.clients~clients.svc.cluster.local");
        assert_eq!(node.cluster, "sleep.clients");
        let shown = mesh_xds::to_json(&node).unwrap();
        let metadata = &shown["metadata"];
        assert_eq!(metadata["NAME"], "sleep-6d5bb66bc9-g76qp");
        assert_eq!(metadata["WORKLOAD_NAME"], "sleep");
        assert_eq!(metadata["INSTANCE_IPS"], "10.244.1.31,fd00::1");
        assert_eq!(metadata["LABELS"]["security.istio.io/tlsMode"], "istio");
        assert_eq!(metadata["LABELS"]["service.istio.io/canonical-name"], "sleep");
        assert_eq!(metadata["LABELS"]["service.istio.io/canonical-revision"], "latest");
        assert_eq!(metadata["LABELS"]["pod-template-hash"], serde_json::Value::Null);
        assert_eq!(metadata["ANNOTATIONS"], serde_json::json!({ "prometheus.io/port": "80" }));
        let ports = r#"[{"name":"http","containerPort":80,"protocol":"TCP"}]"#;
        assert_eq!(metadata["POD_PORTS"], ports);
        assert_eq!(metadata["APP_CONTAINERS"], "sleep,log");
        assert_eq!(metadata["NODE_NAME"], "node-a");
        assert_eq!(shown["locality"]["region"], "eu");
        assert_eq!(metadata["OWNER"], "kubernetes://apis/apps/v1/namespaces/clients/deployments/sleep");
        let labels = |label: &str| [("istio-locality".to_owned(), label.to_owned())].into();
        let dotted = locality(&labels("eu.west.1.a")).unwrap();
        assert_eq!([&*dotted.region, &dotted.zone, &dotted.sub_zone], ["eu", "west", "1.a"]);
        assert_eq!(locality(&labels("eu-1.a/b")).unwrap().region, "eu-1.a");
    }
}
