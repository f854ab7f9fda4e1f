//! The resources of a sidecar in the shape of Envoy's `/config_dump`. Private keys are left out.

use std::collections::BTreeMap;
use std::time::SystemTime;

use mesh_xds::client::ResourceType;
use serde_json::{Map, Value, json};

use super::Assembly;
use super::assembly::Named;
use super::compile::Compiled;
use super::error_state::ErrorState;
use super::slot::{Item, Slot};
use crate::model::Str;
use crate::model::cluster::Cluster;
use crate::telemetry::iso8601;

impl Assembly {
    /// The dynamic parts of each dump by the dump's message (`ClustersConfigDump`): fields and their values.
    pub fn dump(&self) -> BTreeMap<&'static str, Map<String, Value>> {
        let (clusters, listeners) = self.versions();
        let clusters = object(json!({
            "version_info": clusters,
            "dynamic_active_clusters": self.clusters_of(|slot| slot.active.as_ref()),
            "dynamic_warming_clusters": self.clusters_of(|slot| slot.warming.as_ref().map(|(item, _)| item)),
        }));
        let listeners =
            object(json!({ "version_info": listeners, "dynamic_listeners": self.dynamic_listeners() }));
        let routes = self.routes.iter().filter_map(|(name, routes)| Some((name, routes.active.as_ref()?)));
        let routes = self.named(ResourceType::Route, "route_config", routes);
        let secrets = self.named(ResourceType::Secret, "secret", self.secrets.iter());
        let endpoints = self.named(ResourceType::Endpoint, "endpoint_config", self.endpoints.iter());
        let scopes = self.named(ResourceType::ScopedRoute, "scoped_route_configs", self.scopes.named.iter());
        let scopes: Vec<Value> = scopes.into_iter().map(in_a_list).collect();
        BTreeMap::from([
            ("ScopedRoutesConfigDump", object(json!({ "dynamic_scoped_route_configs": scopes }))),
            ("ClustersConfigDump", clusters),
            ("ListenersConfigDump", listeners),
            ("RoutesConfigDump", object(json!({ "dynamic_route_configs": routes }))),
            ("SecretsConfigDump", object(json!({ "dynamic_active_secrets": secrets }))),
            ("EndpointsConfigDump", object(json!({ "dynamic_endpoint_configs": endpoints }))),
        ])
    }

    fn clusters_of<'a>(
        &'a self,
        item: impl Fn(&'a Slot<Cluster>) -> Option<&'a Item<Cluster>>,
    ) -> Vec<Value> {
        let mut shown = Vec::new();
        for (name, slot) in self.clusters.iter().filter(|(_, slot)| !slot.fixed) {
            let Some(item) = item(slot) else { continue };
            let mut element = state("cluster", item);
            self.add_error(ResourceType::Cluster, name, &mut element);
            shown.push(element);
        }
        shown
    }

    fn dynamic_listeners(&self) -> Vec<Value> {
        let mut shown = Vec::new();
        for (name, slot) in self.listeners.iter().filter(|(_, slot)| !slot.fixed) {
            let mut element = json!({ "name": &**name });
            if let Some(item) = &slot.active {
                element["active_state"] = state("listener", item);
            }
            if let Some((item, _)) = &slot.warming {
                element["warming_state"] = state("listener", item);
            }
            self.add_error(ResourceType::Listener, name, &mut element);
            shown.push(element);
        }
        // Listeners of which no version was ever taken.
        for ((kind, name), error) in &self.errors {
            if *kind == ResourceType::Listener && !self.listeners.contains_key(name.as_str()) {
                shown.push(json!({ "name": name, "error_state": error_state(*kind, error) }));
            }
        }
        shown
    }

    fn named<'a>(
        &self,
        kind: ResourceType,
        field: &str,
        resources: impl Iterator<Item = (&'a Str, &'a Named)>,
    ) -> Vec<Value> {
        let shown = |(name, named): (&Str, &Named)| {
            let mut element = json!({
                "version_info": named.version,
                field: message(&named.compiled),
                "last_updated": iso8601(named.updated),
            });
            if kind == ResourceType::Secret {
                element["name"] = (**name).into();
            }
            self.add_error(kind, name, &mut element);
            element
        };
        resources.map(shown).collect()
    }

    fn add_error(&self, kind: ResourceType, name: &Str, element: &mut Value) {
        if let Some(error) = self.errors.get(&(kind, name.to_string())) {
            element["error_state"] = error_state(kind, error);
        }
    }
}

/// Envoy shows scopes in lists.
fn in_a_list(mut element: Value) -> Value {
    let scope = element["scoped_route_configs"].take();
    element["scoped_route_configs"] = json!([scope]);
    element
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(mut object) => {
            object
                .retain(|_, value| !matches!(value, Value::Array(items) if items.is_empty()) && *value != "");
            object
        }
        _ => Map::new(),
    }
}

fn state<T>(field: &str, item: &Item<T>) -> Value {
    json!({
        "version_info": item.version,
        field: item.compiled.as_ref().map(|compiled| message(compiled)),
        "last_updated": iso8601(item.updated),
    })
}

fn message(compiled: &Compiled) -> Value {
    typed(compiled.kind, &compiled.body)
}

fn typed(kind: ResourceType, body: &[u8]) -> Value {
    let mut message = mesh_xds::bytes_to_json(kind.url(), body).unwrap_or_default();
    if let Some(object) = message.as_object_mut() {
        object.insert("@type".to_owned(), kind.url().into());
    }
    message
}

fn error_state(kind: ResourceType, error: &ErrorState) -> Value {
    let at: SystemTime = error.at;
    json!({
        "failed_configuration": typed(kind, &error.failed),
        "last_update_attempt": iso8601(at),
        "details": error.details,
        "version_info": error.version,
    })
}
