//! `cargo xtask test kube`: mesh-node on a real Kubernetes cluster: the one that `KUBECONFIG` names, or one that is made
//! on this machine with the scripts beside the repository.
//!
//! Makes the images, gives them to the cluster, and runs the tests of `tests/tests/kube`. It must not know what they
//! check. For a cluster of one's own: `MESH_KUBE_LOAD` is a shell command that gives the archive `$ARCHIVE` with the
//! image `$IMAGE` to every node (kind: `kind load image-archive $ARCHIVE`), `MESH_KUBE_ON_NODE` one that runs its
//! arguments on the node `$NODE` (kind: `docker exec $NODE`).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::image::{self, Image};
use crate::test::Outcome;
use crate::{conformance, setup, test, tree};

const SCRIPTS: &str = "../shared/kube";
const FOLDER: &str = ".local/kube";
/// Programs of the cluster, in the order in which a cold build is the shortest.
const PROGRAMS: [&str; 6] =
    ["kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubectl", "kube-apiserver"];
/// What the tests run in pods.
const TESTS_IMAGE: &str = "localhost/mesh-tests:1";
/// The same as mesh-node's image under another name, to update to.
const OTHER_IMAGE: &str = "localhost/mesh-node:other";
/// As istiod's chart asks for it.
const ISTIOD_IMAGE: &str = "localhost/pilot:1-distroless";
/// The version of helm that is built where there is none.
const HELM: &str = "helm.sh/helm/v3/cmd/helm@v3.21.4";

/// Runs the suite; `filter` is a part of the names of its tests.
pub fn run(filter: Option<&str>) -> Result<Outcome> {
    let Some(cluster) = Cluster::find()? else { return Ok(Outcome::Skipped) };
    test::build_programs()?;
    cluster.prepare()?;
    let outcome = tests(&cluster, filter);
    cluster.end()?;
    outcome.map(|()| Outcome::Run)
}

fn tests(cluster: &Cluster, filter: Option<&str>) -> Result<()> {
    let folder = tree::target_dir().join("image");
    let programs = tree::profile_dir("dev");
    let files = folder.join("mesh-node.files");
    image::mesh_node(&files, &programs.join("mesh-node"))?;
    for name in [image::default_name(), OTHER_IMAGE.to_owned()] {
        let entrypoint = &["/usr/bin/mesh-node"];
        cluster.load(&image(&name, &files, entrypoint, "0:0"), &folder)?;
    }
    let files = folder.join("mesh-tests.files");
    image::begin(&files)?;
    for program in ["mesh-peer", "bookinfo"] {
        image::add_program(&files, &programs.join(program), program)?;
    }
    let entrypoint = &["/mesh-peer"];
    cluster.load(&image(TESTS_IMAGE, &files, entrypoint, "0:0"), &folder)?;
    let istio = istio(cluster, &folder)?;
    let mut cargo = test::cargo_command();
    // What failed says so last, where one who is shown only the end of a log sees it.
    cargo.args(["test", "--workspace", "--test", "kube", "--", "--show-output", "--test-threads=1"]);
    cargo.args(filter);
    cluster.environment(&mut cargo);
    cargo.env("MESH_KUBE", "1").env("MESH_KUBE_OTHER_IMAGE", OTHER_IMAGE);
    if let Some(charts) = istio {
        cargo.env("MESH_KUBE_ISTIO_CHARTS", charts);
        let istioctl = tree::root().join(".local/go/istiod/istioctl");
        if istioctl.exists() {
            cargo.env("MESH_KUBE_ISTIOCTL", istioctl);
        }
    }
    ensure!(cargo.status().context("could not start cargo")?.success(), "the tests on Kubernetes failed");
    Ok(())
}

/// istiod as `cargo xtask conformance istiod` builds it, if it did.
fn istiod() -> PathBuf {
    tree::root().join(".local/go/istiod/pilot-discovery")
}

/// Gives the cluster istiod's image where one was built here, and returns where its charts are.
fn istio(cluster: &Cluster, folder: &Path) -> Result<Option<PathBuf>> {
    let program = istiod();
    if !program.exists() {
        return Ok(None);
    }
    let sources = tree::root().join("tests/interop/istiod");
    let charts = conformance::module(&sources, "istio.io/istio")?.join("manifests/charts");
    let files = folder.join("pilot.files");
    image::begin(&files)?;
    image::add_program(&files, &program, "usr/local/bin/pilot-discovery")?;
    let entrypoint = &["/usr/local/bin/pilot-discovery"];
    cluster.load(&image(ISTIOD_IMAGE, &files, entrypoint, "1337:1337"), folder)?;
    Ok(Some(charts))
}

/// Not compressed: it goes no further than to this machine's own cluster, or by a command of somebody's own.
fn image<'a>(name: &'a str, folder: &'a Path, entrypoint: &'a [&'a str], user: &'a str) -> Image<'a> {
    Image { name, folder, entrypoint, user, compressed: false }
}

/// Where the tests run.
enum Cluster {
    /// Somebody's own.
    Named,
    /// Made here by the scripts in this folder, with its files in the other.
    Made { scripts: PathBuf, folder: PathBuf },
}

impl Cluster {
    /// `None` after saying what is missing.
    fn find() -> Result<Option<Self>> {
        if std::env::var_os("KUBECONFIG").is_some() {
            ensure!(
                std::env::var_os("MESH_KUBE_LOAD").is_some(),
                "set MESH_KUBE_LOAD to a command that gives the archive $ARCHIVE to every node of the cluster, such as \
                 `kind load image-archive $ARCHIVE`"
            );
            return Ok(Some(Self::Named));
        }
        let scripts = tree::root().join(SCRIPTS);
        if !scripts.join("k8s.sh").exists() {
            eprintln!(
                "SKIPPED: KUBECONFIG names no cluster, and {SCRIPTS}, which makes one on this machine, is not there; \
                 with kind: KUBECONFIG=~/.kube/config MESH_KUBE_LOAD='kind load image-archive $ARCHIVE' \
                 MESH_KUBE_ON_NODE='docker exec $NODE' cargo xtask test kube"
            );
            return Ok(None);
        }
        let folder = tree::root().join(FOLDER);
        if !missing(&folder).is_empty() && !conformance::is_there("go", "version") {
            eprintln!(
                "SKIPPED: the cluster's programs are built with Go, which is not in PATH (1.26 or newer)"
            );
            return Ok(None);
        }
        Ok(Some(Self::Made { scripts, folder }))
    }

    fn prepare(&self) -> Result<()> {
        let Self::Made { scripts, folder } = self else { return Ok(()) };
        setup::run(setup::Args { kube: true, ..setup::Args::default() })?;
        let missing = missing(folder);
        if !missing.is_empty() {
            eprintln!("building {} (minutes, once; needs Go)", missing.join(", "));
            must(script(scripts, folder, "build.sh").args(missing))?;
        }
        // By its chart istiod is installed.
        if istiod().exists() {
            helm(folder)?;
        }
        must(script(scripts, folder, "k8s.sh").arg("up"))
    }

    fn end(&self) -> Result<()> {
        match self {
            Self::Made { scripts, folder } => must(script(scripts, folder, "k8s.sh").arg("wipe")),
            Self::Named => Ok(()),
        }
    }

    /// Packs an image into `folder` and gives it to every node.
    fn load(&self, image: &Image<'_>, folder: &Path) -> Result<()> {
        let archive = folder.join(image.name.replace(['/', ':'], "_")).with_extension("tar");
        image.write(&archive)?;
        let mut command = Command::new("bash");
        match self {
            Self::Named => command.args(["-c", &std::env::var("MESH_KUBE_LOAD")?]),
            Self::Made { .. } => command.args(["-euc", "for n in 1 2; do $SCRIPTS/node.sh enter $n ctr -n k8s.io images import $ARCHIVE; done >/dev/null"]),
        };
        self.environment(&mut command);
        must(command.env("IMAGE", image.name).env("ARCHIVE", &archive))
    }

    fn environment(&self, command: &mut Command) {
        let Self::Made { scripts, folder } = self else { return };
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("SCRIPTS", scripts)
            .env("WORK", folder)
            .env("KUBECONFIG", folder.join("pki/admin.conf"))
            .env("PATH", format!("{}:{path}", folder.join("bin").display()))
            .env("MESH_KUBE_ON_NODE", format!("{}/node.sh enter ${{NODE#node-}}", scripts.display()))
            .env("MESH_KUBE_DISPOSABLE", "1")
            .env("MESH_KUBE_REBOOT", format!("for what in stop start; do {}/node.sh $what ${{NODE#node-}} </dev/null >/dev/null 2>&1; done", scripts.display()));
    }
}

/// The cluster's programs that have to be built.
fn missing(folder: &Path) -> Vec<&'static str> {
    PROGRAMS.into_iter().filter(|program| !folder.join("bin").join(program).exists()).collect()
}

/// Builds helm from its Go module, once.
fn helm(folder: &Path) -> Result<()> {
    let program = folder.join("bin/helm");
    if program.exists() {
        return Ok(());
    }
    eprintln!("building helm (a minute, once; needs Go)");
    let sources = folder.join("src-helm");
    std::fs::create_dir_all(&sources)?;
    let go =
        |args: &[&str]| must(Command::new("go").args(args).env("CGO_ENABLED", "0").current_dir(&sources));
    if !sources.join("go.mod").exists() {
        go(&["mod", "init", "helm"])?;
        go(&["get", HELM])?;
    }
    let package = HELM.split('@').next().unwrap_or(HELM);
    go(&[
        "build",
        "-mod=mod",
        "-trimpath",
        "-ldflags",
        "-s -w",
        "-o",
        &program.display().to_string(),
        package,
    ])
}

fn script(scripts: &Path, folder: &Path, name: &str) -> Command {
    let mut command = Command::new("bash");
    command.arg(scripts.join(name)).env("WORK", folder);
    command
}

fn must(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("could not start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
