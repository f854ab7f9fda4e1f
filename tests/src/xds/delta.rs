//! The incremental form, without I/O: what a stream has been sent, and what it is to be sent next.

use std::collections::BTreeMap;

use mesh_xds::client::ResourceType;
use mesh_xds::pb::envoy::service::discovery::v3 as discovery;
use mesh_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::snapshot::Snapshot;
use super::types::{Answer, Due, Nonces, Wanted};

/// One stream.
#[derive(Debug, Default)]
pub(super) struct Delta {
    types: BTreeMap<ResourceType, Type>,
    nonces: Nonces,
}

#[derive(Debug, Default)]
struct Type {
    wanted: Wanted,
    /// The version that the node has of a resource; `None`: it was told that there is none.
    sent: BTreeMap<String, Option<String>>,
    /// The nonce that is not answered yet.
    under_way: Option<String>,
    answered: bool,
}

impl Delta {
    /// Takes a request. Types that are not known are not answered.
    pub(super) fn receive(&mut self, request: &DeltaDiscoveryRequest) -> Option<Answer> {
        let kind = ResourceType::of_url(&request.type_url)?;
        let first = !self.types.contains_key(&kind);
        let of_type = self.types.entry(kind).or_default();
        if first {
            // A first request without names asks for everything, where the type allows that.
            of_type.wanted.all = request.resource_names_subscribe.is_empty() && kind.is_whole();
            of_type.sent = request
                .initial_resource_versions
                .iter()
                .map(|(name, version)| (name.clone(), Some(version.clone())))
                .collect();
        }
        for name in &request.resource_names_subscribe {
            match name.as_str() {
                "*" => of_type.wanted.all = true,
                _ => {
                    // Who subscribes again to what it has wants to hear of it again.
                    if !first {
                        of_type.sent.remove(name);
                    }
                    of_type.wanted.names.insert(name.clone());
                }
            }
        }
        for name in &request.resource_names_unsubscribe {
            match name.as_str() {
                "*" => of_type.wanted.all = false,
                _ => {
                    of_type.wanted.names.remove(name);
                    of_type.sent.remove(name);
                }
            }
        }
        if request.response_nonce.is_empty() || of_type.under_way.as_ref() != Some(&request.response_nonce) {
            return None;
        }
        of_type.under_way = None;
        Some(match &request.error_detail {
            None => Answer::Acked(kind),
            Some(error) => Answer::Nacked(kind, error.message.clone()),
        })
    }

    /// The next response that is due, with what others refer to first.
    pub(super) fn next(&mut self, snapshot: &Snapshot) -> Option<Due<DeltaDiscoveryResponse>> {
        for (kind, of_type) in &mut self.types {
            if of_type.under_way.is_some() {
                continue;
            }
            let mut response = DeltaDiscoveryResponse {
                type_url: kind.url().to_owned(),
                system_version_info: snapshot.version_of(*kind).to_owned(),
                ..DeltaDiscoveryResponse::default()
            };
            of_type.fill(*kind, snapshot, &mut response);
            let empty = response.resources.is_empty() && response.removed_resources.is_empty();
            // Who asks for everything is to hear that there is nothing.
            if empty && (of_type.answered || !of_type.wanted.all) {
                continue;
            }
            of_type.answered = true;
            response.nonce = self.nonces.next();
            of_type.under_way = Some(response.nonce.clone());
            return Some(Due {
                kind: *kind,
                version: response.system_version_info.clone(),
                counts: (response.resources.len(), response.removed_resources.len()),
                held: of_type.sent.values().flatten().count(),
                response,
            });
        }
        None
    }
}

impl Type {
    /// What has changed since the node was told.
    fn fill(&mut self, kind: ResourceType, snapshot: &Snapshot, response: &mut DeltaDiscoveryResponse) {
        for (name, resource) in snapshot.all_of(kind) {
            let wanted = self.wanted.all || self.wanted.names.contains(name);
            if wanted && self.sent.get(name) != Some(&Some(resource.version.clone())) {
                response.resources.push(discovery::Resource {
                    name: name.clone(),
                    version: resource.version.clone(),
                    resource: Some(resource.body.clone()),
                    ..discovery::Resource::default()
                });
                self.sent.insert(name.clone(), Some(resource.version.clone()));
            }
        }
        for (name, version) in &mut self.sent {
            if version.is_some() && snapshot.get(kind, name).is_none() {
                response.removed_resources.push(name.clone());
                *version = None;
            }
        }
        for name in &self.wanted.names {
            if !self.sent.contains_key(name) && snapshot.get(kind, name).is_none() {
                response.removed_resources.push(name.clone());
                self.sent.insert(name.clone(), None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_xds::pb::google::rpc::Status;
    use serde_json::json;

    use super::*;

    const CDS: ResourceType = ResourceType::Cluster;
    const EDS: ResourceType = ResourceType::Endpoint;

    fn clusters(version: &str, of: &[(&str, &str)]) -> Snapshot {
        let mut snapshot = Snapshot::new(version);
        for (name, timeout) in of {
            snapshot.add(CDS, &json!({ "name": name, "connect_timeout": timeout })).unwrap();
        }
        snapshot
    }

    fn asks(kind: ResourceType, nonce: &str, names: &[&str]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            response_nonce: nonce.to_owned(),
            resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn names(due: &Due<DeltaDiscoveryResponse>) -> (Vec<&str>, Vec<&str>) {
        let response = &due.response;
        let removed = response.removed_resources.iter().map(String::as_str).collect();
        (response.resources.iter().map(|r| r.name.as_str()).collect(), removed)
    }

    #[test]
    fn only_what_changed_is_sent_and_only_after_the_answer_to_what_was_sent_before() {
        let first = clusters("1", &[("a", "1s"), ("b", "1s")]).after(None);
        let second = clusters("2", &[("b", "2s"), ("c", "1s")]).after(Some(&first));
        let mut stream = Delta::default();
        assert_eq!(stream.receive(&asks(CDS, "", &[])), None);
        let due = stream.next(&first).unwrap();
        assert_eq!(names(&due), (vec!["a", "b"], vec![]));
        assert_eq!(stream.next(&second), None, "one response of a type at a time");
        assert_eq!(stream.receive(&asks(CDS, &due.response.nonce, &[])), Some(Answer::Acked(CDS)));
        let due = stream.next(&second).unwrap();
        assert_eq!((names(&due), due.held), ((vec!["b", "c"], vec!["a"]), 2));
        let refused = DeltaDiscoveryRequest {
            error_detail: Some(Status { message: "c: no".to_owned(), ..Status::default() }),
            ..asks(CDS, &due.response.nonce, &[])
        };
        assert_eq!(stream.receive(&refused), Some(Answer::Nacked(CDS, "c: no".to_owned())));
        assert_eq!(stream.next(&second), None, "what was refused is not sent again");
    }

    #[test]
    fn a_node_that_comes_back_is_sent_what_it_lacks_and_an_old_nonce_is_no_answer() {
        let first = clusters("1", &[("a", "1s"), ("b", "1s")]).after(None);
        let second = clusters("2", &[("a", "1s"), ("b", "2s")]).after(Some(&first));
        let mut stream = Delta::default();
        let mut held = asks(CDS, "", &[]);
        held.initial_resource_versions = ["a", "b", "z"].map(|name| (name.to_owned(), "1".to_owned())).into();
        stream.receive(&held);
        let due = stream.next(&second).unwrap();
        assert_eq!(names(&due), (vec!["b"], vec!["z"]));
        assert_eq!(stream.receive(&asks(CDS, "0", &[])), None);
        assert_eq!(stream.next(&clusters("3", &[]).after(Some(&second))), None, "still under way");
    }

    #[test]
    fn a_name_that_does_not_exist_is_said_to_be_absent_and_a_repeated_subscription_is_answered() {
        let nothing = clusters("1", &[]).after(None);
        let mut stream = Delta::default();
        stream.receive(&asks(EDS, "", &["e"]));
        let due = stream.next(&nothing).unwrap();
        assert_eq!(names(&due), (vec![], vec!["e"]));
        stream.receive(&asks(EDS, &due.response.nonce, &[]));
        assert_eq!(stream.next(&nothing), None);
        stream.receive(&asks(EDS, "", &["e"]));
        assert_eq!(names(&stream.next(&nothing).unwrap()), (vec![], vec!["e"]));
        // Everything: also that there is nothing.
        stream.receive(&asks(CDS, "", &[]));
        assert_eq!(stream.next(&nothing).unwrap().counts, (0, 0));
    }
}
