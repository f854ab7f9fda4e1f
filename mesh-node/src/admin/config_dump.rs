//! `/config_dump`: the configuration in Envoy's shape (`envoy.admin.v3.ConfigDump`). Private keys and other
//! secrets never leave the process.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::query::Query;
use super::reply::Reply;
use super::{AdminState, mask};
use crate::cluster::{ClusterManager, ClusterState, Host};
use crate::model::cluster::{Discovery, HealthStatus};

/// What stands in place of a secret.
const REDACTED: &str = "[redacted]";
const REDACTED_BYTES: &str = "W3JlZGFjdGVkXQ==";
/// Fields that Envoy's API marks as sensitive, wherever they are.
const SENSITIVE: [&str; 6] =
    ["private_key", "private_key_provider", "password", "session_ticket_keys", "generic_secret", "pkcs12"];

/// One dump: message, repeated field, message of an element, field of the resource in it, type of the resource.
struct Section {
    dump: &'static str,
    field: &'static str,
    element: &'static str,
    resource: &'static str,
    type_url: &'static str,
}

const CLUSTERS: Section = Section {
    dump: "ClustersConfigDump",
    field: "static_clusters",
    element: "StaticCluster",
    resource: "cluster",
    type_url: "envoy.config.cluster.v3.Cluster",
};
const LISTENERS: Section = Section {
    dump: "ListenersConfigDump",
    field: "static_listeners",
    element: "StaticListener",
    resource: "listener",
    type_url: "envoy.config.listener.v3.Listener",
};
const ROUTES: Section = Section {
    dump: "RoutesConfigDump",
    field: "static_route_configs",
    element: "StaticRouteConfig",
    resource: "route_config",
    type_url: "envoy.config.route.v3.RouteConfiguration",
};
const SECRETS: Section = Section {
    dump: "SecretsConfigDump",
    field: "static_secrets",
    element: "StaticSecret",
    resource: "secret",
    type_url: "envoy.extensions.transport_sockets.tls.v3.Secret",
};
/// Repeated fields of the dumps that may be empty.
const EMPTY: [&str; 9] = [
    "ecds_filters",
    "dynamic_active_clusters",
    "dynamic_warming_clusters",
    "dynamic_listeners",
    "dynamic_route_configs",
    "dynamic_active_secrets",
    "dynamic_warming_secrets",
    "static_endpoint_configs",
    "dynamic_endpoint_configs",
];

pub fn page(state: &dyn AdminState, query: &Query) -> Reply {
    let names = match query.regex("name_regex") {
        Ok(names) => names,
        Err(error) => return Reply::bad_request(error),
    };
    let (mut bootstrap, updated) = state.bootstrap();
    redact(&mut bootstrap);
    let updated = crate::telemetry::iso8601(updated);
    let wanted = |resource: &Value| {
        let name = resource.get("name").and_then(Value::as_str).unwrap_or_default();
        names.as_ref().is_none_or(|names| names.is_match(name))
    };
    let workload = query.get("workload");
    let Some(mut dynamic) = state.dynamic(workload) else { return Reply::no_workload(workload) };
    let resources: Vec<(&Section, Vec<Value>)> = [CLUSTERS, LISTENERS, ROUTES, SECRETS]
        .iter()
        .map(|section| {
            let mut found = resources(section, &bootstrap);
            if section.field == ROUTES.field {
                dynamic_inline_routes(&dynamic, &mut found);
            }
            found.retain(wanted);
            (section, elements(section, found, &updated))
        })
        .collect();
    if !query.has("include_eds") {
        dynamic.remove("EndpointsConfigDump");
    } else if let (Some(clusters), Some(dump)) =
        (state.clusters(workload), dynamic.get_mut("EndpointsConfigDump"))
    {
        show_health(&clusters, dump);
    }
    for (field, elements) in dynamic.values_mut().flatten() {
        if let Some(elements) = elements.as_array_mut() {
            elements.retain(|element| wanted(named(field, element)));
        }
    }
    match query.get("resource") {
        None => whole(bootstrap, &updated, resources, dynamic, query.get("mask")),
        Some(resource) => one(resource, resources, &dynamic, query.get("mask")),
    }
}

/// Endpoints with the health that they have by now, as Envoy shows them: checks and outlier detection count.
fn show_health(clusters: &ClusterManager, dump: &mut Map<String, Value>) {
    let service = |cluster: Arc<ClusterState>| match &cluster.config.discovery {
        Discovery::Eds { service_name } => Some((service_name.clone(), cluster)),
        _ => None,
    };
    let by_service: HashMap<_, _> = clusters.all().into_iter().filter_map(service).collect();
    let configs = dump.get_mut("dynamic_endpoint_configs").and_then(Value::as_array_mut);
    for config in configs.into_iter().flatten().filter_map(|element| element.get_mut("endpoint_config")) {
        let name = config.get("cluster_name").and_then(Value::as_str).unwrap_or_default();
        let Some(cluster) = by_service.get(name) else { continue };
        let health: HashMap<SocketAddr, &str> =
            cluster.hosts().iter().map(|host| (host.address, health_name(host))).collect();
        let localities = config.get_mut("endpoints").and_then(Value::as_array_mut);
        for locality in localities.into_iter().flatten() {
            let endpoints = locality.get_mut("lb_endpoints").and_then(Value::as_array_mut);
            for endpoint in endpoints.into_iter().flatten() {
                if let Some(health) = address(endpoint).and_then(|address| health.get(&address)) {
                    endpoint["health_status"] = (*health).into();
                }
            }
        }
    }
}

fn health_name(host: &Host) -> &'static str {
    match host.health() {
        HealthStatus::Healthy => "HEALTHY",
        HealthStatus::Degraded => "DEGRADED",
        HealthStatus::Unhealthy => "UNHEALTHY",
        HealthStatus::Draining => "DRAINING",
    }
}

fn address(endpoint: &Value) -> Option<SocketAddr> {
    let address = endpoint.pointer("/endpoint/address/socket_address")?;
    let port = address.get("port_value").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok())?;
    Some(SocketAddr::new(address.get("address")?.as_str()?.parse().ok()?, port))
}

/// The part of a dynamic element that has the name.
fn named<'a>(field: &str, element: &'a Value) -> &'a Value {
    let inner = match field {
        "dynamic_active_clusters" | "dynamic_warming_clusters" => "cluster",
        "dynamic_route_configs" => "route_config",
        _ => return element,
    };
    element.get(inner).unwrap_or(element)
}

fn resources(section: &Section, bootstrap: &Value) -> Vec<Value> {
    let of = |name: &str| {
        bootstrap
            .pointer(&format!("/static_resources/{name}"))
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    match section.resource {
        "cluster" => of("clusters"),
        "listener" => of("listeners"),
        "secret" => of("secrets"),
        _ => {
            let mut routes = Vec::new();
            of("listeners").iter().for_each(|listener| inline_routes(listener, &mut routes));
            routes
        }
    }
}

/// Route configurations written into connection managers.
fn inline_routes(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                if key == "route_config" {
                    found.push(value.clone());
                } else {
                    inline_routes(value, found);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| inline_routes(item, found)),
        _ => {}
    }
}

/// Those of listeners that came over xDS: static too, for Envoy.
fn dynamic_inline_routes(dynamic: &BTreeMap<&'static str, Map<String, Value>>, found: &mut Vec<Value>) {
    let listeners = dynamic.get("ListenersConfigDump").and_then(|dump| dump.get("dynamic_listeners"));
    for listener in listeners.and_then(Value::as_array).into_iter().flatten() {
        inline_routes(&listener["active_state"], found);
    }
}

fn elements(section: &Section, resources: Vec<Value>, updated: &str) -> Vec<Value> {
    let element = |mut resource: Value| {
        if let Some(object) = resource.as_object_mut() {
            object.insert("@type".to_owned(), type_url(section.type_url));
        }
        let mut element = Map::new();
        if section.resource == "secret"
            && let Some(name) = resource.get("name")
        {
            element.insert("name".to_owned(), name.clone());
        }
        element.insert(section.resource.to_owned(), resource);
        element.insert("last_updated".to_owned(), updated.into());
        Value::Object(element)
    };
    resources.into_iter().map(element).collect()
}

fn type_url(name: &str) -> Value {
    format!("type.googleapis.com/{name}").into()
}

fn whole(
    bootstrap: Value,
    updated: &str,
    resources: Vec<(&Section, Vec<Value>)>,
    mut dynamic: BTreeMap<&'static str, Map<String, Value>>,
    mask: Option<&str>,
) -> Reply {
    let mut configs = vec![json!({
        "@type": type_url("envoy.admin.v3.BootstrapConfigDump"),
        "bootstrap": bootstrap,
        "last_updated": updated,
    })];
    for (section, elements) in resources {
        let mut dump = json!({ "@type": type_url(&format!("envoy.admin.v3.{}", section.dump)) });
        if !elements.is_empty() {
            dump[section.field] = elements.into();
        }
        add(&mut dump, dynamic.remove(section.dump).unwrap_or_default());
        configs.push(dump);
    }
    for (message, fields) in dynamic {
        let mut dump = json!({ "@type": type_url(&format!("envoy.admin.v3.{message}")) });
        add(&mut dump, fields);
        configs.push(dump);
    }
    if let Some(mask) = mask {
        let paths: Vec<_> = mask.split(',').collect();
        configs = configs.iter().filter_map(|config| mask::apply(config, &paths)).collect();
        if configs.is_empty() {
            return Reply::bad_request(format!(
                "FieldMask {mask} could not be successfully applied to any configs."
            ));
        }
    }
    Reply::json(&json!({ "configs": configs }))
}

fn add(dump: &mut Value, fields: Map<String, Value>) {
    for (field, value) in fields {
        dump[field] = value;
    }
}

fn one(
    resource: &str,
    resources: Vec<(&Section, Vec<Value>)>,
    dynamic: &BTreeMap<&'static str, Map<String, Value>>,
    mask: Option<&str>,
) -> Reply {
    if resource == "bootstrap" {
        return Reply::bad_request(
            "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field",
        );
    }
    let found = dynamic.iter().find_map(|(dump, fields)| {
        Some((format!("{dump}.{}", element_of(resource)?), fields.get(resource)?))
    });
    if let Some((message, Value::Array(elements))) = found {
        return elements_as(&message, elements.clone(), mask);
    }
    if EMPTY.contains(&resource) {
        return Reply::json(&json!({}));
    }
    let Some((section, elements)) = resources.into_iter().find(|(section, _)| section.field == resource)
    else {
        return Reply::text(format!("{resource} not found in config dump")).status(StatusCode::NOT_FOUND);
    };
    elements_as(&format!("{}.{}", section.dump, section.element), elements, mask)
}

/// The message of an element of this dynamic field.
fn element_of(field: &str) -> Option<&'static str> {
    Some(match field {
        "dynamic_active_clusters" | "dynamic_warming_clusters" => "DynamicCluster",
        "dynamic_listeners" => "DynamicListener",
        "dynamic_route_configs" => "DynamicRouteConfig",
        "dynamic_active_secrets" => "DynamicSecret",
        "dynamic_endpoint_configs" => "DynamicEndpointConfig",
        "ecds_filters" => "EcdsFilterConfig",
        _ => return None,
    })
}

fn elements_as(message: &str, elements: Vec<Value>, mask: Option<&str>) -> Reply {
    let configs = elements.into_iter().filter_map(|element| {
        let mut element = match mask {
            None => element,
            Some(mask) => mask::apply(&element, &mask.split(',').collect::<Vec<_>>())?,
        };
        element["@type"] = type_url(&format!("envoy.admin.v3.{message}"));
        Some(element)
    });
    Reply::json(&json!({ "configs": configs.collect::<Vec<_>>() }))
}

/// Replaces the contents of secrets; file names stay.
fn redact(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                if SENSITIVE.contains(&key.as_str()) { redact_secret(value) } else { redact(value) }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

fn redact_secret(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match (key.as_str(), &value) {
                    ("filename" | "environment_variable" | "provider_name" | "@type", _) => {}
                    ("inline_bytes", Value::String(_)) => *value = REDACTED_BYTES.into(),
                    _ => redact_secret(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact_secret),
        Value::String(_) => *value = REDACTED.into(),
        _ => {}
    }
}
