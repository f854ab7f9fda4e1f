//! Resources that a real control plane sends are read, and shown as they were.
//!
//! The recordings lie beside the repository; without them the test says so and ends.

use std::path::{Path, PathBuf};

use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
use mesh_xds::prost::{Message, Name};
use mesh_xds::{Node, from_node, to_json};
use serde_json::Value;

fn recordings() -> Option<PathBuf> {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders.map(|folder| folder.join("shared/data/istiod")).find(|folder| folder.is_dir())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| {
        std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect::<Vec<_>>()
    };
    let all = entries(folder).into_iter().flat_map(|scenario| entries(&scenario));
    all.filter(|file| file.extension().is_some_and(|e| e == "json")).collect()
}

/// How many were read. Messages of extensions that Envoy does not have are left out.
fn check<T: Message + Name + Default>(file: &Path, resources: &Value) -> usize {
    let mut count = 0;
    for resource in resources.as_array().into_iter().flatten() {
        let text = resource.to_string();
        let node = Node::parse(&text).expect("JSON");
        match from_node::<T>(&node) {
            Ok(message) => {
                let shown = to_json(&message).expect("in the schema");
                assert_eq!(canonical(&shown), canonical(resource), "{}", file.display());
                count += 1;
            }
            Err(problems) => {
                for problem in problems {
                    assert!(
                        problem.message.starts_with("@type") || problem.message.starts_with("type_url"),
                        "{}: {problem}",
                        file.display()
                    );
                }
            }
        }
    }
    count
}

/// Numbers alike however they were written.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Number(n) => n.as_f64().map_or(Value::Null, Value::from),
        Value::Array(items) => items.iter().map(canonical).collect(),
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), canonical(v))).collect(),
        other => other.clone(),
    }
}

#[test]
fn what_a_control_plane_sends_is_read_and_shown_as_it_was() {
    let Some(folder) = recordings() else {
        eprintln!("skipped: no recordings of a control plane beside the repository");
        return;
    };
    let mut counts = [0; 4];
    for file in files(&folder) {
        let text = std::fs::read_to_string(&file).expect("readable");
        let recording: Value = serde_json::from_str(&text).expect("JSON");
        let resources = &recording["resources"];
        counts[0] += check::<Cluster>(&file, &resources["clusters"]);
        counts[1] += check::<ClusterLoadAssignment>(&file, &resources["endpoints"]);
        counts[2] += check::<RouteConfiguration>(&file, &resources["routes"]);
        counts[3] += check::<Listener>(&file, &resources["listeners"]);
    }
    eprintln!("read clusters, endpoints, routes, listeners: {counts:?}");
    assert!(counts[..3].iter().all(|&n| n > 100), "{counts:?}");
}
