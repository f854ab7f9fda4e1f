//! The task of one stream: sends what the protocol wants sent, hands on what comes, reconnects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream;
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic_prost::ProstCodec;

use super::ttl::Ttls;
use super::{Backoff, Delta, Poll, Problem, Received, Rejected, ResourceType, Server, Sotw, Wanted, rest};
use crate::pb::envoy::config::core::v3::{ControlPlane, Node};
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};

const FIRST_NACK_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_NACK_PAUSE: Duration = Duration::from_secs(2);

/// Which form of the protocol is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Delta,
    StateOfTheWorld,
    /// No stream: the server is polled, for one type.
    Rest(Poll),
}

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All types (ADS).
    Aggregated,
    /// The type's own service.
    Only(ResourceType),
}

impl Scope {
    /// The gRPC method.
    ///
    /// # Errors
    /// A type that has no service of its own.
    fn method(self, protocol: Protocol) -> Option<&'static str> {
        use Protocol::{Delta, StateOfTheWorld as Whole};
        use ResourceType as T;
        Some(match (self, protocol) {
            (Self::Aggregated, Delta) => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
            }
            (Self::Aggregated, Whole) => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
            }
            (Self::Only(T::Cluster), Delta) => {
                "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters"
            }
            (Self::Only(T::Cluster), Whole) => {
                "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters"
            }
            (Self::Only(T::Endpoint), Delta) => {
                "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints"
            }
            (Self::Only(T::Endpoint), Whole) => {
                "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints"
            }
            (Self::Only(T::Listener), Delta) => {
                "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners"
            }
            (Self::Only(T::Listener), Whole) => {
                "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners"
            }
            (Self::Only(T::ScopedRoute), Delta) => {
                "/envoy.service.route.v3.ScopedRoutesDiscoveryService/DeltaScopedRoutes"
            }
            (Self::Only(T::ScopedRoute), Whole) => {
                "/envoy.service.route.v3.ScopedRoutesDiscoveryService/StreamScopedRoutes"
            }
            (Self::Only(T::Route), Delta) => "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
            (Self::Only(T::Route), Whole) => "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
            (Self::Only(T::VirtualHost), Delta) => {
                "/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts"
            }
            (Self::Only(T::Secret), Delta) => "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
            (Self::Only(T::Secret), Whole) => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
            (Self::Only(T::ExtensionConfig), Delta) => {
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs"
            }
            (Self::Only(T::ExtensionConfig), Whole) => {
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs"
            }
            (Self::Only(T::Runtime), Delta) => {
                "/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime"
            }
            (Self::Only(T::Runtime), Whole) => {
                "/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime"
            }
            (Self::Only(T::NameTable), _) | (Self::Only(T::VirtualHost), Whole) | (_, Protocol::Rest(_)) => {
                return None;
            }
        })
    }
}

/// What a stream is and whom it asks.
#[derive(Debug)]
pub struct StreamOptions {
    /// At least one; the first that answers is used, and the next when it fails.
    pub servers: Vec<Server>,
    pub protocol: Protocol,
    pub scope: Scope,
    pub node: Node,
    pub backoff: Backoff,
    /// A larger response ends the stream with an error that says so.
    pub max_response_bytes: usize,
    /// With several servers: one that says nothing for this long after the stream's first request is passed over.
    pub silence: Duration,
}

/// What the owner asks of a stream.
#[derive(Debug)]
pub enum Command {
    Subscribe(ResourceType, Wanted),
    /// The answer to the last [`Event::Received`]: which of its resources were not taken.
    Finish(Box<Received>, Vec<Rejected>),
}

/// What a stream tells its owner.
#[derive(Debug)]
pub enum Event {
    /// The server has answered. The second is what it calls itself (`control_plane.identifier`).
    Connected(Arc<str>, String),
    /// To be judged, and answered with [`Command::Finish`]; the next response waits for that.
    Received(Box<Received>),
    /// A TTL has run out: the resource is to be forgotten.
    Expired(ResourceType, String),
    /// The server broke the protocol.
    Problem(Problem),
    /// The stream ended, or could not be opened; the next attempt is on its way.
    Disconnected { server: Arc<str>, reason: String },
}

/// Takes what a stream has to tell.
pub type Deliver = Box<dyn Fn(Event) + Send + Sync>;

/// A running stream. It ends when dropped.
#[derive(Debug)]
pub struct Stream {
    commands: mpsc::UnboundedSender<Command>,
    task: AbortHandle,
}

impl Stream {
    /// Asks something of the stream.
    pub fn send(&self, command: Command) {
        // A task that ended has been dropped with its stream.
        let _ = self.commands.send(command);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a stream on the current runtime. What it has to tell goes to `deliver`, which must not block.
///
/// # Errors
/// When the type has no service of its own.
pub fn open(options: StreamOptions, deliver: Deliver) -> Result<Stream, String> {
    const NONE: &str = "this type has no service of its own; use ADS";
    let method = || options.scope.method(options.protocol).map(PathAndQuery::from_static).ok_or(NONE);
    let (commands, inbox) = mpsc::unbounded_channel();
    let machine_node = options.node.clone();
    let owner = Owner {
        commands: inbox,
        deliver,
        ttls: Ttls::default(),
        wanted: BTreeMap::new(),
        answered: false,
        waiting: false,
        nacks: 0,
        hold: None,
    };
    let task = match options.protocol {
        Protocol::Delta => {
            let method = method()?;
            tokio::spawn(run(options, method, owner, Delta::new(machine_node)))
        }
        Protocol::StateOfTheWorld => {
            let method = method()?;
            tokio::spawn(run(options, method, owner, Sotw::new(machine_node)))
        }
        Protocol::Rest(poll) => {
            let Scope::Only(kind) = options.scope else { return Err(NONE.to_owned()) };
            let what = (kind, rest::path(kind).ok_or(NONE)?, poll);
            tokio::spawn(rest::run(options, what, owner, Sotw::new(machine_node)))
        }
    };
    Ok(Stream { commands, task: task.abort_handle() })
}

/// The two forms of the protocol, for the task.
pub(super) trait Machine: Send + 'static {
    type Request: Message + Default + Send + Sync + 'static;
    type Response: Message + Default + Send + Sync + 'static;
    fn subscribe(&mut self, kind: ResourceType, wanted: Wanted);
    fn connected(&mut self);
    fn next_request(&mut self) -> Option<Self::Request>;
    fn receive(&mut self, response: Self::Response) -> Result<Received, Problem>;
    fn finish(&mut self, received: &Received, rejected: &[Rejected]);
    fn expired(&mut self, kind: ResourceType, name: &str);
    fn control_plane(response: &Self::Response) -> Option<&ControlPlane>;
}

macro_rules! machine {
    ($machine:ident, $request:ident, $response:ident) => {
        impl Machine for $machine {
            type Request = crate::pb::envoy::service::discovery::v3::$request;
            type Response = $response;
            fn subscribe(&mut self, kind: ResourceType, wanted: Wanted) {
                self.subscribe(kind, wanted);
            }
            fn connected(&mut self) {
                self.connected();
            }
            fn next_request(&mut self) -> Option<Self::Request> {
                self.next_request()
            }
            fn receive(&mut self, response: $response) -> Result<Received, Problem> {
                self.receive(response)
            }
            fn finish(&mut self, received: &Received, rejected: &[Rejected]) {
                self.finish(received, rejected);
            }
            fn expired(&mut self, kind: ResourceType, name: &str) {
                self.expired(kind, name);
            }
            fn control_plane(response: &$response) -> Option<&ControlPlane> {
                response.control_plane.as_ref()
            }
        }
    };
}

machine!(Delta, DeltaDiscoveryRequest, DeltaDiscoveryResponse);
machine!(Sotw, DiscoveryRequest, DiscoveryResponse);

/// The owner's side of the task.
pub(super) struct Owner {
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    deliver: Deliver,
    ttls: Ttls,
    wanted: BTreeMap<ResourceType, Wanted>,
    /// The server has said something on this stream.
    answered: bool,
    /// For the owner's judgement.
    pub(super) waiting: bool,
    /// Responses in a row that were not taken whole.
    nacks: u32,
    /// Nothing is sent before.
    pub(super) hold: Option<Instant>,
}

/// Nobody owns the stream any more.
pub(super) struct Gone;

impl Owner {
    pub(super) fn tell(&self, event: Event) {
        (self.deliver)(event);
    }

    pub(super) fn take<M: Machine>(&mut self, command: Option<Command>, machine: &mut M) -> Result<(), Gone> {
        match command {
            None => return Err(Gone),
            Some(Command::Subscribe(kind, wanted)) => {
                self.wanted.insert(kind, wanted.clone());
                machine.subscribe(kind, wanted);
            }
            Some(Command::Finish(received, rejected)) => {
                machine.finish(&received, &rejected);
                self.waiting = false;
                self.nacks = if rejected.is_empty() { 0 } else { self.nacks.saturating_add(1) };
                self.hold = nack_pause(self.nacks).map(|pause| Instant::now() + pause);
            }
        }
        Ok(())
    }

    pub(super) fn asks_for_something(&self) -> bool {
        self.wanted.values().any(|wanted| !wanted.nothing())
    }

    fn expire<M: Machine>(&mut self, machine: &mut M) {
        for (kind, name) in self.ttls.expired(Instant::now()) {
            machine.expired(kind, &name);
            self.tell(Event::Expired(kind, name));
        }
    }
}

/// How long the answer to one more bad response in a row is held back. Some servers answer a NACK at once with the
/// same bad response, again and again.
fn nack_pause(nacks: u32) -> Option<Duration> {
    let doublings = nacks.checked_sub(2)?;
    Some(FIRST_NACK_PAUSE.saturating_mul(1 << doublings.min(8)).min(LONGEST_NACK_PAUSE))
}

/// Returns when it is `at`; never without one.
async fn time(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn run<M: Machine>(mut options: StreamOptions, method: PathAndQuery, mut owner: Owner, mut machine: M) {
    let mut current = 0;
    loop {
        let server = options.servers[current].clone();
        owner.answered = false;
        let reason = match session(&options, &server, &method, &mut owner, &mut machine).await {
            Ok(reason) => reason,
            Err(Gone) => return,
        };
        owner.tell(Event::Disconnected { server: server.name.clone(), reason });
        if owner.answered {
            options.backoff.succeeded();
        } else {
            current = (current + 1) % options.servers.len();
        }
        let pause = tokio::time::sleep(options.backoff.failed(fastrand::u64(..)));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                () = time(owner.ttls.next()) => owner.expire(&mut machine),
                command = owner.commands.recv() => {
                    if owner.take(command, &mut machine).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// One stream from its first request to its end; why it ended.
async fn session<M: Machine>(
    options: &StreamOptions,
    server: &Server,
    method: &PathAndQuery,
    owner: &mut Owner,
    machine: &mut M,
) -> Result<String, Gone> {
    machine.connected();
    (owner.nacks, owner.hold, owner.waiting) = (0, None, false);
    // A stream without a request makes some servers wait, and others give up.
    while !owner.asks_for_something() {
        let command = owner.commands.recv().await;
        owner.take(command, machine)?;
    }
    let (requests, outgoing) = mpsc::unbounded_channel();
    let outgoing = stream::unfold(outgoing, |mut from: mpsc::UnboundedReceiver<M::Request>| async move {
        from.recv().await.map(|request| (request, from))
    });
    let mut request = tonic::Request::new(outgoing);
    if let Err(reason) = add_metadata(request.metadata_mut(), &*server.credentials) {
        return Ok(reason);
    }
    let mut client = tonic::client::Grpc::new(server.channel.clone())
        .max_decoding_message_size(options.max_response_bytes);
    let opening = async move {
        client.ready().await.map_err(|error| tonic::Status::unavailable(describe(&error)))?;
        let codec = ProstCodec::<M::Request, M::Response>::default();
        client.streaming(request, method.clone(), codec).await
    };
    tokio::pin!(opening);
    let mut incoming = None;
    let silence = tokio::time::sleep(options.silence);
    tokio::pin!(silence);
    let several = options.servers.len() > 1;
    loop {
        if owner.hold.is_some_and(|until| until <= Instant::now()) {
            owner.hold = None;
        }
        while owner.hold.is_none()
            && let Some(request) = machine.next_request()
        {
            if requests.send(request).is_err() {
                break;
            }
        }
        let connecting = incoming.is_none();
        let next = async {
            match &mut incoming {
                Some(incoming) => next_message(incoming).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            opened = &mut opening, if connecting => match opened {
                Ok(response) => incoming = Some(response.into_inner()),
                Err(status) => return Ok(reason_of(&status)),
            },
            message = next, if !connecting && !owner.waiting => match message {
                Ok(Some(message)) => heard(server, message, owner, machine),
                Ok(None) => return Ok("the server ended the stream".to_owned()),
                Err(status) => return Ok(reason_of(&status)),
            },
            () = &mut silence, if several && !owner.answered => {
                return Ok(format!("no answer within {} s", options.silence.as_secs()));
            }
            () = time(owner.ttls.next()) => owner.expire(machine),
            () = time(owner.hold) => {}
            command = owner.commands.recv() => owner.take(command, machine)?,
        }
    }
}

async fn next_message<R>(incoming: &mut tonic::Streaming<R>) -> Result<Option<R>, tonic::Status> {
    incoming.message().await
}

fn heard<M: Machine>(server: &Server, message: M::Response, owner: &mut Owner, machine: &mut M) {
    if !std::mem::replace(&mut owner.answered, true) {
        let identifier = M::control_plane(&message).map(|plane| plane.identifier.clone());
        owner.tell(Event::Connected(server.name.clone(), identifier.unwrap_or_default()));
    }
    match machine.receive(message) {
        Ok(received) => {
            owner.ttls.note(&received, Instant::now());
            owner.waiting = true;
            owner.tell(Event::Received(Box::new(received)));
        }
        Err(problem) => owner.tell(Event::Problem(problem)),
    }
}

pub(super) fn add_metadata(
    metadata: &mut tonic::metadata::MetadataMap,
    credentials: &dyn super::Credentials,
) -> Result<(), String> {
    for (key, value) in credentials.metadata()? {
        let name: MetadataKey<Ascii> =
            key.parse().map_err(|_| format!("{key:?} cannot be the name of a gRPC header"))?;
        let value: MetadataValue<Ascii> =
            value.parse().map_err(|_| format!("the value of {key} cannot stand in a gRPC header"))?;
        metadata.append(name, value);
    }
    Ok(())
}

fn reason_of(status: &tonic::Status) -> String {
    let cause = std::error::Error::source(status).map(|cause| format!(" ({})", describe(cause)));
    format!("{}: {}{}", status.code(), status.message(), cause.unwrap_or_default())
}

/// An error with its causes.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
