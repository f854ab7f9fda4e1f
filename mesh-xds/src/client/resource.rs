//! What the two forms of the protocol share: resource types, resources, subscriptions.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use super::shared;
use crate::pb::google::protobuf::Any;
use crate::pb::google::rpc::Status;

/// The kinds of resources, in the order in which they are asked for: what others refer to comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    Cluster,
    Endpoint,
    Listener,
    ScopedRoute,
    Route,
    VirtualHost,
    Secret,
    ExtensionConfig,
    NameTable,
    Runtime,
}

impl ResourceType {
    pub const ALL: [Self; 10] = [
        Self::Cluster,
        Self::Endpoint,
        Self::Listener,
        Self::ScopedRoute,
        Self::Route,
        Self::VirtualHost,
        Self::Secret,
        Self::ExtensionConfig,
        Self::NameTable,
        Self::Runtime,
    ];

    /// The type URL of its messages.
    pub fn url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::ScopedRoute => "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::VirtualHost => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::ExtensionConfig => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            Self::NameTable => "type.googleapis.com/istio.networking.nds.v1.NameTable",
            Self::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
        }
    }

    /// The type with this URL.
    pub fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// Short, for logs: `CDS`.
    pub fn short(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoint => "EDS",
            Self::Listener => "LDS",
            Self::ScopedRoute => "SRDS",
            Self::Route => "RDS",
            Self::VirtualHost => "VHDS",
            Self::Secret => "SDS",
            Self::ExtensionConfig => "ECDS",
            Self::NameTable => "NDS",
            Self::Runtime => "RTDS",
        }
    }

    /// State of the world: does a response hold all resources of the type, so that one that is missing is
    /// removed? ("Resource deletions" of the xDS protocol: LDS and CDS; Envoy does so with scopes too.)
    pub fn is_whole(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener | Self::ScopedRoute)
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// What is subscribed to of one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Whatever the server has for this node.
    All,
    /// Cheap to copy: every layer of a subscription holds the same set.
    Names(Arc<BTreeSet<Arc<str>>>),
}

impl Default for Wanted {
    fn default() -> Self {
        Self::Names(Arc::default())
    }
}

impl<'a> FromIterator<&'a str> for Wanted {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        Self::Names(Arc::new(names.into_iter().map(shared).collect()))
    }
}

impl Wanted {
    pub(super) fn nothing(&self) -> bool {
        matches!(self, Self::Names(names) if names.is_empty())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.contains(name),
        }
    }

    /// The names of a subscription request; none for a wildcard.
    pub(super) fn names(&self) -> Vec<String> {
        match self {
            Self::All => Vec::new(),
            Self::Names(names) => names.iter().map(ToString::to_string).collect(),
        }
    }
}

/// One resource of a response.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    pub name: String,
    /// Its own version; empty with state of the world, and with servers that give none.
    pub version: String,
    /// The encoded message.
    pub body: Vec<u8>,
    /// It is to be forgotten unless it is sent again within that time.
    pub ttl: Option<Duration>,
}

/// A response, read but not yet judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    pub kind: ResourceType,
    /// `version_info` or `system_version_info`.
    pub version: String,
    pub nonce: String,
    pub resources: Vec<Resource>,
    /// Names of resources that are gone.
    pub removed: Vec<String>,
    /// Resources that cannot even be read.
    pub unreadable: Vec<Rejected>,
    /// Resources that the server says are as before (TTL heartbeats), with their new time.
    pub heartbeats: Vec<(String, Duration)>,
}

/// A resource that is not taken, and why: the name of the field and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub name: String,
    pub reason: String,
}

/// A response that breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("response of type {0:?}, which is not subscribed to; ignored")]
    NotSubscribed(String),
    #[error("{kind}: nonce {nonce:?} was used before on this stream; the response is rejected")]
    RepeatedNonce { kind: ResourceType, nonce: String },
}

/// The error of a NACK: every rejected resource with its reason.
pub(super) fn error_detail(rejected: &[Rejected]) -> Option<Status> {
    if rejected.is_empty() {
        return None;
    }
    let lines: Vec<String> = rejected.iter().map(|r| format!("{}: {}", r.name, r.reason)).collect();
    Some(invalid(lines.join("\n")))
}

/// `INVALID_ARGUMENT`, as Envoy answers.
pub(super) fn invalid(message: String) -> Status {
    Status { code: 3, message, details: Vec::new() }
}

/// The message of an `Any` that must be of this type.
pub(super) fn body_of(kind: ResourceType, any: Any) -> Result<Vec<u8>, String> {
    let of = |url: &str| url.rsplit('/').next().map(str::to_owned);
    if of(&any.type_url) == of(kind.url()) {
        Ok(any.value)
    } else {
        Err(format!("is of type {:?}, not {}", any.type_url, kind.url()))
    }
}

/// The name inside a resource. In every type that has one it is field 1.
pub(super) fn name_in(kind: ResourceType, body: &[u8]) -> Result<String, String> {
    #[derive(Clone, PartialEq, Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    if kind == ResourceType::NameTable {
        return Ok(String::new());
    }
    Named::decode(body).map(|named| named.name).map_err(|error| format!("cannot be read: {error}"))
}

/// A TTL that counts.
pub(super) fn ttl_of(ttl: Option<crate::pb::google::protobuf::Duration>) -> Option<Duration> {
    let ttl = ttl?;
    Some(Duration::new(u64::try_from(ttl.seconds).ok()?, u32::try_from(ttl.nanos).ok()?))
        .filter(|ttl| !ttl.is_zero())
}
