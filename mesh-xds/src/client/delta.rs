//! The incremental form of the protocol, without I/O.
//!
//! One value lives as long as its subscriptions; [`Delta::connected`] begins a new stream. A change of
//! subscriptions is a request of its own, never combined with an ACK: servers read either the one or the other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::nonces::Nonces;
use super::resource::{body_of, error_detail, invalid, name_in, ttl_of};
use super::{Problem, Received, Rejected, Resource, ResourceType, Wanted, shared};
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// The protocol's state for one node.
#[derive(Debug)]
pub struct Delta {
    node: Node,
    types: BTreeMap<ResourceType, Type>,
    answers: VecDeque<DeltaDiscoveryRequest>,
    /// No request was sent on this stream.
    fresh: bool,
}

#[derive(Debug, Default)]
struct Type {
    wanted: Wanted,
    /// What the server was told on this stream; `None` before the first request.
    told: Option<Wanted>,
    /// Versions of the resources that were taken, by name.
    held: BTreeMap<Arc<str>, Arc<str>>,
    nonces: Nonces,
}

impl Delta {
    pub fn new(node: Node) -> Self {
        Self { node, types: BTreeMap::new(), answers: VecDeque::new(), fresh: true }
    }

    /// From now on this is wanted of the type.
    pub fn subscribe(&mut self, kind: ResourceType, wanted: Wanted) {
        let of_type = self.types.entry(kind).or_default();
        of_type.held.retain(|name, _| wanted.has(name));
        of_type.wanted = wanted;
    }

    /// A new stream has begun: everything is asked for again, with the versions that are held.
    pub fn connected(&mut self) {
        self.fresh = true;
        self.answers.clear();
        for of_type in self.types.values_mut() {
            of_type.told = None;
            of_type.nonces = Nonces::default();
        }
    }

    /// The next request to send, if there is one.
    pub fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        let mut request = self.answers.pop_front().or_else(|| self.subscription())?;
        if std::mem::take(&mut self.fresh) {
            // The stream's first request says who asks; the others need not.
            request.node = Some(self.node.clone());
        }
        Some(request)
    }

    fn subscription(&mut self) -> Option<DeltaDiscoveryRequest> {
        for (kind, of_type) in &mut self.types {
            let mut request =
                DeltaDiscoveryRequest { type_url: kind.url().to_owned(), ..DeltaDiscoveryRequest::default() };
            match &of_type.told {
                None if of_type.wanted.nothing() => continue,
                None => {
                    request.resource_names_subscribe = of_type.wanted.names();
                    request.initial_resource_versions = of_type
                        .held
                        .iter()
                        .map(|(name, version)| (name.to_string(), version.to_string()))
                        .collect();
                }
                Some(told) if *told == of_type.wanted => continue,
                Some(told) => {
                    (request.resource_names_subscribe, request.resource_names_unsubscribe) =
                        changes(told, &of_type.wanted)
                }
            }
            of_type.told = Some(of_type.wanted.clone());
            return Some(request);
        }
        None
    }

    /// Reads a response. The owner judges it and calls [`Self::finish`].
    ///
    /// # Errors
    /// When it breaks the protocol; it is answered already, if it has to be.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse) -> Result<Received, Problem> {
        let kind = ResourceType::of_url(&response.type_url);
        let subscribed = kind.and_then(|kind| Some((kind, self.types.get_mut(&kind)?)));
        let Some((kind, of_type)) = subscribed.filter(|(_, of_type)| of_type.told.is_some()) else {
            return Err(Problem::NotSubscribed(response.type_url));
        };
        if !of_type.nonces.take(&response.nonce) {
            let problem = Problem::RepeatedNonce { kind, nonce: response.nonce.clone() };
            self.answers.push_back(DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                error_detail: Some(invalid(problem.to_string())),
                ..DeltaDiscoveryRequest::default()
            });
            return Err(problem);
        }
        let mut received = Received {
            kind,
            version: response.system_version_info,
            nonce: response.nonce,
            resources: Vec::with_capacity(response.resources.len()),
            removed: response.removed_resources,
            unreadable: Vec::new(),
            heartbeats: Vec::new(),
        };
        let mut seen = BTreeSet::new();
        for resource in response.resources {
            let ttl = ttl_of(resource.ttl);
            let Some(any) = resource.resource else {
                received.heartbeats.extend(ttl.map(|ttl| (resource.name, ttl)));
                continue;
            };
            let name = resource.name.clone();
            let body = body_of(kind, any).and_then(|body| {
                let inner = name_in(kind, &body)?;
                match name.is_empty() || inner.is_empty() || inner == name {
                    true if seen.insert(name.clone()) => Ok((body, inner)),
                    true => Err("is in the response twice".to_owned()),
                    false => Err(format!("its message has the name {inner:?}")),
                }
            });
            match body {
                Ok((body, inner)) => {
                    let name = if name.is_empty() { inner } else { name };
                    // A response may hold names that were just unsubscribed.
                    if of_type.wanted.has(&name) {
                        received.resources.push(Resource { name, version: resource.version, body, ttl });
                    }
                }
                Err(reason) => received.unreadable.push(Rejected { name, reason }),
            }
        }
        Ok(received)
    }

    /// Acknowledges a response, or says which of its resources were not taken. All others were.
    pub fn finish(&mut self, received: &Received, rejected: &[Rejected]) {
        let Some(of_type) = self.types.get_mut(&received.kind) else { return };
        for resource in &received.resources {
            let taken = !rejected.iter().any(|rejected| rejected.name == resource.name);
            if taken && of_type.wanted.has(&resource.name) {
                of_type.held.insert(shared(&resource.name), shared(&resource.version));
            }
        }
        for name in &received.removed {
            of_type.held.remove(name.as_str());
        }
        self.answers.push_back(DeltaDiscoveryRequest {
            type_url: received.kind.url().to_owned(),
            response_nonce: received.nonce.clone(),
            error_detail: error_detail(rejected),
            ..DeltaDiscoveryRequest::default()
        });
    }

    /// A resource's time has run out.
    pub fn expired(&mut self, kind: ResourceType, name: &str) {
        if let Some(of_type) = self.types.get_mut(&kind) {
            of_type.held.remove(name);
        }
    }
}

/// Names to subscribe to and to unsubscribe from.
fn changes(told: &Wanted, wanted: &Wanted) -> (Vec<String>, Vec<String>) {
    let of = |wanted: &Wanted| match wanted {
        Wanted::All => Arc::new(BTreeSet::from([shared("*")])),
        Wanted::Names(names) => names.clone(),
    };
    let (told, wanted) = (of(told), of(wanted));
    let without = |a: &BTreeSet<Arc<str>>, b| a.difference(b).map(ToString::to_string).collect();
    (without(&wanted, &told), without(&told, &wanted))
}
