//! Bytes of a resource to its compiled form. Equal bytes are compiled and kept once, however many sidecars have
//! them, and for as long as one has.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use mesh_xds::client::ResourceType;
use mesh_xds::istio::nds::NameTable as NameTableProto;
use mesh_xds::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use mesh_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::Listener as ListenerProto;
use mesh_xds::pb::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration, VirtualHost};
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret as SecretProto;
use mesh_xds::pb::envoy::service::runtime::v3::Runtime as RuntimeProto;
use mesh_xds::prost::Message;

use crate::model::Str;
use crate::model::cluster::{Assignment, Cluster};
use crate::model::listener::Listener;
use crate::model::name_table::NameTable;
use crate::model::route::RouteTable;
use crate::model::scopes::{Scope, ScopeRoutes};
use crate::model::source::Need;
use crate::model::tls::Secret;
use crate::runtime::Values;
use crate::telemetry::log_file::LogFiles;
use crate::telemetry::stats::Store;
use crate::xds;

/// A compiled resource.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) kind: ResourceType,
    /// The message, for `/config_dump`.
    pub(super) body: Box<[u8]>,
    pub(super) value: Value,
    pub(super) needs: Arc<[Need]>,
    /// Names of the clusters that it sends to.
    pub(super) clusters: Arc<[Str]>,
}

#[derive(Debug)]
pub(super) enum Value {
    Cluster(Arc<Cluster>),
    Endpoints(Arc<Assignment>),
    Listener(Arc<Listener>),
    Routes(Arc<RouteTable>),
    /// One of a route table, which it is compiled with.
    VirtualHost,
    Secret(Arc<Secret>),
    /// A listener with filters that come apart from it.
    Template(Arc<ListenerProto>, Arc<[xds::Discovered]>),
    /// A filter's configuration.
    Extension(Arc<TypedExtensionConfig>),
    NameTable(Arc<NameTable>),
    Scope(Scope),
    Runtime(Values),
}

/// Compiles for all sidecars of the process.
#[derive(Debug)]
pub struct Compiler {
    stats: Arc<Store>,
    log_files: Arc<LogFiles>,
    known: Mutex<HashMap<(ResourceType, u64), Weak<Compiled>, ahash::RandomState>>,
    hasher: ahash::RandomState,
}

impl Compiler {
    pub fn new(stats: Arc<Store>, log_files: Arc<LogFiles>) -> Self {
        Self { stats, log_files, known: Mutex::default(), hasher: ahash::RandomState::new() }
    }

    pub(super) fn stats(&self) -> &Arc<Store> {
        &self.stats
    }

    /// The compiled form of `body`.
    ///
    /// # Errors
    /// Why it cannot be honoured: the field and the remedy.
    pub(super) fn compile(&self, kind: ResourceType, body: &[u8]) -> Result<Arc<Compiled>, String> {
        let key = (kind, self.hasher.hash_one(body));
        let found = self.known().get(&key).and_then(Weak::upgrade);
        if let Some(same) = found.filter(|same| *same.body == *body) {
            return Ok(same);
        }
        let compiled = Arc::new(self.fresh(kind, body)?);
        let mut known = self.known();
        if known.len() == known.capacity() {
            // What nobody holds any more leaves before room is made.
            known.retain(|_, held| held.strong_count() > 0);
        }
        known.insert(key, Arc::downgrade(&compiled));
        Ok(compiled)
    }

    /// A listener whose filters have been filled in.
    pub(super) fn compile_listener(&self, proto: &ListenerProto) -> Result<Arc<Compiled>, String> {
        self.compile(ResourceType::Listener, &proto.encode_to_vec())
    }

    /// A route table with the virtual hosts that came apart from it.
    pub(super) fn compile_routes(
        &self,
        table: &Compiled,
        hosts: impl Iterator<Item = Arc<Compiled>>,
    ) -> Result<Arc<Compiled>, String> {
        let mut proto = decode::<RouteConfiguration>(&table.body)?;
        for host in hosts {
            proto.virtual_hosts.push(decode::<VirtualHost>(&host.body)?);
        }
        self.compile(ResourceType::Route, &proto.encode_to_vec())
    }

    fn known(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<(ResourceType, u64), Weak<Compiled>, ahash::RandomState>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self, kind: ResourceType, body: &[u8]) -> Result<Compiled, String> {
        let mut context = xds::Context {
            stats: &self.stats,
            log_files: &self.log_files,
            secrets: HashMap::new(),
            clusters: None,
            needs: RefCell::default(),
            ignored: xds::Ignored::default(),
        };
        let mut clusters = Vec::new();
        let value = match kind {
            ResourceType::Cluster => {
                let proto = decode::<ClusterProto>(body)?;
                Value::Cluster(Arc::new(told(xds::cluster("cluster", &proto, &mut context))?))
            }
            ResourceType::Endpoint => {
                let proto = decode::<ClusterLoadAssignment>(body)?;
                Value::Endpoints(Arc::new(told(xds::assignment("load_assignment", &proto, &mut context))?))
            }
            ResourceType::Listener => {
                let proto = decode::<ListenerProto>(body)?;
                let filters = told(xds::discovered("listener", &proto, &mut context))?;
                if !filters.is_empty() {
                    let value = Value::Template(Arc::new(proto), filters.into());
                    let needs = context.needs.take().into();
                    return Ok(Compiled { kind, body: body.into(), value, needs, clusters: [].into() });
                }
                let listener = told(xds::listener("listener", &proto, &mut context))?;
                listener.for_each_cluster(&mut |name| clusters.push(name.clone()));
                Value::Listener(Arc::new(listener))
            }
            ResourceType::Route => {
                let proto = decode::<RouteConfiguration>(body)?;
                let table = told(xds::table("route_config", &proto, &mut context))?;
                table.for_each_cluster(&mut |name| clusters.push(name.clone()));
                Value::Routes(Arc::new(table))
            }
            ResourceType::VirtualHost => {
                let proto = decode::<VirtualHost>(body)?;
                told(xds::virtual_host("virtual_host", &proto, &mut context))?;
                Value::VirtualHost
            }
            ResourceType::ScopedRoute => {
                let proto = decode::<ScopedRouteConfiguration>(body)?;
                let scope = told(xds::scope("scoped_route", &proto, &mut context))?;
                if let ScopeRoutes::Inline(table) = &scope.routes {
                    table.for_each_cluster(&mut |name| clusters.push(name.clone()));
                }
                Value::Scope(scope)
            }
            ResourceType::Secret => {
                let proto = decode::<SecretProto>(body)?;
                Value::Secret(Arc::new(told(xds::secret("secret", &proto, &mut context))?))
            }
            ResourceType::ExtensionConfig => {
                let proto = decode::<TypedExtensionConfig>(body)?;
                told(xds::extension("extension_config", &proto, &mut context))?;
                Value::Extension(Arc::new(proto))
            }
            ResourceType::Runtime => {
                let proto = decode::<RuntimeProto>(body)?;
                Value::Runtime(told(xds::runtime("runtime", &proto, &mut context))?)
            }
            ResourceType::NameTable => {
                let proto = decode::<NameTableProto>(body)?;
                Value::NameTable(Arc::new(told(xds::name_table("name_table", &proto))?))
            }
        };
        clusters.sort_unstable();
        clusters.dedup();
        let needs: Arc<[Need]> = context.needs.take().into();
        for field in &context.ignored.paths {
            tracing::debug!(%field, "this field has no effect in mesh-node");
        }
        Ok(Compiled { kind, body: body.into(), value, needs, clusters: clusters.into() })
    }
}

fn decode<T: Message + Default>(body: &[u8]) -> Result<T, String> {
    T::decode(body).map_err(|error| format!("cannot be read: {error}"))
}

fn told<T>(result: Result<T, xds::XdsError>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}
