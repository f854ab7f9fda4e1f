//! The files of `deploy/` are what people start from: they must be accepted as they stand, by the program itself, and
//! the plain manifests must be what the chart makes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
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

fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    documents
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|document| !document.is_null())
        .collect()
}

fn manifests(file: &str) -> Vec<Value> {
    documents(&std::fs::read_to_string(deploy(file)).unwrap())
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|document| document["kind"] == kind).unwrap()
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

/// Checks the configuration of a DaemonSet with the flags that it starts mesh-node with.
fn check_configuration(documents: &[Value]) {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in of_kind(documents, "ConfigMap")["data"].as_object().unwrap() {
        std::fs::write(folder.path().join(file), text.as_str().unwrap()).unwrap();
    }
    let container = &of_kind(documents, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    let args: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
    assert_eq!(args.last().map(String::as_str), Some("run"));
    // The roots of istiod's certificate come from a volume, too.
    let root = rcgen::generate_simple_self_signed(["istiod".to_owned()]).unwrap();
    std::fs::write(folder.path().join("root-cert.pem"), root.cert.pem()).unwrap();
    let here = |text: &str| {
        let folder = folder.path().display().to_string();
        text.replace("/etc/mesh-node", &folder).replace("/var/run/secrets/istio", &folder)
    };
    let bootstrap = folder.path().join("bootstrap.yaml");
    std::fs::write(&bootstrap, here(&std::fs::read_to_string(&bootstrap).unwrap())).unwrap();
    let mut args: Vec<String> = args.iter().map(|arg| here(arg)).collect();
    *args.last_mut().unwrap() = "validate".to_owned();
    let told = validated(&args);
    assert!(told.contains("configuration OK: ") && told.lines().count() == 1, "{told}");
}

#[test]
fn the_daemon_set_starts_mesh_node_with_a_configuration_that_it_takes() {
    check_configuration(&manifests("mesh-node.yaml"));
}

#[test]
fn the_daemon_set_asks_for_no_more_than_it_needs() {
    let documents = manifests("mesh-node.yaml");
    let security =
        &of_kind(&documents, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    assert_eq!((&security["privileged"], &security["readOnlyRootFilesystem"]), (&false.into(), &true.into()));
    assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
    for rule in of_kind(&documents, "ClusterRole")["rules"].as_array().unwrap() {
        let verbs: BTreeSet<&str> =
            rule["verbs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(verbs.is_subset(&BTreeSet::from(["list", "watch", "create"])), "{rule}");
    }
}

/// helm, where there is one.
fn helm() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.local/kube/bin/helm");
    let known = [built, "helm".into()];
    known
        .into_iter()
        .find(|helm| Command::new(helm).arg("version").output().is_ok_and(|out| out.status.success()))
}

fn template(helm: &Path, settings: &[&str]) -> Result<String, String> {
    let mut command = Command::new(helm);
    command
        .args(["template", "--kube-version", "1.25.0", "mesh-node"])
        .arg(deploy("helm/mesh-node"))
        .args(["--namespace", "mesh-system"]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    let output = command.output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

const MADE: &str = "# Made of deploy/helm/mesh-node; MESH_WRITE_DOCS=1 cargo test -p mesh-node --test deploy makes it again.\n";

#[test]
fn the_plain_manifests_are_those_of_the_chart() {
    let Some(helm) = helm() else {
        eprintln!("SKIPPED: that deploy/*.yaml are what the chart makes was not checked: there is no helm");
        return;
    };
    for (file, settings) in [
        ("mesh-node.yaml", &["createNamespace=true"][..]),
        ("mesh-node-cleanup.yaml", &["createNamespace=true", "cleanup=true"]),
    ] {
        let made = MADE.to_owned() + &template(&helm, settings).unwrap();
        if std::env::var_os("MESH_WRITE_DOCS").is_some() {
            std::fs::write(deploy(file), &made).unwrap();
        }
        let text = std::fs::read_to_string(deploy(file)).unwrap();
        assert!(text == made, "deploy/{file} is not what the chart makes; run with MESH_WRITE_DOCS=1");
    }
}

#[test]
fn the_chart_takes_what_its_values_offer_and_refuses_a_slip() {
    let Some(helm) = helm() else {
        eprintln!("SKIPPED: the chart's values were not checked: there is no helm");
        return;
    };
    let under_istiod = template(&helm, &["istiod.address=istiod.istio-system.svc"]).unwrap();
    check_configuration(&documents(&under_istiod));
    assert!(under_istiod.contains("virtual_sidecars: true"));
    assert!(
        under_istiod.contains("pod_token_audience: istio-ca")
            && under_istiod.contains("serviceaccounts/token")
    );
    let plain = ["istiod.address=istiod.istio-system.svc", "istiod.tls=false", "istiod.port=15010"];
    let plain = template(&helm, &plain).unwrap();
    check_configuration(&documents(&plain));
    assert!(!plain.contains("pod_token_audience") && !plain.contains("serviceaccounts"));
    for (slip, told) in
        [("settings.fail_mode=ajar", "fail_mode"), ("imagee.tag=1", "imagee"), ("istiod.port=0", "port")]
    {
        let error = template(&helm, &[slip]).unwrap_err();
        assert!(error.contains(told), "{slip}: {error}");
    }
}
