//! Transfers go on while acceleration is switched, enrolment flips, and the proxy is killed and started again:
//! `MESH_ROUNDS` times, a few by default. No connection that survives loses a byte, none is stuck, and nothing is
//! left behind.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{MeshConfig, MeshNode};
use mesh_tests::peer::{Place, Running, Server, Streams, Tally};
use mesh_tests::process::Process;
use mesh_tests::{need_root, run};

use crate::random::{STREAMS, any, at, learn, streams};
use crate::stage::{MAPS, Stage, maps_are_empty, switch};

const LINES: u16 = 9104;
/// The last transfers after a round may be large, and a stalled one is given up after a third of this.
const LIMIT: Duration = Duration::from_secs(90);

fn rounds() -> u64 {
    std::env::var("MESH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

/// A stage, its server, and transfers that go on.
struct Load {
    stage: Stage,
    mesh: MeshNode,
    to: SocketAddr,
    server: Process,
    /// What the server complained about.
    complaints: PathBuf,
    running: Option<Running>,
}

impl Load {
    fn begin(seed: u64) -> Result<Load> {
        let stage = Stage::new()?;
        let mesh = MeshNode::start(
            &stage.node,
            &MeshConfig::default().accelerated(),
            &[&stage.client, &stage.server],
        )?;
        let server = Streams::serve(&stage.server, any(STREAMS), false)?;
        let complaints = run::work_dir().join(run::unique("server.txt"));
        server.log_to(&complaints)?;
        let to = at(&stage.server, STREAMS);
        learn(&stage, to)?;
        let running = Some(streams(seed, 0).until_told(&stage.client, to)?);
        Ok(Load { stage, mesh, to, server, complaints, running })
    }

    /// Ends the transfers; none failed, and at the server none either. Then nothing is left in these maps.
    fn end(&mut self, maps: &[&str]) -> Result<Tally> {
        let tally = self.running.take().context("it ended before")?.finish(LIMIT)?;
        tally.all_ok()?;
        ensure!(tally.exchanges > 10, "there was no load: {tally:?}");
        ensure!(self.server.is_running(), "the server ended: {}", self.server.errors());
        let complaints = std::fs::read_to_string(&self.complaints)?;
        let bad = complaints.lines().find(|line| line.contains("not the one") || line.contains("stalled"));
        ensure!(bad.is_none(), "at the server: {bad:?}");
        let before = self.mesh.count("accel", "accelerated")?;
        streams(7, 10).call(&self.stage.client, self.to)?.all_ok().context("transfers after all rounds")?;
        ensure!(self.mesh.count("accel", "accelerated")? > before, "nothing is accelerated any more");
        maps_are_empty(&self.mesh, maps)?;
        Ok(tally)
    }
}

#[test]
fn switching_acceleration_again_and_again_loses_nothing() -> Result<()> {
    need_root!();
    let mut load = Load::begin(100_000)?;
    for round in 0..rounds() {
        for on in [false, true] {
            switch(&load.mesh, on).with_context(|| format!("round {round}"))?;
            std::thread::sleep(Duration::from_millis(150)); // transfers run meanwhile
        }
    }
    let tally = load.end(&MAPS)?;
    ensure!(tally.cut == 0, "{} transfers were cut off", tally.cut);
    println!("{} switches off and on: {} transfers, none cut", rounds(), tally.exchanges);
    Ok(())
}

#[test]
fn enrolling_and_releasing_again_and_again_loses_nothing() -> Result<()> {
    need_root!();
    let mut load = Load::begin(200_000)?;
    for round in 0..rounds() {
        let (client, server) = (load.stage.client.clone(), load.stage.server.clone());
        let pods = match round % 4 {
            0 => vec![],
            1 => vec![&client],
            2 => vec![&server],
            _ => vec![],
        };
        for pods in [pods, vec![&client, &server]] {
            load.mesh.enrol(&pods).with_context(|| format!("round {round}"))?;
            std::thread::sleep(Duration::from_millis(300)); // transfers run meanwhile
        }
    }
    learn(&load.stage, load.to)?; // those that were enrolled anew are not known yet
    let tally = load.end(&MAPS)?;
    ensure!(tally.cut == 0, "{} transfers were cut off", tally.cut);
    println!("{} flips of enrolment: {} transfers, none cut", rounds(), tally.exchanges);
    Ok(())
}

/// Connections through a killed proxy are cut; what is not through it goes on, and nothing waits for ever.
#[test]
fn killing_the_proxy_again_and_again_cuts_its_connections_and_no_others() -> Result<()> {
    need_root!();
    let mut load = Load::begin(300_000)?;
    // Connections that the proxy does not carry: older than the enrolment of their pods.
    let (guest, host) = (load.stage.node.pod("guest")?, load.stage.node.pod("host")?);
    let _lines = host.serve("host", Server::Report, &[any(LINES)])?;
    let held = guest.hold(at(&host, LINES), 8)?;
    let (client, server) = (load.stage.client.clone(), load.stage.server.clone());
    load.mesh.enrol(&[&client, &server, &guest, &host])?;
    for round in 0..rounds() {
        load.mesh.kill_9();
        std::thread::sleep(Duration::from_millis(100)); // new connections are refused meanwhile
        load.mesh.launch().with_context(|| format!("round {round}"))?;
        load.mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 4.0)?;
        streams(500 + round, 3)
            .call(&client, load.to)?
            .all_ok()
            .with_context(|| format!("new transfers after round {round}"))?;
    }
    let survived = held.finish()?.all_ok().context("connections that the proxy does not carry")?;
    learn(&load.stage, load.to)?;
    let tally = load.end(&MAPS)?;
    ensure!(tally.cut > 0, "no connection was cut: there was no load");
    println!(
        "{} kills: {} transfers, {} of them cut; {survived} exchanges beside the proxy",
        rounds(),
        tally.exchanges,
        tally.cut
    );
    Ok(())
}
