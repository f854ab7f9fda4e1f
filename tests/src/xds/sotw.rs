//! The state-of-the-world form, without I/O: what a stream has been sent, and what it is to be sent next.

use std::collections::{BTreeMap, BTreeSet};

use mesh_xds::client::ResourceType;
use mesh_xds::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};

use super::snapshot::Snapshot;
use super::types::{Answer, Due, Nonces, Wanted};

/// One stream.
#[derive(Debug, Default)]
pub(super) struct Sotw {
    types: BTreeMap<ResourceType, Type>,
    nonces: Nonces,
}

#[derive(Debug, Default)]
struct Type {
    wanted: Wanted,
    /// What the last response said: its names and versions.
    sent: Option<BTreeMap<String, String>>,
    /// The names asked for when it was sent.
    asked: BTreeSet<String>,
    nonce: String,
    under_way: bool,
}

impl Sotw {
    /// Takes a request. Types that are not known are not answered, and neither are requests that answer an
    /// older response than the last.
    pub(super) fn receive(&mut self, request: &DiscoveryRequest) -> Option<Answer> {
        let kind = ResourceType::of_url(&request.type_url)?;
        let of_type = self.types.entry(kind).or_default();
        if !request.response_nonce.is_empty() && request.response_nonce != of_type.nonce {
            return None;
        }
        of_type.wanted = Wanted {
            all: kind.is_whole() && request.resource_names.is_empty(),
            names: request.resource_names.iter().cloned().collect(),
        };
        if !std::mem::take(&mut of_type.under_way) || request.response_nonce.is_empty() {
            return None;
        }
        Some(match &request.error_detail {
            None => Answer::Acked(kind),
            Some(error) => Answer::Nacked(kind, error.message.clone()),
        })
    }

    /// The next response that is due, with what others refer to first.
    pub(super) fn next(&mut self, snapshot: &Snapshot) -> Option<Due<DiscoveryResponse>> {
        for (kind, of_type) in &mut self.types {
            let wanted = |name: &String| of_type.wanted.all || of_type.wanted.names.contains(name);
            let whole: Vec<_> = snapshot.all_of(*kind).filter(|(name, _)| wanted(name)).collect();
            let state: BTreeMap<String, String> =
                whole.iter().map(|(name, resource)| ((*name).clone(), resource.version.clone())).collect();
            let news =
                of_type.sent.as_ref() != Some(&state) || !of_type.wanted.names.is_subset(&of_type.asked);
            // Of what is asked for by name, only what there is can be sent.
            let something = of_type.wanted.all || !whole.is_empty();
            if of_type.under_way || !news || !something {
                continue;
            }
            let response = DiscoveryResponse {
                version_info: snapshot.version_of(*kind).to_owned(),
                resources: whole.into_iter().map(|(_, resource)| resource.body.clone()).collect(),
                type_url: kind.url().to_owned(),
                nonce: self.nonces.next(),
                ..DiscoveryResponse::default()
            };
            let gone = of_type.sent.as_ref().map_or(0, |sent| {
                sent.keys().filter(|name| kind.is_whole() && !state.contains_key(*name)).count()
            });
            of_type.asked.clone_from(&of_type.wanted.names);
            of_type.sent = Some(state);
            of_type.nonce.clone_from(&response.nonce);
            of_type.under_way = true;
            let count = response.resources.len();
            let version = response.version_info.clone();
            return Some(Due { kind: *kind, version, counts: (count, gone), held: count, response });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CDS: ResourceType = ResourceType::Cluster;
    const EDS: ResourceType = ResourceType::Endpoint;

    fn endpoints(version: &str, of: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::new(version);
        for name in of {
            snapshot.add(CDS, &json!({ "name": name })).unwrap();
            snapshot.add(EDS, &json!({ "cluster_name": name })).unwrap();
        }
        snapshot
    }

    fn asks(kind: ResourceType, nonce: &str, names: &[&str]) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: kind.url().to_owned(),
            response_nonce: nonce.to_owned(),
            resource_names: names.iter().map(|&name| name.to_owned()).collect(),
            ..DiscoveryRequest::default()
        }
    }

    #[test]
    fn the_whole_is_sent_when_it_changes_or_when_more_is_asked_for() {
        let first = endpoints("1", &["a", "b"]).after(None);
        let mut stream = Sotw::default();
        stream.receive(&asks(EDS, "", &["a"]));
        let due = stream.next(&first).unwrap();
        assert_eq!((due.version.as_str(), due.counts), ("1", (1, 0)));
        assert_eq!(stream.next(&first), None);
        assert_eq!(stream.receive(&asks(EDS, "1", &["a"])), Some(Answer::Acked(EDS)));
        assert_eq!(stream.next(&first), None);
        assert_eq!(stream.receive(&asks(EDS, "1", &["a", "b"])), None, "no second answer");
        assert_eq!(stream.next(&first).unwrap().counts, (2, 0));
        assert_eq!(stream.receive(&asks(EDS, "1", &["b"])), None, "an answer to an older response");
    }

    #[test]
    fn what_is_gone_is_missing_in_the_next_whole() {
        let first = endpoints("1", &["a", "b"]).after(None);
        let second = endpoints("2", &["b"]).after(Some(&first));
        let mut stream = Sotw::default();
        stream.receive(&asks(CDS, "", &[]));
        let due = stream.next(&first).unwrap();
        stream.receive(&asks(CDS, &due.response.nonce, &[]));
        let due = stream.next(&second).unwrap();
        assert_eq!((due.version.as_str(), due.counts), ("2", (1, 1)));
    }
}
