//! Where resources that come apart from the configuration are had from, and which ones a resource needs.

use std::path::PathBuf;
use std::time::Duration;

use super::Str;

/// `core.v3.ConfigSource`. Equal ones are one subscription.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The stream of `dynamic_resources.ads_config`.
    Ads,
    /// `path_config_source`.
    File {
        path: PathBuf,
        /// `watched_directory`: the file is read when something in this folder is renamed.
        watched: Option<PathBuf>,
    },
    /// `api_config_source`.
    Grpc(GrpcSource),
}

/// A gRPC stream (`core.v3.ApiConfigSource`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrpcSource {
    /// The incremental protocol.
    pub delta: bool,
    /// The first that answers is used.
    pub servers: Vec<GrpcServer>,
}

/// A server (`core.v3.GrpcService`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrpcServer {
    pub cluster: Str,
    /// `:authority`; Envoy's default is the name of the cluster.
    pub authority: Str,
    /// `initial_metadata`: header names and values.
    pub metadata: Vec<(String, String)>,
}

/// The kinds of resources that others name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NeedKind {
    Endpoints,
    Routes,
    Secret,
    /// All scopes of scoped routes.
    Scopes,
}

/// A resource that another one names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Need {
    pub kind: NeedKind,
    pub name: Str,
    pub source: Source,
    /// `initial_fetch_timeout`: without it for so long, its user goes into service all the same. `None` waits
    /// for ever. Envoy's default is 15 s.
    pub patience: Option<Duration>,
    /// Of scopes: where the tables that they name come from, and the patience with those.
    pub tables: Option<Box<(Source, Option<Duration>)>>,
}

/// `dynamic_resources` of the bootstrap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dynamic {
    pub ads: Option<GrpcSource>,
    /// With the time that the start waits for it.
    pub clusters: Option<(Source, Option<Duration>)>,
    pub listeners: Option<(Source, Option<Duration>)>,
}
