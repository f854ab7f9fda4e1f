//! Everything that a real control plane was recorded to send: each resource becomes what it says, or is refused
//! for a reason that is written down here.
//!
//! The recordings lie beside the repository; without them the tests say so and end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mesh_xds::prost::{Message, Name};
use mesh_xds::{Node, from_node};
use serde_json::Value;

use super::tests::with_context;
use super::*;

/// Why resources are refused: a part of the error, and the reason. Whatever is not here must be taken.
const REFUSED: &[(&str, &str)] = &[
    ("InternalUpstreamTransport", "HBONE is not built"),
    ("envoy_internal_address", "HBONE is not built"),
    ("original_dst_lb_config.metadata_key", "HBONE is not built"),
    ("connect_originate.address", "HBONE: a listener inside the process"),
    ("main_internal.address", "HBONE: a listener inside the process"),
    ("virtualOutbound.transparent", "TPROXY: the client's address is kept without it"),
    ("original_src.v3.OriginalSrc", "TPROXY: the client's address is kept without it"),
    ("IPMatcher", "HBONE: a waypoint's matcher"),
    ("set_filter_state.v3.Config", "HBONE: of connections"),
    ("OpenTelemetryAccessLogConfig", "remote access logs are not built"),
    ("_to_log", "headers and filter state of choice in access logs that go to servers"),
    ("JwtAuthentication", "JWT is not built"),
    ("RedisProxy", "a proxy of its own, not built"),
    (".pipe", "sockets in the file system are not built"),
];

fn folder(name: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("shared/data").join(name))
        .find(|folder| folder.is_dir());
    if found.is_none() {
        eprintln!("SKIPPED: no shared/data/{name} beside the repository");
    }
    found
}

/// All recordings, by `SCENARIO/PROXY`.
fn recordings() -> Option<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    for scenario in std::fs::read_dir(folder("istiod")?).unwrap().flatten() {
        for file in std::fs::read_dir(scenario.path()).into_iter().flatten().flatten() {
            let path = file.path();
            if path.extension().is_none_or(|e| e != "json") || path.ends_with("exchange.json") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let name = format!(
                "{}/{}",
                scenario.file_name().to_string_lossy(),
                path.file_stem().unwrap().to_string_lossy()
            );
            all.insert(name, serde_json::from_str(&text).unwrap());
        }
    }
    Some(all)
}

/// Reads a resource and converts it.
fn take<T: Message + Name + Default>(
    resource: &Value,
    convert: impl FnOnce(&str, &T) -> Result<(), XdsError>,
) -> Result<(), String> {
    let node = Node::parse(&resource.to_string()).expect("JSON");
    let message = from_node::<T>(&node).map_err(|problems| problems[0].to_string())?;
    let name = resource["name"].as_str().or_else(|| resource["cluster_name"].as_str()).unwrap_or("?");
    convert(name, &message).map_err(|error| error.to_string())
}

#[test]
fn what_a_control_plane_sends_is_taken_but_for_what_is_listed() {
    let Some(recordings) = recordings() else { return };
    let (mut taken, mut refused) = (0, Vec::new());
    for (recording, content) in &recordings {
        with_context("", |context| {
            context.clusters = None;
            let resources = &content["resources"];
            let mut each = |kind: &str, take: &mut dyn FnMut(&Value) -> Result<(), String>| {
                for resource in resources[kind].as_array().into_iter().flatten() {
                    match take(resource) {
                        Ok(()) => taken += 1,
                        Err(error) => refused.push((format!("{recording} {kind}"), error)),
                    }
                }
            };
            each("clusters", &mut |r| take(r, |at, m| cluster(at, m, context).map(drop)));
            each("endpoints", &mut |r| take(r, |at, m| assignment(at, m, context).map(drop)));
            // One with filters that come apart from it is taken, and serves once they have come.
            each("listeners", &mut |r| {
                take(r, |at, m| match discovered(at, m, context)?.is_empty() {
                    true => listener(at, m, context).map(drop),
                    false => Ok(()),
                })
            });
            each("routes", &mut |r| take(r, |at, m| table(at, m, context).map(drop)));
            each("secrets", &mut |r| take(r, |at, m| secret(at, m, context).map(drop)));
        });
    }
    let listed = |error: &str| REFUSED.iter().position(|(end, _)| error.contains(end));
    let mut unlisted: BTreeMap<String, (usize, &str, &str)> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (place, error) in &refused {
        match listed(error) {
            Some(at) => drop(seen.insert(at)),
            None => {
                // One line for each kind of refusal.
                let kind: String = error.chars().filter(|c| !c.is_ascii_digit()).collect();
                let kind = kind.split_once("filter_chain").map_or(kind.clone(), |(_, rest)| rest.to_owned());
                unlisted.entry(kind).or_insert((0, place, error)).0 += 1;
            }
        }
    }
    eprintln!("{taken} resources taken, {} refused for {} listed reasons", refused.len(), seen.len());
    let lines: Vec<_> =
        unlisted.values().map(|(n, place, error)| format!("{n} x {place}: {error}")).collect();
    assert!(lines.is_empty(), "refused without being listed:\n{}", lines.join("\n"));
    let stale = (0..REFUSED.len()).filter(|at| !seen.contains(at));
    let stale: Vec<_> = stale.map(|at| REFUSED[at].0).collect();
    assert!(stale.is_empty(), "listed, but taken now: {stale:?}");
    assert!(taken > 3000, "{taken}");
}
