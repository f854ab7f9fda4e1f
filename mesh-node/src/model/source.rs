//! Where resources that come apart from the configuration are had from, and which ones a resource needs.

use std::fmt;
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
    /// `api_config_source`: of gRPC, and of REST.
    Grpc(GrpcSource),
}

/// A gRPC stream (`core.v3.ApiConfigSource`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrpcSource {
    /// The incremental protocol.
    pub delta: bool,
    /// REST in place of gRPC: how long to wait between requests, and for each.
    pub poll: Option<(Duration, Duration)>,
    /// The first that answers is used.
    pub servers: Vec<GrpcServer>,
}

/// A server (`core.v3.GrpcService`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrpcServer {
    pub target: GrpcTarget,
    /// `:authority`; Envoy's default is the name of the cluster.
    pub authority: Str,
    /// `initial_metadata`: header names and values.
    pub metadata: Vec<(String, String)>,
    /// `google_grpc.call_credentials`
    pub tokens: Vec<Token>,
    /// `envoy_grpc.max_receive_message_length`
    pub max_message_bytes: Option<u32>,
}

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GrpcTarget {
    /// `envoy_grpc`: through a static cluster.
    Cluster(Str),
    /// `google_grpc`: by name, from the node.
    Address { host: Str, port: u16, tls: Option<ServerTls> },
}

/// `google_grpc.channel_credentials.ssl_credentials`. Files are read for each connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerTls {
    pub server_name: Str,
    pub roots: Data,
    /// Certificate chain and private key.
    pub identity: Option<(Data, Data)>,
}

/// A header that shows who asks. Read for each stream, so that a file that changes is taken into account.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// Lower case.
    pub header: String,
    pub prefix: String,
    pub secret: Data,
}

/// `core.v3.DataSource`, not read yet.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Data {
    File(PathBuf),
    Inline(Box<[u8]>),
}

impl Data {
    /// # Errors
    /// The file and why it cannot be read.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::Inline(bytes) => Ok(bytes.to_vec()),
            Self::File(file) => {
                std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
            }
        }
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => f.debug_tuple("File").field(file).finish(),
            // It may be a key.
            Self::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
        }
    }
}

/// The kinds of resources that others name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NeedKind {
    Endpoints,
    Routes,
    Secret,
    /// The configuration of a filter (ECDS).
    Extension,
    /// All scopes of scoped routes.
    Scopes,
    /// A layer of the runtime (RTDS).
    Runtime,
    /// More virtual hosts of a route table (VHDS): those whose names begin with the table's.
    VirtualHosts,
}

/// A resource that another one names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Need {
    pub kind: NeedKind,
    pub name: Str,
    /// What its statistics are named after, such as `http.PREFIX.rds.NAME`.
    pub scope: Str,
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
    /// Layers of the runtime.
    pub runtime: Vec<Need>,
    /// Istio's name table is asked for (metadata `DNS_CAPTURE` of the node).
    pub name_table: bool,
    /// `cluster_manager.local_cluster_name`: the static cluster that is this node's own.
    pub local_cluster: Option<Str>,
}
