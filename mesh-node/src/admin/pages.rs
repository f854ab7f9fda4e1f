//! Which page answers which path, and the help that lists them.

use std::fmt::Write;

use http::{Method, StatusCode, Uri};

use super::query::Query;
use super::reply::Reply;
use super::{
    AdminState, Stage, acceleration, certs, clusters, config_dump, listeners, memory, runtime, server_info,
    stats, workloads,
};

type Handler = fn(&dyn AdminState, &Query) -> Reply;

/// One page: path, whether it changes state (POST only), help, parameters with their help.
struct Page {
    path: &'static str,
    post: bool,
    help: &'static str,
    parameters: &'static [(&'static str, &'static str)],
    handler: Handler,
}

const fn page(path: &'static str, help: &'static str, handler: Handler) -> Page {
    Page { path, post: false, help, parameters: &[], handler }
}

const fn post(path: &'static str, help: &'static str, handler: Handler) -> Page {
    Page { path, post: true, help, parameters: &[], handler }
}

impl Page {
    const fn with(mut self, parameters: &'static [(&'static str, &'static str)]) -> Self {
        self.parameters = parameters;
        self
    }
}

/// Sorted by path, as the help lists them.
const PAGES: [Page; 27] = [
    page("/", "this list with links", home),
    page("/acceleration", "which bytes go past TCP, which do not, and why", acceleration::page),
    post("/acceleration/hand_off", "hand connections off, or not", acceleration::switch_hand_off)
        .with(&[("enable", "on or off")]),
    post("/acceleration/switch", "accelerate new connections, or not", acceleration::switch)
        .with(&[("enable", "on or off")]),
    page("/certs", "certificates of the configuration", certs::page),
    page("/clusters", "clusters and their hosts", clusters::page).with(&[
        ("filter", "regular expression on the cluster's name"),
        ("format", "text or json"),
        ("workload", "NAMESPACE/POD: the clusters of that pod"),
    ]),
    page("/config_dump", "the configuration in effect; private keys are left out", config_dump::page).with(
        &[
            ("resource", "one repeated field of the dump, such as static_clusters"),
            ("mask", "field mask; applied to each element when resource is given"),
            ("name_regex", "only resources whose name matches"),
            ("workload", "NAMESPACE/POD: the configuration of that pod"),
            ("include_eds", "endpoints that came by EDS too"),
        ],
    ),
    page("/debug/ndsz", "names of the mesh and their addresses", |state, query| {
        let workload = query.get("workload");
        match state.name_table(workload) {
            Some(table) => Reply::json(&table),
            None => Reply::no_workload(workload),
        }
    })
    .with(&[("workload", "NAMESPACE/POD: the names that this pod was told")]),
    post("/drain_listeners", "stop accepting, let connections end", |state, query| {
        state.drain_listeners(query.has("inboundonly"));
        Reply::ok()
    })
    .with(&[("inboundonly", "only listeners with traffic_direction INBOUND")]),
    post("/healthcheck/fail", "answer /ready with 503", |state, _| {
        state.fail_health_checks(true);
        Reply::ok()
    }),
    post("/healthcheck/ok", "take /healthcheck/fail back", |state, _| {
        state.fail_health_checks(false);
        Reply::ok()
    }),
    page("/help", "this list", |_, _| Reply::text(help())),
    page("/listeners", "listeners and their addresses", listeners::page).with(&[("format", "text or json")]),
    post("/logging", "show or change log levels", |state, query| state.logging().page(query))
        .with(&[("paths", "name:level,name:level,..."), ("level", "one level for all")]),
    page("/memory", "memory of the process", memory::page),
    post("/quitquitquit", "end the process", |state, _| {
        state.shut_down();
        Reply::ok()
    }),
    page("/ready", "200 when LIVE, else 503", ready),
    post("/reopen_logs", "open access logs again", |state, _| {
        state.reopen_logs();
        Reply::ok()
    }),
    post("/reset_counters", "set all counters to zero", |state, _| {
        state.store().reset_counters();
        Reply::ok()
    }),
    page("/runtime", "runtime values by key and layer", runtime::page),
    post("/runtime_modify", "set or take back runtime values: key=value", runtime::modify),
    page("/server_info", "version, state, settings", server_info::page),
    page("/stats", "statistics", stats::page).with(&[
        ("usedonly", "only what was written since the start"),
        ("filter", "regular expression on the name"),
        ("invert_filter", "show what the filter does not match"),
        ("format", "text, json or prometheus"),
        ("type", "All, Counters, Gauges or Histograms"),
        ("histogram_buckets", "summary, cumulative or disjoint"),
    ]),
    page("/stats/prometheus", "statistics in the Prometheus format", stats::prometheus_page).with(&[
        ("usedonly", "only what was written since the start"),
        ("filter", "regular expression on the name"),
        ("invert_filter", "show what the filter does not match"),
    ]),
    page("/workloads", "enrolled pods of this node and what was steered for them", workloads::page)
        .with(&[("format", "text or json")]),
    page("/init_dump", "what the process waits for", |_, _| Reply::json(&serde_json::json!({}))),
    page("/hot_restart_version", "always `disabled`", |_, _| Reply::text("disabled\n")),
];

/// The answer to a request.
pub fn answer(state: &dyn AdminState, method: &Method, uri: &Uri) -> Reply {
    let Some(page) = PAGES.iter().find(|page| page.path == uri.path()) else {
        return Reply::text(format!("invalid path. {}", help())).status(StatusCode::NOT_FOUND);
    };
    if page.post && method != Method::POST {
        return Reply::text(format!("Method {method} not allowed, POST required."))
            .status(StatusCode::METHOD_NOT_ALLOWED);
    }
    (page.handler)(state, &Query::parse(uri.query()))
}

fn ready(state: &dyn AdminState, _: &Query) -> Reply {
    let stage = state.stage();
    let status = if stage == Stage::Live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Reply::text(format!("{}\n", stage.name())).status(status)
}

fn sorted() -> Vec<&'static Page> {
    let mut pages: Vec<_> = PAGES.iter().collect();
    pages.sort_by_key(|page| page.path);
    pages
}

fn help() -> String {
    let mut out = "admin commands are:\n".to_owned();
    for page in sorted() {
        let post = if page.post { " (POST)" } else { "" };
        let _ = writeln!(out, "  {}{post}: {}", page.path, page.help);
        for (name, help) in page.parameters {
            let _ = writeln!(out, "      {name}: {help}");
        }
    }
    out
}

fn home(_: &dyn AdminState, _: &Query) -> Reply {
    let mut rows = String::new();
    for page in sorted() {
        let (path, help) = (page.path, page.help);
        let link = if page.post {
            format!("<form action=\"{path}\" method=\"post\"><button>{path}</button></form>")
        } else {
            format!("<a href=\"{path}\">{path}</a>")
        };
        let _ = writeln!(rows, "<tr><td>{link}</td><td>{help}</td></tr>");
    }
    Reply::html(format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><title>mesh-node admin</title></head><body>\n\
         <h1>mesh-node</h1>\n<table>\n{rows}</table>\n</body></html>\n"
    ))
}
