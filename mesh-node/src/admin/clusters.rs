//! `/clusters`: every cluster with its circuit breakers and hosts, as text or JSON.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use super::AdminState;
use super::listeners::socket_address;
use super::query::Query;
use super::reply::Reply;
use crate::cluster::{ClusterState, HealthFlag, Host, HostCounters};
use crate::model::cluster::HealthStatus;

pub fn page(state: &dyn AdminState, query: &Query) -> Reply {
    let filter = match query.regex("filter") {
        Ok(filter) => filter,
        Err(error) => return Reply::bad_request(error),
    };
    let workload = query.get("workload");
    let Some(manager) = state.clusters(workload) else { return Reply::no_workload(workload) };
    let mut clusters = manager.all();
    clusters.retain(|cluster| filter.as_ref().is_none_or(|filter| filter.is_match(cluster.name())));
    clusters.sort_by(|a, b| a.name().cmp(b.name()));
    let (bootstrap, _) = state.bootstrap();
    let fixed = bootstrap.pointer("/static_resources/clusters").and_then(Value::as_array);
    let fixed: HashSet<_> =
        fixed.into_iter().flatten().filter_map(|cluster| cluster["name"].as_str()).collect();
    let added_via_api = |cluster: &Arc<ClusterState>| !fixed.contains(&**cluster.name());
    if query.get("format") == Some("json") {
        let status = |cluster| cluster_json(cluster, added_via_api(cluster));
        let statuses: Vec<_> = clusters.iter().map(status).collect();
        return Reply::json(&json!({ "cluster_statuses": statuses }));
    }
    let mut out = String::new();
    for cluster in &clusters {
        cluster_text(cluster, added_via_api(cluster), &mut out);
    }
    Reply::text(out)
}

fn cluster_text(cluster: &Arc<ClusterState>, added_via_api: bool, out: &mut String) {
    let name = cluster.name();
    let _ = writeln!(out, "{name}::observability_name::{}", cluster.config.stat_name);
    for (average, prefix) in cluster.outlier_averages().iter().flatten().zip(["", "local_origin_"]) {
        let _ = writeln!(out, "{name}::outlier::{prefix}success_rate_average::{}", average.mean);
        let threshold = average.threshold;
        let _ = writeln!(out, "{name}::outlier::{prefix}success_rate_ejection_threshold::{threshold}");
    }
    for (priority, limits) in ["default", "high"].iter().zip(&cluster.config.circuit_breakers) {
        let limits = [
            ("max_connections", limits.max_connections),
            ("max_pending_requests", limits.max_pending_requests),
            ("max_requests", limits.max_requests),
            ("max_retries", limits.max_retries),
        ];
        for (limit, value) in limits {
            let _ = writeln!(out, "{name}::{priority}_priority::{limit}::{value}");
        }
    }
    let _ = writeln!(out, "{name}::added_via_api::{added_via_api}");
    for host in cluster.hosts() {
        let counters = numbers(&host.counters);
        let hostname = host.hostname.as_deref().unwrap_or_default();
        let locality = &host.locality;
        for (stat, value) in counters
            .gauges
            .iter()
            .chain(&counters.counters)
            .copied()
            .collect::<std::collections::BTreeMap<_, _>>()
        {
            let _ = writeln!(out, "{name}::{}::{stat}::{value}", host.address);
        }
        let (success_rate, local_origin_success_rate) = host.counters.health.success_rates();
        let facts = [
            ("hostname", hostname.to_owned()),
            ("health_flags", health_text(&host)),
            ("weight", weight(&host).to_string()),
            ("region", locality.region.to_string()),
            ("zone", locality.zone.to_string()),
            ("sub_zone", locality.sub_zone.to_string()),
            ("canary", "false".to_owned()),
            ("priority", host.priority.to_string()),
            ("success_rate", success_rate.to_string()),
            ("local_origin_success_rate", local_origin_success_rate.to_string()),
        ];
        for (fact, value) in facts {
            let _ = writeln!(out, "{name}::{}::{fact}::{value}", host.address);
        }
    }
}

fn cluster_json(cluster: &Arc<ClusterState>, added_via_api: bool) -> Value {
    let [default, high] = cluster.config.circuit_breakers.map(|limits| {
        json!({
            "max_connections": limits.max_connections,
            "max_pending_requests": limits.max_pending_requests,
            "max_requests": limits.max_requests,
            "max_retries": limits.max_retries,
        })
    });
    let mut high = high;
    high["priority"] = "HIGH".into();
    let hosts: Vec<_> = cluster.hosts().iter().map(|host| host_json(host)).collect();
    let mut status = json!({
        "name": &**cluster.name(),
        "circuit_breakers": { "thresholds": [default, high] },
        "observability_name": &*cluster.config.stat_name,
    });
    if added_via_api {
        status["added_via_api"] = true.into();
    }
    if !hosts.is_empty() {
        status["host_statuses"] = hosts.into();
    }
    status
}

fn host_json(host: &Host) -> Value {
    let numbers = numbers(&host.counters);
    let stat = |(name, value): &(&str, u64), gauge: bool| {
        let mut stat = json!({ "name": name });
        if gauge {
            stat["type"] = "GAUGE".into();
        }
        if *value > 0 {
            stat["value"] = value.to_string().into();
        }
        stat
    };
    let stats: Vec<_> = (numbers.counters.iter().map(|number| stat(number, false)))
        .chain(numbers.gauges.iter().map(|number| stat(number, true)))
        .collect();
    let mut locality = json!({});
    let names = &host.locality;
    for (key, value) in [("region", &names.region), ("zone", &names.zone), ("sub_zone", &names.sub_zone)] {
        if !value.is_empty() {
            locality[key] = (&**value).into();
        }
    }
    let mut status = json!({
        "address": socket_address(host.address),
        "stats": stats,
        "health_status": health_json(host),
        "weight": weight(host),
        "locality": locality,
    });
    if let Some(hostname) = &host.hostname {
        status["hostname"] = (&**hostname).into();
    }
    let (requests, connecting) = host.counters.health.success_rates();
    for (name, rate) in [("success_rate", requests), ("local_origin_success_rate", connecting)] {
        if rate >= 0.0 {
            status[name] = json!({ "value": rate });
        }
    }
    if host.priority > 0 {
        status["priority"] = host.priority.into();
    }
    status
}

fn health_json(host: &Host) -> Value {
    let mut health = json!({ "eds_health_status": eds_health(host) });
    for (_, flag) in health_flags(host).into_iter().filter(|(_, name)| !name.is_empty()) {
        health[flag] = true.into();
    }
    health
}

/// Sorted by name, counters and gauges apart.
struct Numbers {
    counters: [(&'static str, u64); 6],
    gauges: [(&'static str, u64); 3],
}

fn numbers(of: &HostCounters) -> Numbers {
    Numbers {
        counters: [
            ("cx_connect_fail", of.cx_connect_fail.load(Relaxed)),
            ("cx_total", of.cx_total.load(Relaxed)),
            ("rq_error", of.rq_error.load(Relaxed)),
            ("rq_success", of.rq_success.load(Relaxed)),
            ("rq_timeout", of.rq_timeout.load(Relaxed)),
            ("rq_total", of.rq_total.load(Relaxed)),
        ],
        gauges: [
            ("cx_active", of.cx_active.load(Relaxed)),
            ("rq_active", of.rq_active.load(Relaxed)),
            // Requests wait for a connection in the worker's pool, not at the host.
            ("rq_pending_active", 0),
        ],
    }
}

/// The flags in Envoy's order (`HealthFlag`), and their names as text and JSON have them.
fn health_flags(host: &Host) -> Vec<(&'static str, &'static str)> {
    let health = &host.counters.health;
    let configured = host.configured_health();
    let flags = [
        (health.has(HealthFlag::FailedActiveCheck), "/failed_active_hc", "failed_active_health_check"),
        (health.has(HealthFlag::FailedOutlierCheck), "/failed_outlier_check", "failed_outlier_check"),
        (configured == HealthStatus::Unhealthy, "/failed_eds_health", ""),
        (health.has(HealthFlag::DegradedActiveCheck), "/degraded_active_hc", "failed_active_degraded_check"),
        (configured == HealthStatus::Degraded, "/degraded_eds_health", ""),
        (health.has(HealthFlag::PendingActiveCheck), "/pending_active_hc", "pending_active_hc"),
        (
            health.has(HealthFlag::ExcludedByImmediateFail),
            "/excluded_via_immediate_hc_fail",
            "excluded_via_immediate_hc_fail",
        ),
        (health.has(HealthFlag::ActiveCheckTimeout), "/active_hc_timeout", "active_hc_timeout"),
        (configured == HealthStatus::Draining, "/eds_status_draining", ""),
    ];
    flags.into_iter().filter(|(set, ..)| *set).map(|(_, text, json)| (text, json)).collect()
}

fn health_text(host: &Host) -> String {
    let flags: String = health_flags(host).into_iter().map(|(text, _)| text).collect();
    if flags.is_empty() { "healthy".to_owned() } else { flags }
}

fn eds_health(host: &Host) -> &'static str {
    match host.configured_health() {
        HealthStatus::Healthy => "HEALTHY",
        HealthStatus::Degraded => "DEGRADED",
        HealthStatus::Unhealthy => "UNHEALTHY",
        HealthStatus::Draining => "DRAINING",
    }
}

fn weight(host: &Host) -> u32 {
    host.endpoint.as_ref().map_or(1, |endpoint| endpoint.weight)
}
