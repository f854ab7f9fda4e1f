//! Who a pod's sidecar is to an xDS server: node id and metadata as pilot-agent builds them from the pod.

use std::net::IpAddr;

use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::pb::google::protobuf::value::Kind;
use mesh_xds::pb::google::protobuf::{Struct, Value};

use crate::model::workload::Workload;

/// The version of Istio that pods say they have where the bootstrap names none: what servers send depends on it.
const ISTIO_VERSION: &str = "1.32.0";
const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
const TLS_MODE: &str = "security.istio.io/tlsMode";

/// The node of a pod. What `base`, the node of the bootstrap, says of this machine (locality, metadata such as
/// `CLUSTER_ID`) holds for all its pods; what the pod says of itself comes before it.
pub fn node_of(workload: &Workload, base: &Node) -> Node {
    let ips: Vec<String> = workload.ips.iter().map(IpAddr::to_string).collect();
    let (name, namespace) = (&*workload.name, &*workload.namespace);
    let owner = owner_of(name);
    let app = workload.labels.get("app").map_or(owner, String::as_str);
    let mut metadata = base.metadata.clone().unwrap_or_default();
    let mut default = |key: &str, value: Value| {
        metadata.fields.entry(key.to_owned()).or_insert(value);
    };
    default("CLUSTER_ID", text("Kubernetes"));
    default("MESH_ID", text("cluster.local"));
    default("NETWORK", text(""));
    default("ISTIO_VERSION", text(ISTIO_VERSION));
    default("INTERCEPTION_MODE", text("REDIRECT"));
    default("POD_PORTS", text("[]"));
    default("PROXY_CONFIG", Value { kind: Some(Kind::StructValue(Struct::default())) });
    let mut set = |key: &str, value: Value| drop(metadata.fields.insert(key.to_owned(), value));
    set("NAME", text(name));
    set("NAMESPACE", text(namespace));
    set("SERVICE_ACCOUNT", text(&workload.service_account));
    set("INSTANCE_IPS", text(&ips.join(",")));
    set("LABELS", labels(workload, app));
    set("WORKLOAD_NAME", text(owner));
    set("OWNER", text(&format!("kubernetes://apis/apps/v1/namespaces/{namespace}/deployments/{owner}")));
    let ip = ips.first().map_or("127.0.0.1", String::as_str);
    Node {
        id: format!("sidecar~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: format!("{app}.{namespace}"),
        metadata: Some(metadata),
        ..base.clone()
    }
}

fn labels(workload: &Workload, app: &str) -> Value {
    let mut fields = Struct::default();
    let mut add = |key: &str, value: &str| drop(fields.fields.insert(key.to_owned(), text(value)));
    // What the injector adds: peers speak mutual TLS only to pods that say so.
    add(CANONICAL_NAME, workload.labels.get("app.kubernetes.io/name").map_or(app, String::as_str));
    add(CANONICAL_REVISION, workload.labels.get("version").map_or("latest", String::as_str));
    add(TLS_MODE, "istio");
    workload.labels.iter().for_each(|(key, value)| add(key, value));
    Value { kind: Some(Kind::StructValue(fields)) }
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

/// The Deployment of a pod by the rule of its name: `DEPLOYMENT-HASH-RANDOM`. Another name is its own.
fn owner_of(pod: &str) -> &str {
    let random = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
        // Kubernetes leaves out vowels and what looks like them.
        lengths.contains(&part.len()) && part.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b))
    };
    match pod.rsplit_once('-').and_then(|(rest, last)| Some((rest.rsplit_once('-')?, last))) {
        Some(((owner, hash), last)) if random(last, 5..=5) && random(hash, 6..=10) => owner,
        _ => pod,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_node_is_the_one_that_pilot_agent_would_send() {
        let workload = Workload {
            uid: "u".into(),
            namespace: "clients".into(),
            name: "sleep-6d5bb66bc9-g76qp".into(),
            service_account: "sleep".into(),
            labels: [("app".to_owned(), "sleep".to_owned())].into(),
            ips: vec!["10.244.1.31".parse().unwrap(), "fd00::1".parse().unwrap()],
            sockets: std::sync::Arc::new(crate::capture::LocalSockets),
            limits: Default::default(),
            peer: Default::default(),
            drain: Default::default(),
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
        assert_eq!(metadata["OWNER"], "kubernetes://apis/apps/v1/namespaces/clients/deployments/sleep");
    }

    #[test]
    fn only_names_that_a_deployment_gives_lose_their_end() {
        assert_eq!(owner_of("reviews-v1-7d8c9b6f4-xk2lp"), "reviews-v1");
        assert_eq!(owner_of("db-0"), "db-0");
        assert_eq!(owner_of("my-static-name"), "my-static-name");
        assert_eq!(owner_of("plain"), "plain");
    }
}
