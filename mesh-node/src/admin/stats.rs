//! `/stats` and `/stats/prometheus`.

use super::AdminState;
use super::query::Query;
use super::reply::Reply;
use crate::telemetry::stats::{self, BucketMode, Kind};

pub fn page(state: &dyn AdminState, query: &Query) -> Reply {
    let mode = match query.get("histogram_buckets") {
        None | Some("" | "summary") => BucketMode::Summary,
        Some("cumulative") => BucketMode::Cumulative,
        Some("disjoint") => BucketMode::Disjoint,
        Some(_) => {
            return Reply::bad_request("usage: /stats?histogram_buckets=(summary|cumulative|disjoint)\n");
        }
    };
    let samples = match samples(state, query) {
        Ok(samples) => samples,
        Err(reply) => return reply,
    };
    match query.get("format") {
        None | Some("" | "text") => Reply::text(stats::text(&samples, mode)),
        Some("json") => {
            let body = stats::json(&samples).to_string();
            Reply { content_type: "application/json", ..Reply::text(body) }
        }
        Some("prometheus") => prometheus(state, query, &samples),
        Some(_) => Reply::bad_request("usage: /stats?format=(json|prometheus|text)\n\n"),
    }
}

pub fn prometheus_page(state: &dyn AdminState, query: &Query) -> Reply {
    samples(state, query).map_or_else(|reply| reply, |samples| prometheus(state, query, &samples))
}

/// Envoy's statistics, then ours: what was steered for each workload.
fn prometheus(state: &dyn AdminState, query: &Query, samples: &[stats::Sample]) -> Reply {
    let filter = match query.regex("filter") {
        Ok(filter) => filter,
        Err(error) => return Reply::bad_request(error),
    };
    let mut text = stats::prometheus(samples);
    for line in super::workloads::prometheus(state).lines() {
        let name = line.trim_start_matches("# TYPE ");
        let name = &name[..name.find(['{', ' ']).unwrap_or(name.len())];
        if filter.as_ref().is_none_or(|filter| filter.is_match(name)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    Reply::text(text)
}

fn samples(state: &dyn AdminState, query: &Query) -> Result<Vec<stats::Sample>, Reply> {
    let kind = match query.get("type") {
        None | Some("" | "All") => None,
        Some("Counters") => Some(Kind::Counter),
        Some("Gauges") => Some(Kind::Gauge),
        Some("Histograms") => Some(Kind::Histogram),
        Some(other) => {
            return Err(Reply::bad_request(format!(
                "invalid &type={other}; use All, Counters, Gauges or Histograms\n"
            )));
        }
    };
    update(state);
    Ok(state.store().samples(&stats::Query {
        filter: query.regex("filter").map_err(Reply::bad_request)?,
        invert: query.has("invert_filter"),
        used_only: query.has("usedonly"),
        kind,
    }))
}

/// Values of the process that are read when they are shown.
fn update(state: &dyn AdminState) {
    let server = state.store().server();
    server.uptime.set(state.uptime().as_secs());
    server.state.set(state.stage().number());
    server.live.set(u64::from(state.stage() == super::Stage::Live));
    server.memory_physical_size.set(super::memory::resident_bytes());
    state.store().listener_manager().total_listeners_active.set(state.snapshot().listeners.len() as u64);
    state.store().cluster_manager().active_clusters.set(state.snapshot().clusters.len() as u64);
}
