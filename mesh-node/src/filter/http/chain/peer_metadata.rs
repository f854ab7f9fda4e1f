//! Istio's metadata exchange over headers (`istio.metadata_exchange`): who we are goes out, who the other end is
//! comes in, and neither reaches the application.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, Response};

use super::super::request::Request;
use super::super::stream::Stream;
use super::{Decoding, Step};
use crate::http::body::Body;
use crate::model::cluster::Cluster;
use crate::model::http_filter::PeerMetadata;
use crate::telemetry::peer::{LocalPeer, Peer};

const VALUE: HeaderName = HeaderName::from_static("x-envoy-peer-metadata");
const ID: HeaderName = HeaderName::from_static("x-envoy-peer-metadata-id");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Peers that were decoded before. Keyed by what they said whole: nobody can speak for another.
#[derive(Debug, Default)]
pub struct Peers(RefCell<Known>);

/// What was said, and whom it names.
type Known = HashMap<Box<[u8]>, Option<Arc<Peer>>, ahash::RandomState>;

impl Peers {
    /// As Istio's `max_peer_cache_size`.
    const MAX: usize = 500;

    fn decode(&self, value: &[u8], labels: &[String]) -> Option<Arc<Peer>> {
        // What is remembered has no labels of its own.
        if !labels.is_empty() {
            return Peer::of_header(value, labels).map(Arc::new);
        }
        let mut known = self.0.borrow_mut();
        if let Some(peer) = known.get(value) {
            return peer.clone();
        }
        if known.len() >= Self::MAX {
            known.clear();
        }
        let peer = Peer::of_header(value, labels).map(Arc::new);
        known.insert(value.into(), peer.clone());
        peer
    }
}

/// What the client told of itself.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    id: bool,
    value: bool,
    baggage: bool,
}

pub(super) fn decode(decoding: &Decoding<'_>, filter: &Arc<PeerMetadata>, request: &mut Request) {
    let stream = decoding.stream;
    let mut told = Told::default();
    if filter.discover_downstream {
        let headers = &mut request.parts.headers;
        told.id = headers.remove(ID).is_some();
        if let Some(value) = headers.remove(VALUE) {
            told.value = true;
            learn(stream, value.as_bytes(), filter);
        }
    }
    if filter.discover_baggage
        && let Some(value) = request.parts.headers.get(BAGGAGE)
    {
        told.baggage = true;
        let peer = value.to_str().ok().and_then(Peer::of_baggage);
        stream.info.borrow_mut().peer.get_or_insert_with(|| Arc::new(peer.unwrap_or_default()));
    }
    if filter.tell_upstream && !stays_inside(decoding, filter, request) {
        tell(
            stream.manager.local_peer(),
            &mut request.parts.headers,
            Told { id: true, value: true, baggage: false },
        );
    }
    if filter.discover_upstream || filter.tell_downstream || filter.tell_baggage {
        stream.chain.push(Step::PeerMetadata { filter: filter.clone(), told });
    }
}

pub(super) fn encode(stream: &Stream, filter: &PeerMetadata, told: Told, response: &mut Response<Body>) {
    let headers = response.headers_mut();
    if filter.discover_upstream {
        headers.remove(ID);
        if let Some(value) = headers.remove(VALUE) {
            learn(stream, value.as_bytes(), filter);
        }
    }
    let answer = Told {
        id: filter.tell_downstream && told.id,
        value: filter.tell_downstream && told.value,
        baggage: filter.tell_baggage && told.baggage,
    };
    tell(stream.manager.local_peer(), headers, answer);
}

fn learn(stream: &Stream, value: &[u8], filter: &PeerMetadata) {
    if let Some(peer) = stream.manager.ctx.peers.decode(value, &filter.labels) {
        stream.info.borrow_mut().peer.get_or_insert(peer);
    }
}

fn tell(local: &LocalPeer, headers: &mut HeaderMap, what: Told) {
    if what.id {
        headers.insert(ID, local.id.clone());
    }
    if what.value {
        headers.insert(VALUE, local.value.clone());
    }
    if what.baggage {
        headers.insert(BAGGAGE, local.baggage.clone());
    }
}

/// Is the upstream one that is to learn nothing of the mesh?
fn stays_inside(decoding: &Decoding<'_>, filter: &PeerMetadata, request: &Request) -> bool {
    let Some(name) = decoding.routed.and_then(|routed| routed.cluster(&request.head())) else { return false };
    let Some(cluster) = decoding.stream.manager.ctx.clusters.get(&name) else { return false };
    let Cluster { istio, .. } = &*cluster.config;
    istio.disable_mx || (filter.skip_external && (istio.external || *name == *"PassthroughCluster"))
}
