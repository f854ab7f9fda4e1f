//! Envoy's messages to the compiled configuration: one converter per resource type.
//!
//! A converter is a pure function of its message, but for the files that data sources name and the statistics
//! handles that it asks for. It never publishes anything, and never skips what it does not understand: a
//! field that would change behaviour refuses its resource, by its full path.

#![allow(deprecated, reason = "configurations use deprecated fields, and Envoy still honours them")]

mod access_log;
mod bootstrap;
mod cluster;
mod common;
mod config_source;
mod discovery;
mod endpoint;
mod error;
mod format;
mod forward_proxy;
mod grpc_service;
mod hash_policy;
mod headers;
mod health_check;
mod http_connection_manager;
mod http_filters;
mod http_options;
mod istio;
mod lb_extension;
mod lb_policy;
mod listener;
mod local_replies;
mod matcher;
mod metadata;
mod name_table;
mod network_filters;
mod outlier;
mod path_template;
mod rbac;
mod route;
mod route_action;
mod runtime;
mod scoped_routes;
mod stats_config;
mod subset;
mod support;
mod supported;
mod supported_filters;
mod tcp_proxy;
mod tls;
mod tracing;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;

use crate::model::source::Need;
use crate::telemetry::log_file::LogFiles;
use crate::telemetry::stats::Store;

pub use error::XdsError;
pub use format::parse as parse_format;
pub use support::Ignored;

/// What converters may look at beside their message.
pub struct Context<'a> {
    pub stats: &'a Store,
    pub log_files: &'a LogFiles,
    /// Static secrets by name.
    pub secrets: HashMap<String, Secret>,
    /// Names of all clusters: static routes and TCP proxies may name no other. `None` where clusters come and
    /// go on their own.
    pub clusters: Option<BTreeSet<String>>,
    /// Other resources that those compiled so far name; converters add to it.
    pub needs: RefCell<Vec<Need>>,
    /// Fields that were given and change nothing; converters add to it.
    pub ignored: Ignored,
}

pub use bootstrap::{Bootstrap, convert as bootstrap};
pub use cluster::convert as cluster;
pub use discovery::{Discovered, allowed, discovered, extension, filled};
pub use endpoint::assignment;
pub use listener::convert as listener;
pub use name_table::convert as name_table;
pub use route::{table, virtual_host_apart as virtual_host};
pub use runtime::served as runtime;
pub use scoped_routes::scope;
pub use tls::secret;

impl Context<'_> {
    /// Envoy refuses a static route or `tcp_proxy` to a cluster that does not exist.
    fn known_cluster(&self, at: error::At<'_>, cluster: &str) -> Result<(), XdsError> {
        if self.clusters.as_ref().is_none_or(|known| known.contains(cluster)) {
            return Ok(());
        }
        Err(XdsError::MissingCluster { path: at.to_string(), cluster: cluster.to_owned() })
    }
}

#[cfg(test)]
mod istio_fields;
#[cfg(test)]
mod recordings;
#[cfg(test)]
mod tests;
