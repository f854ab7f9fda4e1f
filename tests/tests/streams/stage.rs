//! Plays a case over the ways that bytes can take between two pods of a node, and compares what was seen.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::mesh::{MeshConfig, MeshNode};
use mesh_tests::netns::{Node, Pod, PodSpec};
use mesh_tests::puppet::{Line, Scene};

const PORT: u16 = 9200;

pub type Case = fn(&mut Scene) -> Result<()>;

/// A difference from TCP that is known, and why it is there.
pub struct Known {
    /// As `server: recv a 1`.
    pub step: &'static str,
    /// What is seen in place of what TCP shows.
    pub answer: &'static str,
    pub reason: &'static str,
    /// Kernels differ: it may be absent.
    pub optional: bool,
}

/// What a case may see that plain TCP does not show.
#[derive(Default)]
pub struct Differences {
    /// Between no mesh and a proxy that does everything by TCP.
    pub proxied: &'static [Known],
    /// Between that proxy and one whose bytes go past TCP, from hop to hop or all the way at once.
    pub accelerated: &'static [Known],
}

/// A node with a client and a server.
pub struct Stage {
    pub node: Node,
    pub client: Pod,
    pub server: Pod,
}

impl Stage {
    pub fn new() -> Result<Stage> {
        Stage::with(|spec| spec)
    }

    pub fn with(spec: fn(PodSpec) -> PodSpec) -> Result<Stage> {
        let node = Node::new("node", 1)?;
        let client = node.pod_with(spec(PodSpec::new("client")))?;
        let server = node.pod_with(spec(PodSpec::new("server")))?;
        Ok(Stage { node, client, server })
    }

    /// A proxy for nobody yet, by TCP.
    pub fn mesh(&self) -> Result<MeshNode> {
        MeshNode::start(&self.node, &MeshConfig::default(), &[])
    }

    pub fn enrol(&self, mesh: &mut MeshNode) -> Result<()> {
        mesh.enrol(&[&self.client, &self.server])
    }

    pub fn scene(&self) -> Result<Scene> {
        let to = SocketAddr::new(self.server.v4().into(), PORT);
        Scene::new(&self.client, self.client.v4().into(), &self.server, to)
    }

    fn play(&self, case: Case) -> Result<Vec<Line>> {
        let mut scene = self.scene()?;
        let outcome = case(&mut scene);
        let text = || {
            scene.lines.iter().map(|line| format!("{} -> {}\n", line.step, line.answer)).collect::<String>()
        };
        outcome.with_context(|| format!("after:\n{}", text()))?;
        Ok(scene.lines)
    }

    /// Switches acceleration on, and makes connections until one is accelerated all the way.
    pub fn accelerate(&self, mesh: &MeshNode) -> Result<()> {
        switch(mesh, true)?;
        let mut scene = self.scene()?;
        for _ in 0..20 {
            let before = mesh.count("accel", "accelerated")?;
            scene.open("a")?;
            scene.both("exchange a 10 10", "exchange a 10 10")?;
            scene.both("exchange a 10 10", "exchange a 10 10")?;
            scene.client("close a")?;
            scene.server("recv a 1")?;
            scene.server("close a")?;
            if mesh.count("accel", "accelerated")? >= before + 3.0 {
                return Ok(());
            }
        }
        bail!("nothing was accelerated:\n{}", mesh.get("/acceleration")?.1)
    }
}

pub fn switch(mesh: &MeshNode, on: bool) -> Result<()> {
    let enable = if on { "on" } else { "off" };
    let (status, text) = mesh.admin("POST", &format!("/acceleration/switch?enable={enable}"))?;
    ensure!(status == 200, "the switch answers {status}: {text}");
    let wanted = format!("acceleration::{enable}\n");
    let until = Instant::now() + mesh_tests::process::deadline();
    loop {
        let page = mesh.get("/acceleration")?.1;
        if page.starts_with(&wanted) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "acceleration is not switched {enable}:\n{page}");
        std::thread::sleep(Duration::from_millis(20)); // the period of the poll
    }
}

/// Whether the kernel shows which pods splice, so that they are left on TCP by themselves; else a pod that does has to
/// be left out.
pub fn splicing_is_seen(node: &Node) -> Result<bool> {
    let mesh = MeshNode::start(node, &MeshConfig::default().accelerated(), &[])?;
    let seen = mesh.get("/acceleration")?.1.contains("test::splice::as TCP\n");
    if !seen {
        eprintln!("the kernel does not show who splices: pods that do are left out of acceleration");
    }
    Ok(seen)
}

/// A pod, left on TCP or not.
pub fn pod(node: &Node, name: &str, accelerated: bool) -> Result<Pod> {
    let spec = PodSpec::new(name);
    node.pod_with(if accelerated { spec } else { spec.annotation("mesh-node/acceleration", "off") })
}

/// Sockets that messages can be given to, what connecting ends left for accepting ends, and flows of the proxy.
pub const MAPS: [&str; 3] = ["ACCELERATED", "PAIRS", "FLOWS"];

/// Waits until nothing is left in these maps, as it must be once no connection is open.
pub fn maps_are_empty(mesh: &MeshNode, maps: &[&str]) -> Result<()> {
    let entries = |name: &str| -> Result<usize> {
        let pin = mesh.pins().join(name);
        let output =
            std::process::Command::new("bpftool").args(["map", "dump", "pinned"]).arg(&pin).output()?;
        ensure!(output.status.success(), "{}: {}", pin.display(), String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains("key")).count())
    };
    let until = Instant::now() + mesh_tests::process::deadline();
    loop {
        let left = maps.iter().map(|map| entries(map)).collect::<Result<Vec<_>>>()?;
        if left.iter().all(|entries| *entries == 0) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "entries left in {maps:?}: {left:?}");
        std::thread::sleep(Duration::from_millis(100)); // the period of the poll
    }
}

/// Plays a case without a mesh, by TCP through the proxy, past TCP, and handed off.
pub fn same_as_tcp(case: Case, differences: &Differences) -> Result<()> {
    mesh_tests::need_root!();
    let stage = Stage::new()?;
    let mut mesh = stage.mesh()?;
    let direct = stage.play(case).context("without a mesh")?;
    stage.enrol(&mut mesh)?;
    let by_tcp = stage.play(case).context("by TCP through the proxy")?;
    compare("through the proxy", &direct, &by_tcp, differences.proxied)?;
    stage.accelerate(&mesh)?;
    let before = mesh.count("accel", "accelerated")?;
    let past = stage.play(case).context("past TCP")?;
    ensure!(mesh.count("accel", "accelerated")? > before, "the case was not accelerated");
    compare("past TCP", &by_tcp, &past, differences.accelerated)?;
    let (status, text) = mesh.admin("POST", "/acceleration/hand_off?enable=on")?;
    ensure!(status == 200, "the switch of hand-off answers {status}: {text}");
    let handed_off = stage.play(case).context("handed off")?;
    // What differs while it is accelerated hop by hop need not differ here.
    let known: Vec<Known> = differences.accelerated.iter().map(|k| Known { optional: true, ..*k }).collect();
    compare("handed off", &by_tcp, &handed_off, &known)
}

fn compare(what: &str, before: &[Line], after: &[Line], known: &[Known]) -> Result<()> {
    ensure!(before.len() == after.len(), "{what}: {} steps in place of {}", after.len(), before.len());
    let mut met = vec![false; known.len()];
    let mut problems = String::new();
    for (before, after) in before.iter().zip(after).filter(|(before, after)| before != after) {
        let found = known.iter().position(|k| k.step == after.step && k.answer == after.answer);
        match found {
            Some(at) => met[at] = true,
            None => {
                problems += &format!("\n{}: {:?} in place of {:?}", after.step, after.answer, before.answer)
            }
        }
    }
    ensure!(problems.is_empty(), "{what} is seen:{problems}");
    if let Some((known, _)) = known.iter().zip(met).find(|(known, met)| !met && !known.optional) {
        bail!("{what}: the known difference at {:?} is gone ({})", known.step, known.reason);
    }
    Ok(())
}
