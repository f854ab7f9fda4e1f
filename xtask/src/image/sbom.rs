//! The bill of materials of a program: every crate that is linked into it, as CycloneDX 1.5 JSON, from what Cargo
//! resolved. It must not guess: what Cargo does not say is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::tree;

/// The bill of the package `root`.
///
/// # Errors
/// When Cargo does not resolve the workspace as locked.
pub fn of(root: &str) -> Result<Vec<u8>> {
    let mut cargo = Command::new(tree::cargo());
    cargo.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &host()?]);
    let output = cargo.current_dir(tree::root()).output().context("could not start cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    Ok(serde_json::to_vec_pretty(&bill(&metadata, root)?)?)
}

fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("could not start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    Ok(host.to_owned())
}

fn bill(metadata: &Value, root: &str) -> Result<Value> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    // What is linked: not what only builds or tests it.
    let linked = |dep: &Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
    let edges: BTreeMap<String, Vec<String>> = list(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            let deps = list(&node["deps"]).into_iter().filter(linked).map(|dep| text(&dep["pkg"]));
            (text(&node["id"]), deps.collect())
        })
        .collect();
    let start = packages.iter().find(|(_, package)| package["name"] == root && package["source"].is_null());
    let (start, _) = start.with_context(|| format!("the workspace has no package {root}"))?;
    let (mut seen, mut left) = (BTreeSet::new(), vec![start.clone()]);
    while let Some(id) = left.pop() {
        if seen.insert(id.clone()) {
            left.extend(edges.get(&id).into_iter().flatten().cloned());
        }
    }
    let url = |package: &Value| format!("pkg:cargo/{}@{}", text(&package["name"]), text(&package["version"]));
    let reference = |id: &String| packages.get(id).map(url);
    let component = |package: &Value, kind: &str| {
        let mut component = json!({
            "type": kind, "bom-ref": url(package), "name": package["name"], "version": package["version"],
            "purl": url(package),
        });
        if let Some(license) = package["license"].as_str() {
            component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
        }
        component
    };
    let components: Vec<Value> = seen
        .iter()
        .filter(|id| *id != start)
        .filter_map(|id| packages.get(id))
        .map(|package| component(package, "library"))
        .collect();
    let dependencies: Vec<Value> = seen
        .iter()
        .map(|id| {
            let on: Vec<_> = edges.get(id).into_iter().flatten().filter_map(reference).collect();
            json!({ "ref": reference(id), "dependsOn": on })
        })
        .collect();
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": { "component": component(&packages[start], "application") },
        "components": components, "dependencies": dependencies,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bill_names_what_is_linked_into_the_node_and_not_what_tests_it() {
        let bill: Value = serde_json::from_slice(&of("mesh-node").unwrap()).unwrap();
        let names: BTreeSet<&str> =
            bill["components"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
        for name in ["mesh-common", "mesh-xds", "tokio", "rustls"] {
            assert!(names.contains(name), "{name} is missing");
        }
        for name in ["proptest", "rcgen", "xtask"] {
            assert!(!names.contains(name), "{name} is not linked into it");
        }
        assert_eq!(bill["metadata"]["component"]["name"], "mesh-node");
        let refs: BTreeSet<&str> =
            bill["components"].as_array().unwrap().iter().filter_map(|c| c["bom-ref"].as_str()).collect();
        assert_eq!(refs.len(), bill["components"].as_array().unwrap().len(), "each once");
    }
}
