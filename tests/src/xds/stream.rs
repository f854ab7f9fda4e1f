//! The gRPC side: connections and streams. What is sent is the business of `delta` and `sotw`.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::Stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use mesh_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::mpsc;
use tonic::codegen::Service;
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use super::delta::Delta;
use super::snapshot::Snapshot;
use super::sotw::Sotw;
use super::types::{Answer, Due};

/// Serves until dropped.
///
/// # Errors
/// When the socket accepts no more.
pub(super) async fn serve(socket: std::net::TcpListener, shared: Arc<Shared>) -> io::Result<Infallible> {
    let socket = tokio::net::TcpListener::from_std(socket)?;
    let service = AggregatedDiscoveryServiceServer::new(Ads(shared));
    // Connections end with the server.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (io, _) = socket.accept().await?;
        io.set_nodelay(true)?;
        while connections.try_join_next().is_some() {}
        let service = service.clone();
        connections.spawn(async move {
            let answer = |request: http::Request<hyper::body::Incoming>| service.clone().call(request);
            let answer = hyper::service::service_fn(answer);
            // How a connection ends is its client's business.
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(io), answer)
                .await;
        });
    }
}

/// The service.
#[derive(Debug)]
struct Ads(Arc<Shared>);

type Responses<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(Response::new(begin::<Sotw>(self.0.clone(), request.into_inner())))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(Response::new(begin::<Delta>(self.0.clone(), request.into_inner())))
    }
}

/// A form of the protocol.
trait Form: Default + Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    fn node(request: &Self::Request) -> Option<&Node>;
    fn receive(&mut self, request: &Self::Request) -> Option<Answer>;
    fn next(&mut self, snapshot: &Snapshot) -> Option<Due<Self::Response>>;
}

impl Form for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn receive(&mut self, request: &Self::Request) -> Option<Answer> {
        Delta::receive(self, request)
    }

    fn next(&mut self, snapshot: &Snapshot) -> Option<Due<Self::Response>> {
        Delta::next(self, snapshot)
    }
}

impl Form for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn receive(&mut self, request: &Self::Request) -> Option<Answer> {
        Sotw::receive(self, request)
    }

    fn next(&mut self, snapshot: &Snapshot) -> Option<Due<Self::Response>> {
        Sotw::next(self, snapshot)
    }
}

/// Responses that wait for a client that does not read.
const QUEUE: usize = 8;

fn begin<F: Form>(shared: Arc<Shared>, requests: Streaming<F::Request>) -> Responses<F::Response> {
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    tokio::spawn(run::<F>(shared, requests, sender));
    Box::pin(futures_util::stream::poll_fn(move |context| receiver.poll_recv(context)))
}

async fn run<F: Form>(
    shared: Arc<Shared>,
    mut requests: Streaming<F::Request>,
    responses: mpsc::Sender<Result<F::Response, Status>>,
) {
    let mut changed = shared.changed.subscribe();
    let mut form = F::default();
    let mut node = String::new();
    loop {
        tokio::select! {
            request = requests.message() => {
                let Ok(Some(request)) = request else { return };
                if let Some(of) = F::node(&request) {
                    node.clone_from(&of.id);
                }
                if let Some(answer) = form.receive(&request) {
                    note(&shared, &node, answer);
                }
            }
            // The sender is the server's, which ends with its streams.
            _ = changed.changed() => {}
        }
        let Some(snapshot) = shared.snapshot(&node) else { continue };
        while let Some(due) = form.next(&snapshot) {
            let Due { kind, version, counts, held, response } = due;
            shared.write(&node, kind, |standing| {
                standing.sent = Some((version, Instant::now()));
                (standing.last, standing.resources) = (counts, held);
            });
            if responses.send(Ok(response)).await.is_err() {
                return;
            }
        }
    }
}

fn note(shared: &Shared, node: &str, answer: Answer) {
    match answer {
        Answer::Acked(kind) => shared.write(node, kind, |standing| {
            standing.acked = standing.sent.as_ref().map(|(version, _)| (version.clone(), Instant::now()));
            standing.nacked = None;
        }),
        Answer::Nacked(kind, reason) => shared.write(node, kind, |standing| standing.nacked = Some(reason)),
    }
}
