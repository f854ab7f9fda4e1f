//! Where resources come from: opens streams and watches files as subscriptions ask for them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_xds::client::{
    Backoff, Command, Connect, Credentials, Event, Poll, Protocol, Received, Rejected, ResourceType, Scope,
    Server, ServerOptions, Stream, StreamOptions, Wanted, open, read_file,
};
use mesh_xds::pb::envoy::config::core::v3::Node;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::connect::ViaCluster;
use super::direct::{Direct, Shown};
use super::{Identity, Watch};
use crate::cluster::ClusterManager;
use crate::model::source::{GrpcServer, GrpcSource, GrpcTarget, Source};

/// Envoy's back-off of xDS streams, with its jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A control plane that is reachable answers PINGs.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// More than a response of everything that a very large mesh has; beyond it the server is at fault. Servers may have
/// a limit of their own (`max_receive_message_length`).
const MAX_RESPONSE_BYTES: usize = 64 << 20;
/// With several servers, how long one may stay silent.
const SILENCE: Duration = Duration::from_secs(15);

/// Connections to servers, shared by all sidecars of the process.
#[derive(Debug)]
pub struct Servers {
    clusters: Arc<ClusterManager>,
    /// With whether it is asked by REST.
    open: Mutex<HashMap<(GrpcServer, bool), Server>>,
}

impl Servers {
    /// Servers are reached through these clusters.
    pub fn new(clusters: Arc<ClusterManager>) -> Self {
        Self { clusters, open: Mutex::default() }
    }

    pub(super) fn get(&self, wanted: &GrpcServer, rest: bool) -> Result<Server, String> {
        let mut servers = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (wanted.clone(), rest);
        if let Some(server) = servers.get(&key) {
            return Ok(server.clone());
        }
        let (name, via): (_, Arc<dyn Connect>) = match &wanted.target {
            GrpcTarget::Cluster(name) => {
                let via = ViaCluster { clusters: self.clusters.clone(), name: name.clone(), http1: rest };
                (name.to_string(), Arc::new(via))
            }
            GrpcTarget::Address { host, port, tls } => {
                let via = Direct { host: host.clone(), port: *port, tls: tls.clone() };
                (format!("{host}:{port}"), Arc::new(via))
            }
        };
        let options = ServerOptions {
            name,
            authority: wanted.authority.to_string(),
            keepalive_interval: KEEPALIVE.0,
            keepalive_timeout: KEEPALIVE.1,
        };
        let server = Server::new(&options, via)?;
        let shown = Shown { headers: wanted.metadata.clone(), tokens: wanted.tokens.clone() };
        let server = server.with_credentials(Arc::new(shown));
        servers.insert(key, server.clone());
        Ok(server)
    }
}

/// A stream or file: of all types for ADS, else of one.
pub(super) type FeedKey = (Source, Option<ResourceType>);

/// What a feed brings.
#[derive(Debug)]
pub(super) enum Brought {
    Stream(Event),
    /// A file was read, or cannot be.
    File(Result<Box<Received>, String>),
}

/// All feeds of one sidecar.
#[derive(Debug)]
pub(super) struct Feeds {
    servers: Arc<Servers>,
    node: Node,
    ads: Option<GrpcSource>,
    credentials: Option<Arc<dyn Credentials>>,
    outbox: mpsc::UnboundedSender<(FeedKey, Brought)>,
    open: BTreeMap<FeedKey, Feed>,
    wanted: BTreeMap<(Source, ResourceType), Wanted>,
}

#[derive(Debug)]
enum Feed {
    Stream(Stream),
    File(AbortHandle),
}

impl Drop for Feed {
    fn drop(&mut self) {
        if let Self::File(task) = self {
            task.abort();
        }
    }
}

impl Feeds {
    pub(super) fn new(
        servers: Arc<Servers>,
        identity: &Identity,
        outbox: mpsc::UnboundedSender<(FeedKey, Brought)>,
    ) -> Self {
        let (open, wanted) = (BTreeMap::new(), BTreeMap::new());
        let (ads, credentials) = (identity.dynamic.ads.clone(), identity.credentials.clone());
        Self { servers, node: identity.node.clone(), ads, credentials, outbox, open, wanted }
    }

    /// From now on this is wanted. What cannot be subscribed to is returned with the reason.
    pub(super) fn want(&mut self, wanted: BTreeMap<(Source, ResourceType), Wanted>) -> Vec<String> {
        let mut problems = Vec::new();
        for ((source, kind), of_type) in &wanted {
            if self.wanted.get(&(source.clone(), *kind)) == Some(of_type) {
                continue;
            }
            let key = key(source, *kind);
            // A file is read again for names that did not count when it was read last.
            if !matches!(self.open.get(&key), Some(Feed::Stream(_))) {
                match self.start(&key, *kind) {
                    Ok(feed) => drop(self.open.insert(key.clone(), feed)),
                    Err(problem) => problems.push(format!("{kind}: {problem}")),
                }
            }
            if let Some(Feed::Stream(stream)) = self.open.get(&key) {
                stream.send(Command::Subscribe(*kind, of_type.clone()));
            }
        }
        for (source, kind) in self.wanted.keys().filter(|key| !wanted.contains_key(*key)) {
            let key = key(source, *kind);
            match self.open.get(&key) {
                // The stream of ADS stays for the other types.
                Some(Feed::Stream(stream)) if *source == Source::Ads => {
                    stream.send(Command::Subscribe(*kind, Wanted::default()));
                }
                _ => drop(self.open.remove(&key)),
            }
        }
        self.wanted = wanted;
        problems
    }

    fn start(&self, key: &FeedKey, kind: ResourceType) -> Result<Feed, String> {
        match (&key.0, &self.ads) {
            (Source::Ads, Some(ads)) => self.stream(key, ads, Scope::Aggregated).map(Feed::Stream),
            (Source::Ads, None) => Err("the bootstrap has no ads_config".to_owned()),
            (Source::Grpc(source), _) => self.stream(key, source, Scope::Only(kind)).map(Feed::Stream),
            (Source::File { path, watched }, _) => self.file(key, kind, path, watched.as_deref()),
        }
    }

    fn stream(&self, key: &FeedKey, source: &GrpcSource, scope: Scope) -> Result<Stream, String> {
        let get = |server: &GrpcServer| {
            let open = self.servers.get(server, source.poll.is_some())?;
            Ok(match (&self.credentials, scope) {
                (Some(credentials), Scope::Aggregated) => open.showing_also(credentials.clone()),
                _ => open,
            })
        };
        let servers: Result<Vec<Server>, String> = source.servers.iter().map(get).collect();
        let limits = source.servers.iter().filter_map(|server| server.max_message_bytes);
        let limit = limits.max().and_then(|bytes| usize::try_from(bytes).ok());
        let options = StreamOptions {
            servers: servers?,
            protocol: match source.poll {
                Some((every, timeout)) => Protocol::Rest(Poll { every, timeout }),
                None if source.delta => Protocol::Delta,
                None => Protocol::StateOfTheWorld,
            },
            scope,
            node: self.node.clone(),
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            max_response_bytes: limit.unwrap_or(MAX_RESPONSE_BYTES),
            silence: SILENCE,
        };
        let (outbox, key) = (self.outbox.clone(), key.clone());
        // A sidecar that is gone has dropped its streams.
        open(options, Box::new(move |event| drop(outbox.send((key.clone(), Brought::Stream(event))))))
    }

    fn file(
        &self,
        key: &FeedKey,
        kind: ResourceType,
        path: &Path,
        watched: Option<&Path>,
    ) -> Result<Feed, String> {
        let watch = match watched {
            Some(folder) => Watch::folder(folder),
            None => Watch::new(path),
        };
        let watch = watch.map_err(|error| format!("{}: cannot be watched: {error}", path.display()))?;
        let task = follow(path.to_owned(), kind, watch, (self.outbox.clone(), key.clone()));
        Ok(Feed::File(tokio::spawn(task).abort_handle()))
    }

    /// Answers a response of a stream.
    pub(super) fn finish(&self, key: &FeedKey, received: Box<Received>, rejected: Vec<Rejected>) {
        if let Some(Feed::Stream(stream)) = self.open.get(key) {
            stream.send(Command::Finish(received, rejected));
        }
    }

    /// Is this name subscribed to at that source?
    pub(super) fn wants(&self, source: &Source, kind: ResourceType, name: &str) -> bool {
        match self.wanted.get(&(source.clone(), kind)) {
            Some(Wanted::All) => true,
            Some(Wanted::Names(names)) => names.contains(name),
            None => false,
        }
    }
}

fn key(source: &Source, kind: ResourceType) -> FeedKey {
    (source.clone(), (*source != Source::Ads).then_some(kind))
}

async fn follow(
    path: PathBuf,
    kind: ResourceType,
    watch: Watch,
    (outbox, key): (mpsc::UnboundedSender<(FeedKey, Brought)>, FeedKey),
) {
    loop {
        let read = read_file(&path, kind).map(Box::new).map_err(|error| error.to_string());
        if outbox.send((key.clone(), Brought::File(read))).is_err() {
            return;
        }
        watch.changed().await;
    }
}
