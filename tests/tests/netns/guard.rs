//! A pod that tries to get around the mesh with the privileges some pods have (`NET_RAW`, `NET_ADMIN`): what
//! it sends is steered, or held at the host's side of its interface, where it has no hands.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::mesh::{MeshConfig, MeshNode};
use mesh_tests::need_root;
use mesh_tests::netns::{Pod, PodSpec};
use mesh_tests::packet::{self, ACK, SYN, Segment, Shape, Sniffer};
use mesh_tests::peer::{CallOptions, ForeignCgroup, Place};

use crate::stage::{PORT, Stage, WAYS, Way, taken_during};

/// How long a packet that was wrongly let through may take to arrive; it was counted before.
const STRAGGLER: Duration = Duration::from_millis(100);

/// Sends a segment past the pod's own side and checks that the guard counts `reason` for it and that
/// nothing of it arrives at the server.
fn is_held(stage: &Stage, mesh: &mut MeshNode, segment: Segment, reason: &str) -> Result<()> {
    let sniffer = Sniffer::new(stage.server.netns(), "eth0")?;
    let node = &stage.node;
    let gateway = match stage.client.spec().network {
        mesh_tests::netns::Network::Routed => packet::mac_of(node.netns(), stage.client.host_device())?,
        mesh_tests::netns::Network::Bridged => packet::mac_of(stage.server.netns(), "eth0")?,
    };
    let before = mesh.count("tc_guard", reason)?;
    packet::send(stage.client.netns(), "eth0", gateway, &segment.packets()?)?;
    mesh.wait_count("tc_guard", reason, before + 1.0).with_context(|| format!("{segment:?}"))?;
    let port = segment.from.port().to_be_bytes();
    let arrived = sniffer.wait(STRAGGLER, |p| p.windows(2).any(|w| w == port))?;
    assert!(arrived.is_none(), "{segment:?} arrived: {arrived:?}");
    Ok(())
}

fn segment(stage: &Stage, way: Way, flags: u8, shape: Shape) -> Segment {
    let from = SocketAddr::new(way.of(&stage.client), 40_123);
    Segment { from, to: stage.target(way), flags, shape }
}

fn crafted_packets_are_held(stage: &Stage) -> Result<()> {
    let mut mesh = stage.mesh(&MeshConfig::default(), &[&stage.client])?;
    for (way, stranger) in [(Way::V4, "10.244.1.200"), (Way::V6, "fd10:244:1::c8")] {
        let stranger: IpAddr = stranger.parse()?;
        for flags in [SYN, ACK] {
            let mut spoofed = segment(stage, way, flags, Shape::Plain);
            spoofed.from.set_ip(stranger);
            is_held(stage, &mut mesh, spoofed, "spoofed")?;
        }
        is_held(stage, &mut mesh, segment(stage, way, SYN, Shape::Plain), "refused_unsteered")?;
        is_held(stage, &mut mesh, segment(stage, way, SYN, Shape::Fragments), "fragment")?;
        is_held(stage, &mut mesh, segment(stage, way, SYN, Shape::Options), held_options(way))?;
    }
    Ok(())
}

/// TCP behind IPv4 options and behind extension headers of IPv6 is dropped, each for a reason of its own.
fn held_options(way: Way) -> &'static str {
    if way == Way::V4 { "ip_options" } else { "headers" }
}

#[test]
fn crafted_packets_of_a_routed_pod_are_held() -> Result<()> {
    need_root!();
    crafted_packets_are_held(&Stage::routed()?)
}

#[test]
fn crafted_packets_of_a_bridged_pod_are_held() -> Result<()> {
    need_root!();
    crafted_packets_are_held(&Stage::bridged()?)
}

/// The call may fail or go through the proxy; it must not arrive around the proxy.
fn never_around(
    mesh: &MeshNode,
    what: &str,
    call: impl FnOnce() -> Result<mesh_tests::peer::Call>,
) -> Result<()> {
    let (call, taken) = taken_during(mesh, call)?;
    if call.ok().is_ok() {
        assert_eq!(taken.outbound, 1, "{what}: the connection went around the proxy");
    }
    Ok(())
}

#[test]
fn a_pod_that_sets_our_marks_does_not_get_around_the_mesh() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let mesh = stage.mesh(&MeshConfig::default(), &[&stage.client])?;
    for mark in [0x500, 0x501, 0xffff_ffff] {
        for way in WAYS {
            let options = CallOptions { mark: Some(mark), timeout_ms: Some(1500), ..way.options() };
            never_around(&mesh, &format!("mark {mark:#x}, {way:?}"), || {
                stage.client.call_with(stage.target(way), &options)
            })?;
        }
    }
    stage.client.call(stage.target(Way::V4))?.ok().context("without a mark")?;
    Ok(())
}

/// Removes the rules of both families that bring marked packets to the loopback interface.
fn delete_rules(pod: &Pod) -> Result<()> {
    for family in ["-4", "-6"] {
        let rules = pod.netns().ip_output(&format!("{family} rule show"))?;
        assert!(rules.contains("fwmark"), "there is a rule to delete: {rules}");
        pod.netns().ip_output(&format!("{family} rule flush"))?;
        // Without the main table nothing would leave the pod at all.
        pod.netns().ip_output(&format!("{family} rule add pref 32766 lookup main"))?;
    }
    Ok(())
}

/// The connections of such a pod are refused, not lost: its applications say so at once.
fn without_the_rule_connections_are_refused(
    config: &MeshConfig,
    from: impl Fn(&Stage) -> Box<dyn Place + '_>,
) -> Result<()> {
    let stage = Stage::routed()?;
    let mesh = stage.mesh(config, &[&stage.client])?;
    delete_rules(&stage.client)?;
    for way in WAYS {
        let (call, taken) =
            taken_during(&mesh, || from(&stage).call_with(stage.target(way), &way.options()))?;
        assert_eq!(call.errno().ok(), Some(libc::ECONNREFUSED), "{way:?}: {:?}", call.failure);
        assert_eq!(taken.outbound, 0, "{way:?}");
    }
    Ok(())
}

#[test]
fn a_pod_that_deletes_our_rule_does_not_get_around_the_mesh() -> Result<()> {
    need_root!();
    without_the_rule_connections_are_refused(&MeshConfig::default(), |stage| Box::new(stage.client.clone()))
}

#[test]
fn a_pod_that_deletes_our_rule_is_refused_with_no_guard_and_with_no_hook_too() -> Result<()> {
    need_root!();
    let no_guard = MeshConfig::default().setting("tc_guard", false);
    without_the_rule_connections_are_refused(&no_guard, |stage| Box::new(stage.client.clone()))?;
    let no_steering = MeshConfig::default().setting("tc_steering", false);
    without_the_rule_connections_are_refused(&no_steering, |stage| Box::new(stage.client.clone()))?;
    without_the_rule_connections_are_refused(&MeshConfig::default(), |stage| {
        Box::new(ForeignCgroup(&stage.client))
    })
}

#[test]
fn a_pod_that_takes_another_address_does_not_speak_from_it() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let mesh = stage.mesh(&MeshConfig::default(), &[&stage.client])?;
    for (way, address) in [(Way::V4, "10.244.1.99"), (Way::V6, "fd10:244:1::63")] {
        let address: IpAddr = address.parse()?;
        let bits = if way == Way::V4 { 32 } else { 128 };
        stage.client.netns().ip(&format!("addr add {address}/{bits} dev eth0"))?;
        stage.node.netns().ip(&format!("route add {address}/{bits} dev {}", stage.client.host_device()))?;
        let bind = Some(SocketAddr::new(address, 0));
        let options = CallOptions { bind, timeout_ms: Some(1500), ..way.options() };
        let call = stage.client.call_with(stage.target(way), &options)?;
        if let Ok(seen) = call.ok() {
            assert_ne!(seen.peer.ip(), address, "the server took the pod for another one");
        }
    }
    drop(mesh);
    Ok(())
}

#[test]
fn a_neighbour_that_is_not_enrolled_is_not_guarded() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let free = stage.node.pod_with(PodSpec::new("free"))?;
    let _mesh = stage.mesh(&MeshConfig::default(), &[&stage.client])?;
    let sniffer = Sniffer::new(stage.server.netns(), "eth0")?;
    let gateway = packet::mac_of(stage.node.netns(), free.host_device())?;
    let from = SocketAddr::new(free.v4().into(), 40_200);
    let to = SocketAddr::new(stage.server.v4().into(), PORT);
    let segment = Segment { from, to, flags: SYN, shape: Shape::Options };
    packet::send(free.netns(), "eth0", gateway, &segment.packets()?)?;
    let arrived =
        sniffer.wait(Duration::from_secs(5), |p| p.windows(2).any(|w| w == 40_200u16.to_be_bytes()))?;
    assert!(arrived.is_some());
    Ok(())
}
