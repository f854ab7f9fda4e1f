//! The HTTP filters before the router: requests pass them in configured order, responses the other way round
//! (Envoy: `FilterManager`).
//!
//! Dispatch is a `match`: a filter that has nothing to do with a request costs a comparison, and only one that
//! waits allocates. What a filter wants to do with the response it leaves behind as a [`Step`].

mod buffer;
mod coding;
mod compressor;
mod cors;
mod csrf;
mod decompressor;
mod fault;
mod forward_proxy;
mod grpc_stats;
mod grpc_web;
mod header_mutation;
mod health_check;
mod istio_stats;
mod local_rate_limit;
mod lua;
mod metadata;
mod peer_metadata;
mod rbac;
mod stateful_session;
mod throttle;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderValue, Response};
use smallvec::SmallVec;

use super::local_reply::LocalReply;
use super::request::Request;
use super::stream::Stream;
use crate::http::body::Body;
use crate::model::http_filter::{
    AlpnList, Decompressor, HttpFilter, HttpFilterKind, Override, Overrides, StatefulSession,
};
use crate::model::route::RouteTable;
use crate::router::Routed;

pub use self::grpc_stats::Messages;
pub(in crate::filter) use self::header_mutation::put;
pub use self::istio_stats::{SeriesCache, report};
pub use self::lua::{Chosen as Script, Machines};
pub use self::peer_metadata::Peers;

/// What the filters of one stream keep.
#[derive(Debug, Default)]
pub struct State {
    /// The filters saw the request.
    begun: Cell<bool>,
    /// What remains to be done with the response, in the order of the filters.
    steps: RefCell<SmallVec<[Step; 2]>>,
    /// What TLS upstreams are offered (`istio.alpn`).
    alpn: RefCell<Option<Arc<crate::model::http_filter::Alpn>>>,
    /// Messages of a gRPC stream.
    messages: RefCell<Option<Rc<Messages>>>,
    /// For a session that has a host: that host.
    session_host: Cell<Option<(SocketAddr, bool)>>,
    /// Where the name of the request has been found (`dynamic_forward_proxy`).
    forward_to: Cell<Option<SocketAddr>>,
    /// For metrics: bytes of the request's head, and its host.
    head: RefCell<Option<(u64, Option<HeaderValue>)>>,
    /// Bytes of the response's head.
    response_head_bytes: Cell<u64>,
    request_method: RefCell<Option<istio_stats::Kept>>,
    /// A script changed what the route was chosen by.
    reroute: Cell<bool>,
    /// Counted for as long as the stream lives.
    fault: RefCell<Option<fault::Active>>,
    compressors: RefCell<compressor::Met>,
}

impl State {
    /// What is offered to a TLS upstream that is spoken to in `version`.
    pub fn alpn(&self, http2: bool) -> Option<AlpnList> {
        let alpn = self.alpn.borrow();
        let alpn = alpn.as_ref()?;
        if http2 { alpn.http2.clone() } else { alpn.http11.clone() }
    }

    /// The host that the stream's session belongs to, and whether no other may serve it.
    pub fn session_host(&self) -> Option<(SocketAddr, bool)> {
        self.session_host.get()
    }

    /// The address of the host that the request names, where a filter has looked it up.
    pub fn forward_to(&self) -> Option<SocketAddr> {
        self.forward_to.get()
    }

    fn push(&self, step: Step) {
        self.steps.borrow_mut().push(step);
    }

    fn next_step(&self) -> Option<Step> {
        self.steps.borrow_mut().pop()
    }
}

/// What a filter does with the response.
#[derive(Debug)]
enum Step {
    Cors(cors::Answer),
    PeerMetadata { filter: Arc<crate::model::http_filter::PeerMetadata>, told: peer_metadata::Told },
    GrpcStats(Rc<Messages>),
    GrpcWeb(grpc_web::Encoding),
    Throttle(u64),
    HeaderMutation(Arc<crate::model::http_filter::HeaderMutation>),
    RateLimited(local_rate_limit::Headers),
    StatefulSession(Arc<StatefulSession>, Option<SocketAddr>),
    Metadata(Arc<crate::model::http_filter::HeaderToMetadata>),
    HealthCheck,
    Compress(compressor::Responding),
    Decompress(Arc<Decompressor>),
    Lua(Box<lua::Chosen>),
}

/// One request on its way through the filters.
struct Decoding<'r> {
    stream: &'r Rc<Stream>,
    routed: Option<&'r Routed<'r>>,
    /// Overrides of the levels that have some, the most specific first.
    levels: SmallVec<[&'r Overrides; 4]>,
}

impl<'r> Decoding<'r> {
    fn of(stream: &'r Rc<Stream>, table: &'r RouteTable, routed: Option<&'r Routed<'r>>) -> Self {
        let specific = routed.into_iter().flat_map(|routed| {
            let weighted = routed.weighted.map(|w| &w.filters);
            weighted.into_iter().chain([&routed.route.filters, &routed.virtual_host.filters])
        });
        let levels = specific.chain([&table.filters]).filter(|level| !level.is_empty()).collect();
        Self { stream, routed, levels }
    }

    /// What the most specific level says to a filter.
    fn override_of(&self, filter: &HttpFilter) -> Option<&'r Override> {
        self.overrides_of(filter).next()
    }

    /// What all levels say to a filter, the most specific first.
    fn overrides_of<'f>(
        &self,
        filter: &'f HttpFilter,
    ) -> impl Iterator<Item = &'r Override> + use<'_, 'r, 'f> {
        self.levels
            .iter()
            .filter_map(|level| level.iter().find(|(name, _)| *name == filter.name).map(|(_, said)| said))
    }

    /// Does the filter stand aside? Any message of its own turns a disabled filter on.
    fn is_off(&self, filter: &HttpFilter) -> bool {
        match self.override_of(filter) {
            Some(Override::Disabled(off)) => *off,
            Some(_) => false,
            None => filter.disabled,
        }
    }
}

/// What became of a request on its way through the filters.
#[derive(Debug)]
pub enum Decoded {
    Through,
    /// A filter has answered it.
    Answered(Box<LocalReply>),
    /// Its route is to be chosen anew, for the filters from this one on (Envoy: `clearRouteCache`).
    Reroute(usize),
}

/// Takes a request through the filters before the router, beginning with filter `from`.
/// `routed` is `None` where no route was found.
pub async fn decode(
    stream: &Rc<Stream>,
    request: &mut Request,
    table: &RouteTable,
    routed: Option<&Routed<'_>>,
    from: usize,
) -> Decoded {
    let [filters @ .., _router] = &stream.manager.hcm.http_filters[..] else { return Decoded::Through };
    if filters.is_empty() {
        return Decoded::Through;
    }
    let decoding = Decoding::of(stream, table, routed);
    stream.chain.begun.set(true);
    for filter in filters.iter().filter(|_| from == 0) {
        // Responses of filters before it pass this one too.
        if let HttpFilterKind::HeaderMutation(own) = &filter.kind
            && !decoding.is_off(filter)
        {
            header_mutation::prepare(&decoding, filter, own);
        }
    }
    for (index, filter) in filters.iter().enumerate().skip(from) {
        if decoding.is_off(filter) {
            continue;
        }
        let reply = match &filter.kind {
            HttpFilterKind::PeerMetadata(own) => {
                peer_metadata::decode(&decoding, own, request);
                None
            }
            HttpFilterKind::Alpn(own) => {
                *stream.chain.alpn.borrow_mut() = Some(own.clone());
                None
            }
            HttpFilterKind::GrpcStats => {
                grpc_stats::decode(stream, request);
                None
            }
            HttpFilterKind::IstioStats(own) => {
                istio_stats::decode(stream, own, request);
                None
            }
            HttpFilterKind::Cors(stats) => cors::decode(&decoding, filter, stats, request),
            HttpFilterKind::Fault(own, stats) => {
                let of_route = match decoding.override_of(filter) {
                    Some(Override::Fault(fault)) => fault,
                    _ => own,
                };
                let mut faulting = fault::Faulting::of(&decoding, of_route, stats, request);
                if let Some(pause) = faulting.delay(request) {
                    Box::pin(tokio::time::sleep(pause)).await;
                }
                faulting.abort(request)
            }
            HttpFilterKind::Rbac(own, stats) => rbac::decode(&decoding, filter, (own, stats), request),
            HttpFilterKind::LocalRateLimit(own) => local_rate_limit::decode(&decoding, filter, own, request),
            HttpFilterKind::HeaderMutation(own) => {
                header_mutation::decode(&decoding, filter, own, request);
                None
            }
            HttpFilterKind::Csrf(own, stats) => csrf::decode(&decoding, filter, (own, stats), request),
            HttpFilterKind::Buffer(own) => {
                let of_route = match decoding.override_of(filter) {
                    Some(Override::Buffer(buffer)) => *buffer,
                    _ => *own,
                };
                match buffer::needed(of_route, stream, request) {
                    Some(limit) => Box::pin(buffer::decode(limit, stream, request)).await,
                    None => None,
                }
            }
            HttpFilterKind::GrpcWeb => {
                grpc_web::decode(stream, request);
                None
            }
            HttpFilterKind::StatefulSession(own) => {
                stateful_session::decode(&decoding, filter, own.as_ref(), request);
                None
            }
            HttpFilterKind::HeaderToMetadata(own) => {
                metadata::from_headers(stream, own, request);
                None
            }
            HttpFilterKind::SetMetadata(own) => {
                metadata::set(stream, own);
                None
            }
            HttpFilterKind::SetFilterState(own) => {
                let of_route = match decoding.override_of(filter) {
                    Some(Override::SetFilterState(of_route)) => of_route,
                    _ => own,
                };
                metadata::set_filter_state(stream, &of_route.entries, request);
                if of_route.clear_route_cache {
                    return Decoded::Reroute(index + 1);
                }
                None
            }
            HttpFilterKind::HealthCheck(own) => health_check::decode(stream, own, request),
            HttpFilterKind::ForwardProxy(own) => {
                Box::pin(forward_proxy::decode(&decoding, filter, own, request)).await
            }
            HttpFilterKind::Compressor(own) => {
                compressor::decode(&decoding, filter, own, stream, request);
                None
            }
            HttpFilterKind::Decompressor(own) => {
                decompressor::decode(own, stream, request);
                None
            }
            HttpFilterKind::Lua(own) => match lua::chosen(&decoding, filter, own) {
                Some(chosen) => {
                    let reply = Box::pin(lua::decode(chosen, stream, request)).await;
                    if reply.is_none() && stream.chain.reroute.take() {
                        return Decoded::Reroute(index + 1);
                    }
                    reply
                }
                None => None,
            },
            // The converter lets only the last be a router.
            HttpFilterKind::Router(_) => None,
        };
        if let Some(reply) = reply {
            return Decoded::Answered(Box::new(reply));
        }
    }
    Decoded::Through
}

/// Takes a response back through the filters. `Some`: a script is to run, and then the rest of the filters.
pub fn encode(stream: &Stream, response: &mut Response<Body>) -> Option<Script> {
    if !stream.chain.begun.get() {
        return None;
    }
    while let Some(step) = stream.chain.next_step() {
        match step {
            Step::Lua(script) => return Some(*script),
            Step::Cors(answer) => answer.encode(response.headers_mut()),
            Step::PeerMetadata { filter, told } => peer_metadata::encode(stream, &filter, told, response),
            Step::GrpcStats(messages) => grpc_stats::encode(&messages, response),
            Step::GrpcWeb(encoding) => grpc_web::encode(stream, encoding, response),
            Step::Throttle(kib) => throttle::encode(kib, response),
            Step::HeaderMutation(of) => header_mutation::encode(stream, &of, response),
            Step::RateLimited(headers) => headers.encode(response.headers_mut()),
            Step::StatefulSession(of, was) => stateful_session::encode(stream, &of, was, response),
            Step::Compress(responding) => compressor::encode(stream, &responding, response),
            Step::Decompress(own) => decompressor::encode(&own, response),
            Step::HealthCheck => health_check::encode(stream, response.headers_mut()),
            Step::Metadata(of) => metadata::from_response(stream, &of, response),
        }
    }
    None
}

/// Notes the response as it is sent.
pub fn sent(stream: &Stream, response: &Response<Body>) {
    if stream.chain.begun.get() {
        istio_stats::encode(stream, response);
    }
}
