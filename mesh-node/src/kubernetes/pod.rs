//! Which pods are enrolled, and what of the pod object is used.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::capture::pods::PodSpec;
use crate::model::pod::{ContainerPort, Controller, PodDetails};

/// Istio's label for the way a namespace or a pod is part of the mesh.
pub(super) const MODE: &str = "istio.io/dataplane-mode";
/// Its value for this mesh.
pub(super) const OURS: &str = "mesh";
const NONE: &str = "none";
const AMBIENT: &str = "ambient";
const SIDECAR: &str = "istio-proxy";
const INJECTED: &str = "sidecar.istio.io/status";
const REDIRECTED: &str = "ambient.istio.io/redirection";
/// The kubelet names the control groups of a static pod by this, and not by the uid of its image in the API.
const STATIC_POD: &str = "kubernetes.io/config.hash";
const APP_PROTOCOL: &str = "TCP";

/// What is kept of a pod of this node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Candidate {
    /// All but the network namespace.
    pub(super) spec: PodSpec,
    /// Which control groups are the pod's.
    pub(super) cgroup_uid: String,
    /// Ids of its containers, as the runtime reports them.
    pub(super) container_ids: Vec<String>,
    mode: Option<String>,
    /// All its containers have ended, for good.
    finished: bool,
    /// Why it is never enrolled.
    barred: Option<Barred>,
}

/// Why a pod that asks for the mesh is not enrolled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Barred {
    #[error("it runs in the host's network (hostNetwork)")]
    HostNetwork,
    #[error("it has a sidecar of its own (istio-proxy); inject none where the mesh is to serve it")]
    Sidecar,
    #[error("it is part of an ambient mesh")]
    Ambient,
    #[error("{0}; correct the pod")]
    Invalid(String),
    #[error("{0:?} is no known value of its label istio.io/dataplane-mode: `mesh` enrols, `none` opts out")]
    UnknownMode(String),
}

/// What is to be done with a pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Enrol,
    /// It has ended, or nobody asks for it.
    Leave,
    /// Somebody asks for it and is to be told.
    Refuse(Barred),
}

impl Candidate {
    /// `None` without what every pod in the API has.
    pub(super) fn of(pod: Pod) -> Option<Self> {
        let (metadata, spec) = (pod.metadata, pod.spec?);
        let status = pod.status.unwrap_or_default();
        let uid = metadata.uid?;
        let labels = metadata.labels.unwrap_or_default();
        let annotations = metadata.annotations.unwrap_or_default();
        let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let reported = status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip).chain(status.pod_ip);
        let mut ips: Vec<IpAddr> = Vec::new();
        for ip in reported.filter_map(|ip| ip.parse().ok()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        let init = spec.init_containers.unwrap_or_default();
        let ran = [status.container_statuses, status.init_container_statuses].into_iter().flatten().flatten();
        // `containerd://ID`
        let id = |reported: String| reported.rsplit_once("//").map(|(_, id)| id.to_owned());
        let container_ids = ran.filter_map(|status| status.container_id.and_then(id)).collect();
        let sidecar = spec.containers.iter().chain(&init).any(|container| container.name == SIDECAR);
        let mode = labels.get(MODE).cloned();
        let mut barred = if spec.host_network == Some(true) {
            Some(Barred::HostNetwork)
        } else if sidecar || annotations.contains_key(INJECTED) {
            Some(Barred::Sidecar)
        } else if annotations.contains_key(REDIRECTED) {
            Some(Barred::Ambient)
        } else {
            None
        };
        let controller =
            metadata.owner_references.unwrap_or_default().into_iter().find(|of| of.controller == Some(true));
        let details = PodDetails {
            controller: controller.map(|of| Controller {
                api_version: of.api_version,
                kind: of.kind,
                name: of.name,
            }),
            generated_name: metadata.generate_name.is_some_and(|name| !name.is_empty()),
            node_name: spec.node_name.unwrap_or_default(),
            containers: spec.containers.iter().map(|container| container.name.clone()).collect(),
            ports: spec.containers.iter().flat_map(ports).collect(),
        };
        let cgroup_uid = annotations.get(STATIC_POD).unwrap_or(&uid).clone();
        let mut spec = PodSpec {
            uid,
            name: metadata.name?,
            namespace: metadata.namespace?,
            service_account: spec
                .service_account_name
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
            labels,
            annotations,
            details,
            ips,
            ..PodSpec::default()
        };
        if barred.is_none() {
            barred = spec.check_but_addresses().err().map(Barred::Invalid);
        }
        Some(Self { spec, cgroup_uid, container_ids, mode, finished, barred })
    }

    /// The pod's own label comes before its namespace's.
    pub(super) fn judge(&self, of_namespace: Option<&str>) -> Verdict {
        match self.mode.as_deref().or(of_namespace) {
            None | Some(NONE | AMBIENT) => Verdict::Leave,
            Some(_) if self.finished => Verdict::Leave,
            Some(OURS) => match &self.barred {
                Some(barred) => Verdict::Refuse(barred.clone()),
                // Also before the API tells its addresses: its first connection may come earlier.
                None => Verdict::Enrol,
            },
            // One line for the pod that says so; of a namespace, its pods do not.
            Some(other) if self.mode.is_some() => Verdict::Refuse(Barred::UnknownMode(other.to_owned())),
            Some(_) => Verdict::Leave,
        }
    }
}

fn ports(container: &Container) -> Vec<ContainerPort> {
    let ports = container.ports.as_deref().unwrap_or_default();
    let port = |port: &k8s_openapi::api::core::v1::ContainerPort| {
        Some(ContainerPort {
            name: port.name.clone(),
            container_port: u16::try_from(port.container_port).ok()?,
            protocol: Some(port.protocol.clone().unwrap_or_else(|| APP_PROTOCOL.to_owned())),
        })
    };
    ports.iter().filter_map(port).collect()
}

/// A pod as the API has it.
#[cfg(test)]
pub(super) fn pod(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> Pod {
    let mut object = serde_json::json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": { "app": name },
            "generateName": "web-6f8c-", "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6f8c", "uid": "r",
                "controller": true }],
        },
        "spec": { "nodeName": "node-1", "serviceAccountName": "web", "containers": [{
            "name": "app", "ports": [{ "containerPort": 8080 }] }] },
        "status": {
            "phase": "Running", "podIP": "10.1.0.5",
            "podIPs": [{ "ip": "10.1.0.5" }, { "ip": "fd00::5" }],
            "containerStatuses": [{ "name": "app", "containerID": "containerd://c0ffee", "image": "i",
                "imageID": "i", "ready": true, "restartCount": 0 }],
        },
    });
    change(&mut object);
    serde_json::from_value(object).unwrap()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn verdict(pod: Pod, of_namespace: Option<&str>) -> String {
        let candidate = Candidate::of(pod).unwrap();
        match candidate.judge(of_namespace) {
            Verdict::Enrol => "enrol".to_owned(),
            Verdict::Leave => "leave".to_owned(),
            Verdict::Refuse(barred) => barred.to_string(),
        }
    }

    #[test]
    fn labels_enrol_and_opt_out_and_the_pods_own_wins() {
        let plain = || pod("a", |_| {});
        let labelled =
            |value: &'static str| pod("a", |object| object["metadata"]["labels"][MODE] = value.into());
        assert_eq!(verdict(plain(), None), "leave");
        assert_eq!(verdict(plain(), Some("mesh")), "enrol");
        assert_eq!(verdict(plain(), Some("ambient")), "leave");
        assert_eq!(verdict(plain(), Some("whatever")), "leave");
        assert_eq!(verdict(labelled("mesh"), None), "enrol");
        assert_eq!(verdict(labelled("mesh"), Some("none")), "enrol");
        assert_eq!(verdict(labelled("none"), Some("mesh")), "leave");
        assert_eq!(verdict(labelled("ambient"), Some("mesh")), "leave");
        assert!(verdict(labelled("Mesh"), Some("mesh")).contains("\"Mesh\" is no known value"));
    }

    #[test]
    fn pods_that_others_serve_or_that_cannot_be_served_are_never_enrolled() {
        type Change = fn(&mut serde_json::Value);
        let cases: [(Change, &str); 10] = [
            (|o| o["spec"]["hostNetwork"] = true.into(), "hostNetwork"),
            (|o| o["spec"]["containers"][0]["name"] = "istio-proxy".into(), "sidecar"),
            (|o| o["spec"]["initContainers"] = json!([{ "name": "istio-proxy" }]), "sidecar"),
            (|o| o["metadata"]["annotations"] = json!({ "sidecar.istio.io/status": "{}" }), "sidecar"),
            (
                |o| o["metadata"]["annotations"] = json!({ "ambient.istio.io/redirection": "enabled" }),
                "ambient",
            ),
            (
                |o| o["metadata"]["annotations"] = json!({ "mesh-node/acceleration": "fast" }),
                "neither on nor off",
            ),
            (|o| o["status"]["phase"] = "Succeeded".into(), "leave"),
            (|o| o["status"]["phase"] = "Failed".into(), "leave"),
            (|o| o["status"]["phase"] = "Unknown".into(), "enrol"),
            (|o| o["status"] = json!({ "phase": "Pending" }), "enrol"),
        ];
        for (change, expected) in cases {
            let told = verdict(pod("a", change), Some("mesh"));
            assert!(told.contains(expected), "{told}");
            assert!(!told.contains('\n'), "{told}");
        }
    }

    #[test]
    fn what_a_control_plane_is_told_comes_from_the_object() {
        let candidate = Candidate::of(pod("a", |_| {})).unwrap();
        let spec = &candidate.spec;
        assert_eq!(spec.ips, ["10.1.0.5", "fd00::5"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!((spec.uid.as_str(), spec.service_account.as_str()), ("uid-a", "web"));
        assert_eq!(candidate.container_ids, ["c0ffee"]);
        let details = &spec.details;
        assert_eq!(
            (details.node_name.as_str(), details.containers.as_slice()),
            ("node-1", &["app".to_owned()][..])
        );
        assert_eq!(details.ports[0].container_port, 8080);
        assert_eq!(details.controller.as_ref().unwrap().name, "web-6f8c");
    }
}
