//! Something that mesh-node cannot honour, sent by a real istiod: refused by name, shown, and nothing else is held up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::process::deadline;
use serde_json::Value;

use crate::rules::get;
use crate::stage::{DETAILS, RATINGS, Side, Stage};

/// A filter that is not built, for every listener of port 9080, and a rule that can be had.
const FILTER: &str = "\
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: script, namespace: default}
spec:
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_OUTBOUND
      listener:
        portNumber: 9080
        filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.router}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.grpc_http1_bridge
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.http.grpc_http1_bridge.v3.Config
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: details, namespace: default}
spec: {hosts: [details.default.svc.cluster.local], http: [{directResponse: {status: 418}}]}
";

pub fn is_shown_and_holds_nothing_else_up(stage: &Stage) -> Result<()> {
    stage.istiod.apply("refused", FILTER)?;
    until("the rule of the same push", || Ok(stage.ask(Side::Mesh, &get(DETAILS, "/"))?.status == 418))?;
    until("the reason in /config_dump", || {
        Ok(errors(stage)?
            .iter()
            .any(|(name, reason)| name == "0.0.0.0_9080" && reason.contains("grpc_http1_bridge.v3.Config")))
    })?;
    ensure!(stage.istiod.nothing_was_refused().is_err(), "istiod was not told");
    ensure!(stage.ask(Side::Mesh, &get(RATINGS, "/"))?.by() == "ratings-v1", "the last good listener");
    stage.istiod.remove("refused", FILTER)?;
    until("the end of the error", || Ok(errors(stage)?.is_empty()))?;
    ensure!(stage.ask(Side::Mesh, &get(DETAILS, "/"))?.by() == "details-v1", "after it");
    Ok(())
}

/// Listeners that were refused, and why.
fn errors(stage: &Stage) -> Result<Vec<(String, String)>> {
    let dump: Value = serde_json::from_str(&stage.admin(Side::Mesh, "/config_dump")?)?;
    let configs = dump["configs"].as_array().context("a dump")?;
    let listeners =
        configs.iter().flat_map(|dump| dump["dynamic_listeners"].as_array().into_iter().flatten());
    let refused = listeners.filter(|listener| listener["error_state"].is_object());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(refused.map(|l| (text(&l["name"]), text(&l["error_state"]["details"]))).collect())
}

fn until(what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + deadline();
    while !holds()? {
        ensure!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(30)); // the period of the poll
    }
    Ok(())
}
