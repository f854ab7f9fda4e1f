//! What a real control plane sends, recorded: what of it is refused, and why.
//!
//! The recordings lie beside the repository; without them the test says so and ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mesh_xds::client::ResourceType;
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
use mesh_xds::prost::{Message, Name};
use mesh_xds::{Node, from_node};
use serde_json::Value;

use super::tests::compiler;

fn recordings() -> Option<PathBuf> {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders.map(|folder| folder.join("shared/data/istiod")).find(|folder| folder.is_dir())
}

fn bytes<T: Message + Name + Default>(resource: &Value) -> Result<Vec<u8>, String> {
    let node = Node::parse(&resource.to_string()).map_err(|problem| problem.to_string())?;
    let message: T =
        from_node(&node).map_err(|problems| problems.first().map(ToString::to_string).unwrap_or_default())?;
    Ok(message.encode_to_vec())
}

/// A reason without the places in lists, so that equal ones are counted together.
fn kind_of(reason: &str) -> String {
    let parts = reason.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest));
    parts.collect::<Vec<_>>().join("[]")
}

#[test]
fn what_istiod_sends_is_taken_but_for_what_is_not_built_yet() {
    let Some(folder) = recordings() else {
        eprintln!("SKIPPED: no recordings beside the repository");
        return;
    };
    let compiler = compiler();
    let mut counts: BTreeMap<ResourceType, (usize, usize)> = BTreeMap::new();
    let mut refused: BTreeMap<String, (usize, String)> = BTreeMap::new();
    let scenarios = std::fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let files = scenarios.flat_map(|entry| std::fs::read_dir(entry.path()).unwrap().flatten());
    for file in files.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json")) {
        let recording: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        for (kind, field) in [
            (ResourceType::Cluster, "clusters"),
            (ResourceType::Endpoint, "endpoints"),
            (ResourceType::Listener, "listeners"),
            (ResourceType::Route, "routes"),
        ] {
            for resource in recording["resources"][field].as_array().into_iter().flatten() {
                let bytes = match kind {
                    ResourceType::Cluster => bytes::<Cluster>(resource),
                    ResourceType::Endpoint => bytes::<ClusterLoadAssignment>(resource),
                    ResourceType::Listener => bytes::<Listener>(resource),
                    _ => bytes::<RouteConfiguration>(resource),
                };
                let count = counts.entry(kind).or_default();
                count.0 += 1;
                if let Err(reason) = bytes.and_then(|bytes| compiler.compile(kind, &bytes)) {
                    count.1 += 1;
                    let place = format!("{} {}", file.display(), resource["name"]);
                    refused.entry(kind_of(&reason)).or_insert((0, place)).0 += 1;
                }
            }
        }
    }
    for (kind, (all, refused)) in &counts {
        println!("{kind}: {all} resources, {refused} refused");
    }
    for (reason, (count, first)) in &refused {
        println!("{count} x {reason} (first: {first})");
    }
    // What is refused is something that is not built, never something that is read wrongly.
    let not_built = |reason: &str| {
        let signs = [
            "not supported by mesh-node",
            "@type",
            "must be the last filter of its chain",
            // A listener inside the process (HBONE) has none.
            "listener.address: is required",
        ];
        signs.iter().any(|sign| reason.contains(sign))
    };
    let wrong: Vec<_> = refused.keys().filter(|reason| !not_built(reason)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
