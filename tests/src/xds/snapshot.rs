//! The resources of one node at one time.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow};
use mesh_xds::client::ResourceType;
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use mesh_xds::pb::google::protobuf::Any;
use mesh_xds::prost::{Message, Name};
use serde_json::Value;

/// A resource, and the version in which it last changed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Resource {
    pub(super) version: String,
    pub(super) body: Any,
}

/// What one node is to have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    version: String,
    resources: BTreeMap<ResourceType, BTreeMap<String, Resource>>,
    /// The version in which something of the type last changed.
    versions: BTreeMap<ResourceType, String>,
}

impl Snapshot {
    pub fn new(version: &str) -> Snapshot {
        Snapshot { version: version.to_owned(), ..Snapshot::default() }
    }

    /// The resources of lists in protobuf's JSON form: `clusters`, `endpoints`, `listeners`, `routes`, `secrets`.
    ///
    /// # Errors
    /// As [`Self::add`], and when there is another list.
    pub fn of(version: &str, lists: &Value) -> Result<Snapshot> {
        let mut snapshot = Snapshot::new(version);
        for (list, resources) in lists.as_object().context("not a map of lists")? {
            let kind = match list.as_str() {
                "clusters" => ResourceType::Cluster,
                "endpoints" => ResourceType::Endpoint,
                "listeners" => ResourceType::Listener,
                "routes" => ResourceType::Route,
                "secrets" => ResourceType::Secret,
                other => return Err(anyhow!("{other}: no list of resources")),
            };
            for resource in resources.as_array().with_context(|| format!("{list}: not a list"))? {
                snapshot.add(kind, resource)?;
            }
        }
        Ok(snapshot)
    }

    /// Adds a resource in protobuf's JSON form; one of the same type and name is replaced.
    ///
    /// # Errors
    /// When it is no such resource, or the type is none that this server has messages for.
    pub fn add(&mut self, kind: ResourceType, resource: &Value) -> Result<()> {
        let field = if kind == ResourceType::Endpoint { "cluster_name" } else { "name" };
        let name = resource[field].as_str().with_context(|| format!("{kind}: no {field}"))?.to_owned();
        let value = match kind {
            ResourceType::Cluster => encoded::<Cluster>(resource),
            ResourceType::Endpoint => encoded::<ClusterLoadAssignment>(resource),
            ResourceType::Listener => encoded::<Listener>(resource),
            ResourceType::Route => encoded::<RouteConfiguration>(resource),
            ResourceType::Secret => encoded::<Secret>(resource),
            other => Err(anyhow!("{other} is not served here")),
        }
        .with_context(|| format!("{kind} {name}"))?;
        let body = Any { type_url: kind.url().to_owned(), value };
        let resource = Resource { version: self.version.clone(), body };
        self.resources.entry(kind).or_default().insert(name, resource);
        Ok(())
    }

    pub(super) fn all_of(&self, kind: ResourceType) -> impl Iterator<Item = (&String, &Resource)> {
        self.resources.get(&kind).into_iter().flatten()
    }

    pub(super) fn get(&self, kind: ResourceType, name: &str) -> Option<&Resource> {
        self.resources.get(&kind)?.get(name)
    }

    pub(super) fn version_of(&self, kind: ResourceType) -> &str {
        self.versions.get(&kind).map_or("", String::as_str)
    }

    /// The same, after `before`: what has not changed keeps its version.
    pub(super) fn after(mut self, before: Option<&Snapshot>) -> Snapshot {
        for kind in ResourceType::ALL {
            let mut changed =
                before.is_none_or(|before| before.all_of(kind).count() != self.all_of(kind).count());
            for (name, resource) in self.resources.get_mut(&kind).into_iter().flatten() {
                match before.and_then(|before| before.get(kind, name)) {
                    Some(known) if known.body == resource.body => resource.version.clone_from(&known.version),
                    _ => changed = true,
                }
            }
            let version = match before {
                Some(before) if !changed => before.version_of(kind),
                _ => self.version.as_str(),
            };
            self.versions.insert(kind, version.to_owned());
        }
        self
    }
}

fn encoded<T: Message + Name + Default>(resource: &Value) -> Result<Vec<u8>> {
    let tree: mesh_xds::Node = serde_json::from_value(resource.clone())?;
    let message: T = mesh_xds::from_node(&tree).map_err(|problems| {
        anyhow!(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    })?;
    Ok(message.encode_to_vec())
}
