//! What a control plane and peers are told of a pod beside its name: what made it, its containers and ports.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the pod object says beyond identity, labels and addresses. Where pods come from a file it may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PodDetails {
    /// The pod's controller (`metadata.ownerReferences`).
    pub controller: Option<Controller>,
    /// The pod's name was generated: only then its controller says what made it.
    pub generated_name: bool,
    pub node_name: String,
    /// Names of the application's containers.
    pub containers: Vec<String>,
    /// Their ports, in order.
    pub ports: Vec<ContainerPort>,
}

/// An owner reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Controller {
    pub api_version: String,
    pub kind: String,
    pub name: String,
}

/// A port of a container, with the names of the pod object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerPort {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub container_port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// What made a pod, as Istio's injector names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// `WORKLOAD_NAME`.
    pub name: String,
    /// `OWNER`: `kubernetes://apis/API_VERSION/namespaces/NAMESPACE/KINDs/NAME`.
    pub url: String,
}

impl PodDetails {
    /// The owner by the rules of Istio's injector (`GetDeployMetaFromPod`): of a ReplicaSet its Deployment, of a
    /// dated Job its CronJob, of a pod that nobody controls itself. Without details, by the pod's name.
    pub fn owner(&self, pod: &str, namespace: &str, labels: &BTreeMap<String, String>) -> Owner {
        let (api_version, kind, name) = match &self.controller {
            Some(controller) if self.generated_name => controlled(controller, labels),
            Some(_) => ("v1".to_owned(), "Pod".to_owned(), pod.to_owned()),
            None => match deployment_of(pod, labels) {
                Some(name) => ("apps/v1".to_owned(), "Deployment".to_owned(), name.to_owned()),
                None => ("v1".to_owned(), "Pod".to_owned(), pod.to_owned()),
            },
        };
        let kinds = format!("{}s", kind.to_lowercase());
        Owner { url: format!("kubernetes://apis/{api_version}/namespaces/{namespace}/{kinds}/{name}"), name }
    }
}

fn controlled(controller: &Controller, labels: &BTreeMap<String, String>) -> (String, String, String) {
    let Controller { api_version, kind, name } = controller;
    let without = |label: &str| {
        let hash = labels.get(label).filter(|hash| !hash.is_empty())?;
        name.strip_suffix(hash.as_str())?.strip_suffix('-')
    };
    let owner = |api_version: &str, kind: &str, name: &str| {
        (api_version.to_owned(), kind.to_owned(), name.to_owned())
    };
    match kind.as_str() {
        "ReplicaSet" => match (without("pod-template-hash"), without("rollouts-pod-template-hash")) {
            (_, Some(rollout)) => owner("v1alpha1", "Rollout", rollout),
            (Some(deployment), None) => owner(api_version, "Deployment", deployment),
            (None, None) => owner(api_version, kind, name),
        },
        "ReplicationController" => match labels.get("deploymentconfig") {
            Some(config) => owner(api_version, "DeploymentConfig", config),
            None => owner(api_version, kind, name),
        },
        "Job" => match name.rsplit_once('-') {
            Some((cron, date))
                if (8..=10).contains(&date.len()) && date.bytes().all(|b| b.is_ascii_digit()) =>
            {
                owner("batch/v1", "CronJob", cron)
            }
            _ => owner(api_version, kind, name),
        },
        _ => owner(api_version, kind, name),
    }
}

/// The Deployment of a pod by the label of its template, or by the rule of its name: `DEPLOYMENT-HASH-RANDOM`.
fn deployment_of<'a>(pod: &'a str, labels: &BTreeMap<String, String>) -> Option<&'a str> {
    if let Some(hash) = labels.get("pod-template-hash") {
        return pod.split_once(&format!("-{hash}-")).map(|(deployment, _)| deployment);
    }
    let random = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
        // Kubernetes leaves out vowels and what looks like them.
        lengths.contains(&part.len()) && part.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b))
    };
    let (rest, last) = pod.rsplit_once('-')?;
    let (deployment, hash) = rest.rsplit_once('-')?;
    (random(last, 5..=5) && random(hash, 6..=10)).then_some(deployment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn the_owner_is_the_one_that_the_injector_would_name() {
        let owner = |api_version: &str, kind: &str, name: &str, with: &[(&str, &str)]| {
            let (api_version, kind, name) = (api_version.to_owned(), kind.to_owned(), name.to_owned());
            let controller = Some(Controller { api_version, kind, name });
            let details = PodDetails { controller, generated_name: true, ..PodDetails::default() };
            details.owner("p", "n", &labels(with)).url
        };
        for (api_version, kind, name, with, expected) in [
            (
                "apps/v1",
                "ReplicaSet",
                "web-6f8c",
                &[("pod-template-hash", "6f8c")][..],
                "apps/v1/namespaces/n/deployments/web",
            ),
            ("apps/v1", "ReplicaSet", "bare", &[], "apps/v1/namespaces/n/replicasets/bare"),
            ("apps/v1", "StatefulSet", "db", &[], "apps/v1/namespaces/n/statefulsets/db"),
            ("apps/v1", "DaemonSet", "agent", &[], "apps/v1/namespaces/n/daemonsets/agent"),
            ("batch/v1", "Job", "report-28012345", &[], "batch/v1/namespaces/n/cronjobs/report"),
            ("batch/v1", "Job", "once", &[], "batch/v1/namespaces/n/jobs/once"),
        ] {
            assert_eq!(owner(api_version, kind, name, with), format!("kubernetes://apis/{expected}"));
        }
    }

    #[test]
    fn without_details_only_names_that_a_deployment_gives_lose_their_end() {
        let of = |pod: &str| PodDetails::default().owner(pod, "n", &BTreeMap::new()).name;
        assert_eq!(of("reviews-v1-7d8c9b6f4-xk2lp"), "reviews-v1");
        assert_eq!(of("db-0"), "db-0");
        assert_eq!(of("my-static-name"), "my-static-name");
        assert_eq!(of("plain"), "plain");
        let labelled =
            PodDetails::default().owner("web-1-6f8c-x", "n", &labels(&[("pod-template-hash", "6f8c")]));
        assert_eq!(labelled.url, "kubernetes://apis/apps/v1/namespaces/n/deployments/web-1");
    }
}
