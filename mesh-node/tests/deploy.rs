//! The files of `deploy/` are what people start from: they must be accepted as they stand, by the program itself.

use std::path::PathBuf;
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

fn deploy(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

/// What `mesh-node` with these arguments prints. It must find nothing wrong.
fn validated(args: &[String]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_mesh-node")).args(args).env_clear().output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_examples_for_a_deployment_are_valid_as_they_stand() {
    for (files, pods) in [
        ([("--bootstrap", "bootstrap.yaml"), ("--settings", "settings.yaml")], ""),
        ([("--bootstrap", "bootstrap.yaml"), ("--pods-file", "pods.yaml")], ", 2 pods"),
    ] {
        let mut args = vec!["--mode".to_owned(), "validate".to_owned()];
        for (flag, file) in files {
            args.extend([flag.to_owned(), deploy(file).display().to_string()]);
        }
        let told = validated(&args);
        let last = told.lines().last().unwrap();
        assert!(last.starts_with("configuration OK: ") && last.ends_with(pods), "{told}");
        assert_eq!(told.lines().count(), 1, "an example sets what has no effect: {told}");
    }
}

#[test]
fn the_daemon_set_starts_mesh_node_with_flags_that_it_takes() {
    let text = std::fs::read_to_string(deploy("daemonset.yaml")).unwrap();
    let documents: Vec<Value> = serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect();
    let set = documents.iter().find(|document| document["kind"] == "DaemonSet").unwrap();
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let mut args: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
    let mounted = "/etc/mesh-node/config/";
    for arg in &mut args {
        if let Some(file) = arg.strip_prefix(mounted) {
            *arg = deploy(file).display().to_string();
        }
    }
    assert_eq!(args.last().map(String::as_str), Some("run"));
    *args.last_mut().unwrap() = "validate".to_owned();
    assert!(validated(&args).contains("configuration OK: "));
}
