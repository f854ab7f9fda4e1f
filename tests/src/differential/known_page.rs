//! `DIFFERENCES.md` is `known.yaml` for readers.

use std::collections::BTreeMap;
use std::path::Path;

#[test]
fn differences_from_envoy_are_listed_for_readers_as_the_suite_knows_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("differential");
    let known = std::fs::read_to_string(folder.join("known.yaml")).unwrap();
    let known: BTreeMap<String, String> = serde_yaml_ng::from_str(&known).unwrap();
    let mut page = String::from(include_str!("differences.md"));
    for (case, reason) in &known {
        page.push_str(&format!("| {case} | {reason} |\n"));
    }
    let path = folder.join("DIFFERENCES.md");
    if std::env::var_os("MESH_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == page,
        "DIFFERENCES.md is old: MESH_WRITE_DOCS=1 cargo test -p mesh-tests --lib known_page"
    );
}
