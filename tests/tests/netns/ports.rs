//! Clients with more ports than usual: whichever one they take, their connections are heard at once.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::mesh::MeshConfig;
use mesh_tests::need_root;
use mesh_tests::netns::Pod;
use mesh_tests::peer::{Place, Server};

use crate::stage::{Stage, Taken, Way, taken_during};

/// A range that holds every port of an untuned mesh, as operators of busy pods set it.
const WIDE: &str = "2048 60999";
/// Open connections, whose ports a new one must not meet.
const HELD: usize = 400;
/// So many that the client goes through its whole range, and the proxy through the smaller of its own.
const CONNECTIONS: u64 = 8000;

/// With this range of the client: holds connections while others come and go, and counts the SYN that were not answered.
fn all_are_heard(stage: &Stage, range: &str, pods: &[&Pod], expected: Taken) -> Result<()> {
    stage.client.netns().sysctl(&[("net/ipv4/ip_local_port_range", range)])?;
    let to = SocketAddr::new(Way::V4.of(&stage.server), 9000);
    let _server = stage.server.serve("many", Server::Report, &[to])?;
    let mesh = stage.mesh(&MeshConfig::default(), pods)?;
    let held = stage.client.hold_at(to, HELD, Duration::from_millis(500))?;
    let client = stage.client.netns();
    let before = client.tcp_counter("TCPSynRetrans")?;
    let (tally, taken) = taken_during(&mesh, || stage.client.churn(&[to], CONNECTIONS))?;
    let unheard = client.tcp_counter("TCPSynRetrans")? - before;
    assert_eq!(unheard, 0, "of {CONNECTIONS} connections some had to ask again");
    assert_eq!(tally.all_ok()?, CONNECTIONS);
    assert_eq!(taken, expected);
    held.finish()?.all_ok().context("connections that were open all the time")?;
    Ok(())
}

#[test]
fn between_enrolled_pods_no_connection_meets_the_port_of_one_to_the_application() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let both = Taken { outbound: CONNECTIONS, inbound: CONNECTIONS };
    all_are_heard(&stage, WIDE, &[&stage.client, &stage.server], both)
}

#[test]
fn a_client_outside_the_mesh_with_the_servers_range_of_ports_is_always_heard() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let wide = "8192 60999";
    stage.server.netns().sysctl(&[("net/ipv4/ip_local_port_range", wide)])?;
    all_are_heard(&stage, wide, &[&stage.server], Taken { outbound: 0, inbound: CONNECTIONS })
}
