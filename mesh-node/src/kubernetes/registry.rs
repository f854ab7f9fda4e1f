//! What is known of this node's pods and of namespaces, from the events of two watches.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;

use super::pod::{Barred, Candidate, MODE, OURS, Verdict};

/// One type's objects by key. A list that is being made anew takes the old one's place when it is whole.
#[derive(Debug)]
struct Table<V> {
    current: BTreeMap<String, V>,
    next: Option<BTreeMap<String, V>>,
    listed: bool,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { current: BTreeMap::new(), next: None, listed: false }
    }
}

impl<V> Table<V> {
    /// Returns whether `current` may have changed.
    fn take<K>(&mut self, event: Event<K>, read: impl FnOnce(K) -> Option<(String, V)>) -> bool {
        match event {
            Event::Init => {
                self.next = Some(BTreeMap::new());
                false
            }
            Event::InitApply(object) => {
                if let (Some(next), Some((key, value))) = (&mut self.next, read(object)) {
                    next.insert(key, value);
                }
                false
            }
            Event::InitDone => {
                self.current = self.next.take().unwrap_or_default();
                self.listed = true;
                true
            }
            Event::Apply(object) => {
                if let Some((key, value)) = read(object) {
                    self.current.insert(key, value);
                }
                true
            }
            Event::Delete(object) => {
                if let Some((key, _)) = read(object) {
                    self.current.remove(&key);
                }
                true
            }
        }
    }
}

/// The pods of this node, sorted.
#[derive(Debug, Default)]
pub(super) struct Sorted<'a> {
    pub(super) wanted: Vec<&'a Candidate>,
    pub(super) others: Vec<&'a Candidate>,
    /// Of the others, those that ask for the mesh and were not told yet why they are not part of it.
    pub(super) to_tell: Vec<(&'a Candidate, Barred)>,
    /// A namespace of the cluster or one of these asks for the mesh.
    pub(super) asked_for: bool,
}

/// Pods by uid, and what namespaces say.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pods: Table<Candidate>,
    /// Only those that have the label.
    namespaces: Table<String>,
    /// What was said of refused pods.
    told: BTreeMap<String, Barred>,
}

impl Registry {
    /// Returns whether the enrolled pods may have changed.
    pub(super) fn take_pod(&mut self, event: Event<Pod>) -> bool {
        self.pods.take(event, |pod| {
            let candidate = Candidate::of(pod)?;
            Some((candidate.spec.uid.clone(), candidate))
        })
    }

    /// Returns whether the enrolled pods may have changed.
    pub(super) fn take_namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>) -> bool {
        self.namespaces.take(event, |namespace| {
            let mode = namespace.metadata.labels.unwrap_or_default().remove(MODE).unwrap_or_default();
            Some((namespace.metadata.name?, mode))
        })
    }

    /// The pods that are to be enrolled, and the others; `None` until both lists were read once. Says why one that
    /// asks for it is not, once for each pod and reason.
    pub(super) fn wanted(&mut self) -> Option<Sorted<'_>> {
        if !(self.pods.listed && self.namespaces.listed) {
            return None;
        }
        let mut refused = BTreeMap::new();
        let asked_for = self.namespaces.current.values().any(|mode| mode == OURS);
        let mut sorted = Sorted { asked_for, ..Sorted::default() };
        for (uid, candidate) in &self.pods.current {
            let of_namespace = self.namespaces.current.get(&candidate.spec.namespace).map(String::as_str);
            match candidate.judge(of_namespace) {
                Verdict::Enrol => sorted.wanted.push(candidate),
                Verdict::Leave => sorted.others.push(candidate),
                Verdict::Refuse(barred) => {
                    sorted.others.push(candidate);
                    if self.told.get(uid) != Some(&barred) {
                        tracing::warn!("pod {} is not enrolled: {barred}", candidate.spec.display_name());
                        sorted.to_tell.push((candidate, barred.clone()));
                    }
                    refused.insert(uid.clone(), barred);
                }
            }
        }
        sorted.asked_for |= !(sorted.wanted.is_empty() && refused.is_empty());
        self.told = refused;
        Some(sorted)
    }
}

#[cfg(test)]
mod tests {
    use super::super::pod::pod;
    use super::*;

    fn namespace(name: &str, mode: &str) -> PartialObjectMeta<Namespace> {
        let object = serde_json::json!({ "metadata": { "name": name, "labels": { MODE: mode } } });
        serde_json::from_value(object).unwrap()
    }

    fn names(registry: &mut Registry) -> Option<Vec<String>> {
        let wanted = registry.wanted()?.wanted;
        Some(wanted.into_iter().map(|candidate| candidate.spec.name.clone()).collect())
    }

    #[test]
    fn nothing_is_known_before_both_lists_are_whole() {
        let mut registry = Registry::default();
        registry.take_pod(Event::Init);
        registry.take_pod(Event::InitApply(pod("a", |_| {})));
        registry.take_namespace(Event::Init);
        registry.take_namespace(Event::InitApply(namespace("shop", "mesh")));
        registry.take_namespace(Event::InitDone);
        assert_eq!(names(&mut registry), None);
        assert!(registry.take_pod(Event::InitDone));
        assert_eq!(names(&mut registry).unwrap(), ["a"]);
    }

    #[test]
    fn a_list_that_is_made_anew_takes_over_when_it_is_whole_and_drops_what_it_lacks() {
        let mut registry = Registry::default();
        for event in [Event::Init, Event::InitApply(namespace("shop", "mesh")), Event::InitDone] {
            registry.take_namespace(event);
        }
        for event in [Event::Init, Event::InitApply(pod("a", |_| {})), Event::InitDone] {
            registry.take_pod(event);
        }
        assert!(!registry.take_pod(Event::Init));
        assert!(!registry.take_pod(Event::InitApply(pod("b", |_| {}))));
        assert_eq!(names(&mut registry).unwrap(), ["a"], "the API was away: nothing changes yet");
        registry.take_pod(Event::InitDone);
        assert_eq!(names(&mut registry).unwrap(), ["b"]);
        registry.take_pod(Event::Apply(pod("c", |_| {})));
        registry.take_pod(Event::Delete(pod("b", |_| {})));
        assert_eq!(names(&mut registry).unwrap(), ["c"]);
        // The label is taken from the namespace: it leaves the watch.
        registry.take_namespace(Event::Delete(namespace("shop", "mesh")));
        assert!(registry.wanted().unwrap().wanted.is_empty());
    }

    #[test]
    fn somebody_asks_for_the_mesh_while_a_namespace_of_the_cluster_or_a_pod_of_the_node_does() {
        let mut registry = Registry::default();
        for event in [Event::Init, Event::InitApply(namespace("elsewhere", "ambient")), Event::InitDone] {
            registry.take_namespace(event);
        }
        for event in [Event::Init, Event::InitApply(pod("a", |_| {})), Event::InitDone] {
            registry.take_pod(event);
        }
        let asked_for = |registry: &mut Registry| registry.wanted().unwrap().asked_for;
        assert!(!asked_for(&mut registry));
        registry.take_namespace(Event::Apply(namespace("elsewhere", "mesh")));
        assert!(asked_for(&mut registry), "its pods may come to this node");
        registry.take_namespace(Event::Delete(namespace("elsewhere", "mesh")));
        assert!(!asked_for(&mut registry));
        let refused = |object: &mut serde_json::Value| {
            object["metadata"]["labels"][MODE] = "mesh".into();
            object["spec"]["hostNetwork"] = true.into();
        };
        registry.take_pod(Event::Apply(pod("b", refused)));
        assert!(asked_for(&mut registry));
    }
}
