//! What happens around the proxy's and the pods' beginning and end: fail open and closed, restart,
//! cleanup, pods that come and go, connections older than enrolment, reuse of ports.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use mesh_tests::foreign::Foreign;
use mesh_tests::mesh::MeshConfig;
use mesh_tests::need_root;
use mesh_tests::netns::{Netns, Pod};
use mesh_tests::peer::{CallOptions, Place, Server};

use crate::stage::{PORT, Stage, Taken, WAYS, Way, ends_are_true, serve, taken_during};

/// Everything in a pod's namespace that steering may change.
fn traces(pod: &Pod) -> Result<String> {
    let netns: &Netns = pod.netns();
    let mut text = String::new();
    for args in ["-4 rule show", "-6 rule show", "-4 route show table all", "-6 route show table all"] {
        text += &netns.ip_output(args)?;
    }
    let sysctls = [
        "net/ipv4/tcp_fwmark_accept",
        "net/ipv4/fwmark_reflect",
        "net/ipv6/fwmark_reflect",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/conf/lo/rp_filter",
    ];
    for key in sysctls {
        text += &format!("{key} {}\n", netns.read_sysctl(key)?);
    }
    text += &netns.tool(tc("eth0"), None)?;
    text += &pod.node().netns().tool(tc(pod.host_device()), None)?;
    Ok(text)
}

fn tc(device: &str) -> std::process::Command {
    let mut command = std::process::Command::new("tc");
    command.args(["qdisc", "show", "dev", device]);
    command
}

#[test]
fn with_the_proxy_dead_fail_closed_refuses_at_once_and_the_restart_serves() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let config = MeshConfig::default();
    let mut mesh = stage.mesh(&config, &[&stage.client, &stage.server])?;
    stage.client.call(stage.target(Way::V4))?.ok()?;
    mesh.kill_9();
    for way in WAYS {
        let call = stage.client.call_with(stage.target(way), &way.options())?;
        let errno = call.errno().with_context(|| format!("outbound, {way:?}"))?;
        assert_ne!(errno, libc::ETIMEDOUT, "refused at once, not by a time-out");
        let stranger = stage.node.pod("stranger")?;
        let call = stranger.call_with(stage.target(way), &way.options())?;
        let errno = call.errno().with_context(|| format!("inbound, {way:?}"))?;
        assert_ne!(errno, libc::ETIMEDOUT, "refused at once, not by a time-out");
        stage.node.call_with(stage.target(way), &way.options())?.ok().context("probes pass")?;
    }
    mesh.launch()?;
    for way in WAYS {
        let (call, taken) =
            taken_during(&mesh, || stage.client.call_with(stage.target(way), &way.options()))?;
        ends_are_true(&call, way.of(&stage.client), stage.target(way))?;
        assert_eq!(taken, Taken { outbound: 1, inbound: 1 }, "{way:?} after the restart");
    }
    Ok(())
}

#[test]
fn with_the_proxy_dead_fail_open_lets_connections_pass() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let config = MeshConfig::default().fail_open();
    let mut mesh = stage.mesh(&config, &[&stage.client, &stage.server])?;
    stage.client.call(stage.target(Way::V4))?.ok()?;
    mesh.kill_9();
    for way in WAYS {
        let call = stage.client.call_with(stage.target(way), &way.options())?;
        ends_are_true(&call, way.of(&stage.client), stage.target(way)).with_context(|| format!("{way:?}"))?;
    }
    mesh.launch()?;
    let (call, taken) = taken_during(&mesh, || stage.client.call(stage.target(Way::V4)))?;
    call.ok()?;
    assert_eq!(taken, Taken { outbound: 1, inbound: 1 }, "after the restart");
    Ok(())
}

#[test]
fn cleanup_after_kill_9_removes_all_of_ours_and_nothing_else() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let foreign = [
        ("connect", Foreign::connect4(stage.node.cgroup())?),
        ("sk_lookup", Foreign::sk_lookup(stage.server.netns())?),
        ("tc", Foreign::tc(stage.node.netns(), stage.client.host_device(), "ingress", 10)?),
    ];
    let before = [traces(&stage.client)?, traces(&stage.server)?];
    let mut mesh = stage.mesh(&MeshConfig::default(), &[&stage.client, &stage.server])?;
    stage.client.call(stage.target(Way::V4))?.ok()?;
    assert_ne!(
        before,
        [traces(&stage.client)?, traces(&stage.server)?],
        "steering leaves traces while it runs"
    );
    mesh.kill_9();
    mesh.cleanup()?;
    assert_eq!(before, [traces(&stage.client)?, traces(&stage.server)?]);
    assert!(!mesh.pins().exists(), "{} is gone", mesh.pins().display());
    let runs = |of: &[(&str, Foreign)]| of.iter().map(|(_, f)| f.runs()).collect::<Result<Vec<_>>>();
    let counted = runs(&foreign)?;
    for way in WAYS {
        let call = stage.client.call_with(stage.target(way), &way.options())?;
        ends_are_true(&call, way.of(&stage.client), stage.target(way))?;
    }
    for ((name, _), (now, then)) in foreign.iter().zip(runs(&foreign)?.iter().zip(&counted)) {
        assert!(now > then, "the foreign {name} program still runs");
    }
    mesh.cleanup().context("a second cleanup finds nothing and says so without failing")
}

#[test]
fn foreign_programs_attached_before_and_after_ours_still_run() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let attach = |priority: u16| -> Result<Vec<(&str, Foreign)>> {
        Ok(vec![
            ("connect", Foreign::connect4(stage.node.cgroup())?),
            ("sock_ops", Foreign::sock_ops(stage.node.cgroup())?),
            ("sk_lookup", Foreign::sk_lookup(stage.server.netns())?),
            ("tc of the pod", Foreign::tc(stage.client.netns(), "eth0", "egress", priority)?),
            (
                "tc of the host",
                Foreign::tc(stage.node.netns(), stage.client.host_device(), "ingress", priority)?,
            ),
        ])
    };
    let before = attach(10)?;
    let mesh = stage.mesh(&MeshConfig::default(), &[&stage.client, &stage.server])?;
    let after = attach(60_000)?;
    let settled = before.iter().chain(&after).map(|(_, f)| f.runs()).collect::<Result<Vec<_>>>()?;
    let (call, taken) = taken_during(&mesh, || stage.client.call(stage.target(Way::V4)))?;
    ends_are_true(&call, Way::V4.of(&stage.client), stage.target(Way::V4))?;
    assert_eq!(taken, Taken { outbound: 1, inbound: 1 }, "ours run too");
    for (i, (name, program)) in before.iter().chain(&after).enumerate() {
        let when = if i < before.len() { "before" } else { "after" };
        assert!(program.runs()? > settled[i], "the {name} program attached {when} ours runs");
    }
    Ok(())
}

#[test]
fn pods_that_come_and_go_do_not_disturb_64_connections_of_others() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let mut mesh = stage.mesh(&MeshConfig::default(), &[&stage.client, &stage.server])?;
    let held = stage.client.hold(stage.target(Way::V4), 64)?;
    for round in 0..8 {
        let guest = stage.node.pod("guest")?;
        let _servers = serve(&guest, "guest")?;
        mesh.enrol(&[&stage.client, &stage.server, &guest])?;
        let to = SocketAddr::new(Way::V4.of(&guest), PORT);
        let (call, taken) = taken_during(&mesh, || stage.client.call(to))?;
        call.ok().with_context(|| format!("round {round}"))?;
        assert_eq!(taken, Taken { outbound: 1, inbound: 1 }, "round {round}");
        mesh.enrol(&[&stage.client, &stage.server])?;
    }
    assert!(held.finish()?.all_ok()? > 64);
    Ok(())
}

#[test]
fn connections_older_than_enrolment_go_on_where_they_may_pass() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let config = MeshConfig::default();
    let mut mesh = stage.mesh(&config, &[])?;
    let mut sessions =
        [stage.client.session(stage.target(Way::V4))?, stage.client.session(stage.target(Way::V6))?];
    mesh.enrol(&[&stage.client, &stage.server])?;
    for session in &mut sessions {
        assert_eq!(session.exchange("still here")?, "still here");
    }
    mesh.wait_count("tc_guard", "passed_older", 1.0)?;
    let (call, taken) = taken_during(&mesh, || stage.client.call(stage.target(Way::V4)))?;
    call.ok()?;
    assert_eq!(taken, Taken { outbound: 1, inbound: 1 }, "new connections are steered");
    Ok(())
}

#[test]
fn connections_older_than_enrolment_are_reset_where_they_may_not_pass() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let config = MeshConfig::default().refuse_older_connections();
    let mut mesh = stage.mesh(&config, &[])?;
    let mut sessions =
        [stage.client.session(stage.target(Way::V4))?, stage.client.session(stage.target(Way::V6))?];
    mesh.enrol(&[&stage.client])?;
    for session in &mut sessions {
        let outcome = session.exchange("still here");
        assert!(outcome.is_err(), "the old connection went on: {outcome:?}");
    }
    assert!(mesh.count("tc_guard", "refused_older")? >= 2.0);
    let (call, taken) = taken_during(&mesh, || stage.client.call(stage.target(Way::V4)))?;
    call.ok()?;
    assert_eq!(taken, Taken { outbound: 1, inbound: 0 }, "new connections are steered");
    Ok(())
}

#[test]
fn a_client_port_can_be_used_again_while_the_last_connection_is_in_time_wait() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    for pods in [vec![&stage.client], vec![&stage.server], vec![&stage.client, &stage.server]] {
        let mesh = stage.mesh(&MeshConfig::default(), &pods)?;
        for way in [Way::V4, Way::V6] {
            let bind = Some(SocketAddr::new(way.of(&stage.client), 41_000));
            let options = CallOptions { bind, server_closes: true, ..way.options() };
            for round in 0..5 {
                let call = stage.client.call_with(stage.target(way), &options)?;
                let seen = ends_are_true(&call, way.of(&stage.client), stage.target(way));
                seen.with_context(|| format!("{way:?}, round {round}, {} enrolled", pods.len()))?;
            }
        }
        drop(mesh);
    }
    Ok(())
}

#[test]
fn one_client_can_close_100_000_connections() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    // Five ports, because each has only 28,000 client ports, and closed ones rest for a minute.
    let ports = 9000..9005u16;
    let listen: Vec<SocketAddr> = ports.clone().map(|port| SocketAddr::from(([0u16; 8], port))).collect();
    let _server = stage.server.serve("many", Server::Report, &listen)?;
    let targets: Vec<SocketAddr> =
        ports.map(|port| SocketAddr::new(stage.server.v4().into(), port)).collect();
    let mut mesh = stage.mesh(&MeshConfig::default(), &[&stage.client, &stage.server])?;
    let (tally, taken) = taken_during(&mesh, || stage.client.churn(&targets, 100_000))?;
    assert_eq!(tally.all_ok()?, 100_000);
    assert_eq!(taken, Taken { outbound: 100_000, inbound: 100_000 });
    for reason in ["steered_outbound", "steered_inbound"] {
        assert_eq!(mesh.count("sk_lookup", reason)?, 100_000.0, "{reason}: each connection is counted once");
    }
    mesh.process()?;
    stage.client.call(stage.target(Way::V4))?.ok().context("one more")?;
    Ok(())
}
