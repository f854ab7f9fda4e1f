//! `istioctl proxy-config … --file` on what a proxy's administration shows.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_tests::{process, run};

use crate::control::program;
use crate::rules;
use crate::stage::Stage;

/// What istioctl is asked for, and the page that it reads.
const COMMANDS: [(&str, &str); 6] = [
    ("listeners", "/config_dump"),
    ("clusters", "/config_dump"),
    ("routes", "/config_dump"),
    ("endpoints", "/clusters?format=json"),
    ("eds", "/config_dump?include_eds"),
    ("bootstrap", "/config_dump"),
];

/// Their nodes differ, and Envoy shows the endpoints' health as it is now, mesh-node as it was sent.
const NOT_COMPARED: [&str; 2] = ["bootstrap", "eds"];

/// The agent beside an Envoy, which mesh-node has no need of.
const OF_ENVOY_ALONE: &str = "sds-grpc";

/// Each table of istioctl is the same of both proxies, with a rule of each kind in force.
pub fn shows_the_same(stage: &Stage) -> Result<()> {
    let Some(istioctl) = program("MESH_ISTIOCTL") else { return Ok(()) };
    stage.rules("rule", &rules::split(50))?;
    // istioctl wants a cluster that it could ask, also where it does not.
    let kubeconfig = run::work_dir().join("nowhere.conf");
    std::fs::write(&kubeconfig, KUBECONFIG)?;
    for (what, page) in COMMANDS {
        let mut of = Vec::new();
        for side in stage.sides() {
            let file = run::work_dir().join(format!("{what}-{side:?}.json"));
            std::fs::write(&file, stage.admin(side, page)?)?;
            let table = table(&istioctl, &kubeconfig, what, &file).with_context(|| format!("{side:?}"))?;
            ensure!(table.len() > 3 || what == "bootstrap", "{side:?}: {what}: {table:?}");
            of.push(table);
        }
        if !NOT_COMPARED.contains(&what) {
            let only = |a: &Table, b: &Table| a.difference(b).cloned().collect::<Vec<_>>().join("\n");
            let (envoy, mesh) = (only(&of[0], &of[1]), only(&of[1], &of[0]));
            ensure!(of[0] == of[1], "{what}: only of Envoy:\n{envoy}\nonly of mesh-node:\n{mesh}");
        }
        eprintln!("istioctl proxy-config {what:<12} {} lines", of[0].len());
    }
    Ok(())
}

/// Lines, with one space between their columns.
type Table = BTreeSet<String>;

fn table(istioctl: &Path, kubeconfig: &Path, what: &str, file: &Path) -> Result<Table> {
    let mut command = Command::new(istioctl);
    command.arg("--kubeconfig").arg(kubeconfig).args(["proxy-config", what, "--file"]).arg(file);
    let text = process::output_of(&mut command, None)?;
    let lines = text.lines().filter(|line| !line.contains(OF_ENVOY_ALONE));
    Ok(lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
}

const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
clusters: [{name: nowhere, cluster: {server: 'http://127.0.0.1:1'}}]
users: [{name: nobody}]
contexts: [{name: nowhere, context: {cluster: nowhere, user: nobody}}]
current-context: nowhere
";
