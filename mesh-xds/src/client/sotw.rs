//! The state-of-the-world form of the protocol, without I/O.
//!
//! Every request of a type names all that is wanted of it, the last version that was taken and the last nonce.
//! What a response of clusters or listeners lacks is removed; of other types nothing ever is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use prost::Message;

use super::nonces::Nonces;
use super::resource::{body_of, error_detail, invalid, name_in, ttl_of};
use super::{Problem, Received, Rejected, Resource, ResourceType, Wanted, shared};
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3 as discovery;
use crate::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use crate::pb::google::protobuf::Any;
use crate::pb::google::rpc::Status;

/// The protocol's state for one node.
#[derive(Debug)]
pub struct Sotw {
    node: Node,
    types: BTreeMap<ResourceType, Type>,
    answers: VecDeque<DiscoveryRequest>,
    fresh: bool,
}

#[derive(Debug, Default)]
struct Type {
    wanted: Wanted,
    /// What the server was told on this stream; `None` before the first request.
    told: Option<Wanted>,
    /// The last version that was taken whole.
    version: String,
    /// The last nonce on this stream.
    nonce: String,
    /// Also what was not taken: its owner remembers why, for as long as it is sent.
    heard_of: BTreeSet<Arc<str>>,
    nonces: Nonces,
}

impl Type {
    fn request(&mut self, kind: ResourceType, error_detail: Option<Status>) -> DiscoveryRequest {
        self.told = Some(self.wanted.clone());
        DiscoveryRequest {
            version_info: self.version.clone(),
            type_url: kind.url().to_owned(),
            response_nonce: self.nonce.clone(),
            resource_names: self.wanted.names(),
            error_detail,
            ..DiscoveryRequest::default()
        }
    }
}

impl Sotw {
    pub fn new(node: Node) -> Self {
        Self { node, types: BTreeMap::new(), answers: VecDeque::new(), fresh: true }
    }

    /// From now on this is wanted of the type.
    pub fn subscribe(&mut self, kind: ResourceType, wanted: Wanted) {
        let of_type = self.types.entry(kind).or_default();
        of_type.heard_of.retain(|name| wanted.has(name));
        of_type.wanted = wanted;
    }

    /// A new stream has begun: nonces are of a stream, versions are not.
    pub fn connected(&mut self) {
        self.fresh = true;
        self.answers.clear();
        for of_type in self.types.values_mut() {
            of_type.told = None;
            of_type.nonce.clear();
            of_type.nonces = Nonces::default();
        }
    }

    /// The next request to send, if there is one.
    pub fn next_request(&mut self) -> Option<DiscoveryRequest> {
        let mut request = self.answers.pop_front().or_else(|| self.subscription())?;
        if std::mem::take(&mut self.fresh) {
            request.node = Some(self.node.clone());
        }
        Some(request)
    }

    fn subscription(&mut self) -> Option<DiscoveryRequest> {
        let due = |of_type: &Type| match &of_type.told {
            None => !of_type.wanted.nothing(),
            Some(told) => *told != of_type.wanted,
        };
        let (kind, of_type) = self.types.iter_mut().find(|(_, of_type)| due(of_type))?;
        Some(of_type.request(*kind, None))
    }

    /// Reads a response. The owner judges it and calls [`Self::finish`].
    ///
    /// # Errors
    /// When it breaks the protocol; it is answered already, if it has to be.
    pub fn receive(&mut self, response: DiscoveryResponse) -> Result<Received, Problem> {
        let kind = ResourceType::of_url(&response.type_url);
        let subscribed = kind.and_then(|kind| Some((kind, self.types.get_mut(&kind)?)));
        let Some((kind, of_type)) = subscribed.filter(|(_, of_type)| of_type.told.is_some()) else {
            return Err(Problem::NotSubscribed(response.type_url));
        };
        of_type.nonce.clone_from(&response.nonce);
        if !of_type.nonces.take(&response.nonce) {
            let problem = Problem::RepeatedNonce { kind, nonce: response.nonce };
            let answer = of_type.request(kind, Some(invalid(problem.to_string())));
            self.answers.push_back(answer);
            return Err(problem);
        }
        let mut received = Received {
            kind,
            version: response.version_info,
            nonce: response.nonce,
            resources: Vec::with_capacity(response.resources.len()),
            removed: Vec::new(),
            unreadable: Vec::new(),
            heartbeats: Vec::new(),
        };
        let mut present = BTreeSet::new();
        for (index, any) in response.resources.into_iter().enumerate() {
            match unwrap(kind, any) {
                Ok(Unwrapped::Heartbeat(name, ttl)) => {
                    present.insert(name.clone());
                    received.heartbeats.extend(ttl.map(|ttl| (name, ttl)));
                }
                Ok(Unwrapped::Resource(resource)) if present.insert(resource.name.clone()) => {
                    if of_type.wanted.has(&resource.name) {
                        received.resources.push(resource);
                    }
                }
                Ok(Unwrapped::Resource(resource)) => received
                    .unreadable
                    .push(Rejected { name: resource.name, reason: "is in the response twice".to_owned() }),
                Err(reason) => {
                    received.unreadable.push(Rejected { name: format!("resources[{index}]"), reason });
                }
            }
        }
        // What cannot be read may be what seems to be missing: then nothing is removed.
        if kind.is_whole() && received.unreadable.is_empty() {
            let missing = of_type.heard_of.iter().filter(|name| !present.contains(&***name));
            received.removed = missing.map(ToString::to_string).collect();
        }
        Ok(received)
    }

    /// Acknowledges a response, or says which of its resources were not taken. All others were.
    pub fn finish(&mut self, received: &Received, rejected: &[Rejected]) {
        let Some(of_type) = self.types.get_mut(&received.kind) else { return };
        for resource in &received.resources {
            if of_type.wanted.has(&resource.name) {
                of_type.heard_of.insert(shared(&resource.name));
            }
        }
        for name in &received.removed {
            of_type.heard_of.remove(name.as_str());
        }
        if rejected.is_empty() {
            of_type.version.clone_from(&received.version);
        }
        let answer = of_type.request(received.kind, error_detail(rejected));
        self.answers.push_back(answer);
    }

    /// A resource's time has run out.
    pub fn expired(&mut self, kind: ResourceType, name: &str) {
        if let Some(of_type) = self.types.get_mut(&kind) {
            of_type.heard_of.remove(name);
        }
    }
}

enum Unwrapped {
    Resource(Resource),
    Heartbeat(String, Option<std::time::Duration>),
}

/// A resource stands alone, or in a wrapper that gives it a name and a TTL.
fn unwrap(kind: ResourceType, any: Any) -> Result<Unwrapped, String> {
    let (name, ttl, any) = if any.type_url.rsplit('/').next() == Some("envoy.service.discovery.v3.Resource") {
        let wrapper = discovery::Resource::decode(any.value.as_slice())
            .map_err(|error| format!("cannot be read: {error}"))?;
        let ttl = ttl_of(wrapper.ttl);
        match wrapper.resource {
            Some(any) => (wrapper.name, ttl, any),
            None => return Ok(Unwrapped::Heartbeat(wrapper.name, ttl)),
        }
    } else {
        (String::new(), None, any)
    };
    let body = body_of(kind, any)?;
    let inner = name_in(kind, &body)?;
    let name = if name.is_empty() { inner } else { name };
    Ok(Unwrapped::Resource(Resource { name, version: String::new(), body, ttl }))
}
