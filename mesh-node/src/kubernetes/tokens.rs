//! Tokens by which a pod's sidecar shows a control plane whose it is: of the pod's service account, for one audience,
//! and bound to the pod, as the kubelet makes them for volumes.
//!
//! They are never written anywhere. With the API away there are none: control planes ask it about them, too.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};

use super::Error;
use crate::model::Str;
use crate::model::workload::Workload;

/// What Istio's volumes ask for, seconds. The API may give less.
const LIFETIME: i64 = 12 * 3600;

/// Asks the API for tokens of one audience.
#[derive(Clone)]
pub struct Tokens {
    client: Client,
    audience: String,
}

/// Whose token it is. Keeps nothing of the pod alive.
#[derive(Debug, Clone)]
pub struct Bearer {
    namespace: Str,
    name: Str,
    uid: Str,
    service_account: Str,
}

impl From<&Workload> for Bearer {
    fn from(pod: &Workload) -> Self {
        Self {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            service_account: pod.service_account.clone(),
        }
    }
}

/// A token, and for how long it is to be used.
pub struct Token {
    pub secret: String,
    /// Four fifths of its life, as the kubelet has it.
    pub renew_after: Duration,
}

impl Tokens {
    pub(super) fn new(client: Client, audience: String) -> Self {
        Self { client, audience }
    }

    /// A new token of the pod.
    ///
    /// # Errors
    /// Why the API gives none.
    pub async fn of(&self, pod: &Bearer) -> Result<Token, Error> {
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), &pod.namespace);
        let asked = request(pod, &self.audience);
        let answer = api.create_token_request(&pod.service_account, &PostParams::default(), &asked).await;
        let answer = answer.map_err(|source| Error::Token {
            pod: format!("{}/{}", pod.namespace, pod.name),
            service_account: pod.service_account.to_string(),
            remedy: remedy(&source),
            source: Box::new(source),
        })?;
        let seconds = answer.spec.expiration_seconds.and_then(|s| u64::try_from(s).ok());
        let life = Duration::from_secs(seconds.unwrap_or_default());
        Ok(Token {
            secret: answer.status.map(|status| status.token).unwrap_or_default(),
            renew_after: life * 4 / 5,
        })
    }
}

fn request(pod: &Bearer, audience: &str) -> TokenRequest {
    TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name.to_string()),
                uid: Some(pod.uid.to_string()),
            }),
            expiration_seconds: Some(LIFETIME),
        },
        ..TokenRequest::default()
    }
}

fn remedy(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            "grant mesh-node's service account `create` of serviceaccounts/token"
        }
        kube::Error::Api(status) if matches!(status.code, 404 | 409) => {
            "the pod or its service account is gone"
        }
        _ => "tried again by itself",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::local_workload;

    #[test]
    fn a_token_is_asked_for_one_audience_and_one_pod() {
        let pod = Bearer::from(&*local_workload("a"));
        let asked = serde_json::to_value(request(&pod, "istio-ca")).unwrap();
        assert_eq!(asked["spec"]["audiences"], serde_json::json!(["istio-ca"]));
        let bound =
            serde_json::json!({ "apiVersion": "v1", "kind": "Pod", "name": &*pod.name, "uid": &*pod.uid });
        assert_eq!(asked["spec"]["boundObjectRef"], bound);
    }
}
