//! Tells a pod, by an Event, why it is not enrolled although it asks for it.
//!
//! One Event for each pod and reason: its name is made of both, so that a process that starts again does not say it
//! twice. What the API does with it is only logged: nobody waits for it.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::PostParams;
use kube::{Api, Client};

use super::pod::{Barred, Candidate};

const COMPONENT: &str = "mesh-node";
const REASON: &str = "NotEnrolled";

/// Sends the Event, in a task of its own.
pub(super) fn tell(client: &Client, node: &str, candidate: &Candidate, barred: &Barred) {
    let event = event(node, candidate, barred);
    let api = Api::<Event>::namespaced(client.clone(), &candidate.spec.namespace);
    let pod = candidate.spec.display_name();
    tokio::spawn(async move {
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {}
            // It was told before.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => tracing::warn!(
                "pod {pod} was not told by an Event that it is not enrolled: {error}; grant mesh-node's service account \
                 `create` of events"
            ),
        }
    });
}

fn event(node: &str, candidate: &Candidate, barred: &Barred) -> Event {
    let spec = &candidate.spec;
    let message = format!("not enrolled in the mesh: {barred}");
    let mut hasher = DefaultHasher::new();
    (&spec.uid, &message).hash(&mut hasher);
    let now = Time(k8s_openapi::jiff::Timestamp::now());
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:016x}", spec.name, hasher.finish())),
            namespace: Some(spec.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(spec.name.clone()),
            namespace: Some(spec.namespace.clone()),
            uid: Some(spec.uid.clone()),
            ..ObjectReference::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(REASON.to_owned()),
        message: Some(message),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.to_owned()),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::pod::pod;
    use super::*;

    #[test]
    fn a_pod_is_told_each_reason_under_one_name_however_often_the_process_starts() {
        let candidate = Candidate::of(pod("a", |_| {})).unwrap();
        let told = |barred: &Barred| event("node-1", &candidate, barred);
        let (first, again) = (told(&Barred::Sidecar), told(&Barred::Sidecar));
        assert_eq!(first.metadata.name, again.metadata.name);
        assert_ne!(first.metadata.name, told(&Barred::Ambient).metadata.name);
        assert_eq!(first.involved_object.uid.as_deref(), Some("uid-a"));
        assert!(first.message.unwrap().contains("it has a sidecar of its own"));
    }
}
