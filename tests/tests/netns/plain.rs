//! The stage itself, without a mesh: a failure here is one of the harness or of the machine.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_tests::foreign::Foreign;
use mesh_tests::kube_proxy::{KubeProxy, Service};
use mesh_tests::need_root;
use mesh_tests::netns::{Link, Node, Pod, PodSpec};
use mesh_tests::packet::{self, Segment, Shape, Sniffer};
use mesh_tests::peer::{CallOptions, Place, Server, Tally};
use mesh_tests::process;
use mesh_tests::soak::Protocol;

fn at(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    pod.addresses().map(|ip| SocketAddr::new(ip, port))
}

#[test]
fn pods_of_one_and_of_two_nodes_reach_each_other_in_both_families() -> Result<()> {
    need_root!();
    let (one, two) = (Node::new("one", 1)?, Node::new("two", 2)?);
    let _link = Link::new(&one, &two)?;
    let client = one.pod("client")?;
    let near = one.pod("near")?;
    let far = two.pod_with(PodSpec::new("far").bridged())?;
    let neighbour = two.pod_with(PodSpec::new("neighbour").bridged())?;
    for (client, server) in [(&client, &near), (&client, &far), (&neighbour, &far), (&neighbour, &near)] {
        let _server = server.serve("echo", Server::Report, &["[::]:8080".parse()?])?;
        for (i, address) in at(server, 8080).into_iter().enumerate() {
            let call = client.call(address)?;
            let seen = call.ok()?;
            assert_eq!(seen.local, address);
            assert_eq!(seen.peer.ip(), client.addresses()[i]);
            assert_eq!(call.peer, Some(address));
        }
        let mapped = CallOptions { mapped: true, ..CallOptions::default() };
        assert_eq!(client.call_with(at(server, 8080)[0], &mapped)?.ok()?.peer.ip(), IpAddr::V4(client.v4()));
        assert!(server.node().call(at(server, 8080)[0])?.ok().is_ok(), "the host reaches the pod");
    }
    Ok(())
}

fn services_work(rules: KubeProxy, network: fn(PodSpec) -> PodSpec) -> Result<()> {
    let (node, outside) = (Node::new("node", 1)?, Node::new("outside", 9)?);
    let _link = Link::outside(&node, &outside)?;
    let client = node.pod_with(network(PodSpec::new("client")))?;
    let server = node.pod_with(network(PodSpec::new("server")))?;
    let vips: [IpAddr; 2] = ["10.96.0.10".parse()?, "fd10:96::10".parse()?];
    let service = Service {
        name: "server".to_owned(),
        addresses: vips.to_vec(),
        port: 80,
        node_port: Some(30080),
        endpoints: at(&server, 8080).to_vec(),
    };
    rules.apply(&node, &[service])?;
    let _server = server.serve("server", Server::Report, &["[::]:8080".parse()?])?;
    let _outside = outside.serve("outside", Server::Report, &["[::]:9000".parse()?])?;
    for (i, vip) in vips.into_iter().enumerate() {
        let seen = client.call(SocketAddr::new(vip, 80))?;
        assert_eq!(seen.ok()?.local, at(&server, 8080)[i]);
        assert_eq!(seen.ok()?.peer.ip(), client.addresses()[i], "no masquerading between pods");
        assert!(node.call(SocketAddr::new(vip, 80))?.ok().is_ok(), "the host reaches the service");
        assert!(server.call(SocketAddr::new(vip, 80))?.ok().is_ok(), "a pod reaches itself by the service");
        let node_ip: IpAddr = if i == 0 { node.v4().into() } else { node.v6().into() };
        let node_port = SocketAddr::new(node_ip, 30080);
        assert!(outside.call(node_port)?.ok().is_ok(), "the node port from outside");
        assert!(client.call(node_port)?.ok().is_ok(), "the node port from a pod");
        let outside_ip: IpAddr = if i == 0 { outside.v4().into() } else { outside.v6().into() };
        let egress = client.call(SocketAddr::new(outside_ip, 9000))?;
        assert_eq!(egress.ok()?.peer.ip(), node_ip, "egress is masqueraded");
    }
    Ok(())
}

#[test]
fn services_by_iptables_work_without_a_mesh() -> Result<()> {
    need_root!();
    services_work(KubeProxy::Iptables, |spec| spec)?;
    services_work(KubeProxy::Iptables, PodSpec::bridged)
}

#[test]
fn services_by_nftables_work_without_a_mesh() -> Result<()> {
    need_root!();
    services_work(KubeProxy::Nftables, |spec| spec)?;
    services_work(KubeProxy::Nftables, PodSpec::bridged)
}

#[test]
fn crafted_segments_reach_a_pod_that_nothing_guards() -> Result<()> {
    need_root!();
    let node = Node::new("node", 1)?;
    let (client, server) = (node.pod("client")?, node.pod("server")?);
    let gateway = packet::mac_of(node.netns(), client.host_device())?;
    let sniffer = Sniffer::new(server.netns(), "eth0")?;
    for shape in [Shape::Plain, Shape::Options, Shape::Fragments] {
        for i in 0..2 {
            let from = SocketAddr::new(client.addresses()[i], 40_000);
            let segment = Segment { from, to: at(&server, 8080)[i], flags: packet::SYN, shape };
            packet::send(client.netns(), "eth0", gateway, &segment.packets()?)?;
            let arrived = sniffer.wait(Duration::from_secs(5), |p| {
                let v6 = p[0] >> 4 == 6;
                v6 == from.is_ipv6() && p.windows(2).any(|w| w == 40_000u16.to_be_bytes())
            })?;
            assert!(arrived.is_some(), "{shape:?} from {from}");
        }
    }
    Ok(())
}

#[test]
fn many_short_and_some_held_connections_all_succeed() -> Result<()> {
    need_root!();
    let node = Node::new("node", 1)?;
    let (client, server) = (node.pod("client")?, node.pod("server")?);
    let _server = server.serve("server", Server::First, &["[::]:8081".parse()?])?;
    let _echo = server.serve("server", Server::Report, &["[::]:8080".parse()?])?;
    let held = client.hold(at(&server, 8080)[0], 64)?;
    assert_eq!(client.churn(&at(&server, 8080), 500)?.all_ok()?, 500);
    assert!(held.finish()?.all_ok()? > 0);
    let first = CallOptions { server_first: true, ..CallOptions::default() };
    assert_eq!(client.call_with(at(&server, 8081)[0], &first)?.ok()?.name, "server");
    let mut session = client.session(at(&server, 8080)[1])?;
    assert_eq!(session.exchange("hello")?, "hello");
    assert_eq!(session.who()?.peer.ip(), IpAddr::V6(client.v6()));
    Ok(())
}

#[test]
fn foreign_programs_run_and_let_everything_pass() -> Result<()> {
    need_root!();
    let node = Node::new("node", 1)?;
    let (client, server) = (node.pod("client")?, node.pod("server")?);
    let _server = server.serve("server", Server::Report, &["[::]:8080".parse()?])?;
    let programs = [
        ("connect", Foreign::connect4(node.cgroup())?),
        ("sock_ops", Foreign::sock_ops(client.cgroup())?),
        ("sk_lookup", Foreign::sk_lookup(server.netns())?),
        ("tc of the pod", Foreign::tc(client.netns(), "eth0", "egress", 10)?),
        ("tc of the host", Foreign::tc(node.netns(), client.host_device(), "ingress", 10)?),
    ];
    client.call(at(&server, 8080)[0])?.ok()?;
    for (name, program) in &programs {
        assert!(program.runs()? > 0, "{name}");
    }
    Ok(())
}

#[test]
fn load_of_every_protocol_succeeds_without_a_mesh() -> Result<()> {
    need_root!();
    let node = Node::new("node", 1)?;
    let (client, server) = (node.pod("client")?, node.pod("server")?);
    let mut command = Command::new(process::binary("mesh-peer")?);
    command.arg("mixed");
    let mut mixed = server.start(command)?;
    assert_eq!(mixed.line()?, "listening");
    for protocol in Protocol::ALL {
        let to = SocketAddr::new(server.v4().into(), protocol.server_port());
        let mut command = Command::new(process::binary("mesh-peer")?);
        command.args(["load", "--to", &to.to_string(), "--protocol", protocol.name(), "--concurrency", "16"]);
        let mut load = client.start(command)?;
        let mut tally = Tally::default();
        while tally.exchanges < 1000 && tally.failed == 0 {
            load.send("tally")?;
            tally = serde_json::from_str(&load.line()?)?;
        }
        load.close_stdin();
        assert!(serde_json::from_str::<Tally>(&load.line()?)?.all_ok()? >= 1000, "{protocol:?}");
    }
    // Closed connections are noticed when the server's turn comes, so ask until it says none.
    let until = Instant::now() + process::deadline();
    loop {
        mixed.send("open")?;
        match mixed.line()?.as_str() {
            "0" => return Ok(()),
            open => assert!(Instant::now() < until, "the server still counts {open} open connections"),
        }
    }
}
