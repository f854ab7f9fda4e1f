//! The rules that kube-proxy and a CNI plug-in put on a node, in both of kube-proxy's forms, for a
//! few services: destination NAT of service addresses and node ports in PREROUTING and OUTPUT,
//! masquerading by mark `0x4000`, the hairpin rule, the drop of INVALID packets, and masquerading of
//! what leaves the cluster. Traffic distribution is random, without affinity.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::Result;

use crate::netns::Node;

/// Which form of kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubeProxy {
    Iptables,
    Nftables,
}

/// A service as kube-proxy sees it.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    /// Service addresses, one for each family at most.
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    pub node_port: Option<u16>,
    /// Both families; each address uses those of its own.
    pub endpoints: Vec<SocketAddr>,
}

const CLUSTER_V4: &str = "10.244.0.0/16";
const CLUSTER_V6: &str = "fd10:244::/32";
const SERVICES_V4: &str = "10.96.0.0/16";
const SERVICES_V6: &str = "fd10:96::/112";

/// One address family of the rules.
struct Family {
    v6: bool,
    cluster: &'static str,
    services: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family { v6: false, cluster: CLUSTER_V4, services: SERVICES_V4 },
    Family { v6: true, cluster: CLUSTER_V6, services: SERVICES_V6 },
];

impl Family {
    fn has(&self, address: &IpAddr) -> bool {
        address.is_ipv6() == self.v6
    }

    fn endpoints<'a>(&self, service: &'a Service) -> Vec<&'a SocketAddr> {
        service.endpoints.iter().filter(|e| self.has(&e.ip())).collect()
    }

    fn address<'a>(&self, service: &'a Service) -> Option<&'a IpAddr> {
        service.addresses.iter().find(|a| self.has(a))
    }
}

impl KubeProxy {
    /// Replaces the rules of `node` by those for `services`.
    pub fn apply(self, node: &Node, services: &[Service]) -> Result<()> {
        for family in &FAMILIES {
            match self {
                KubeProxy::Iptables => {
                    let tool = if family.v6 { "ip6tables-restore" } else { "iptables-restore" };
                    node.netns().tool(Command::new(tool), Some(&iptables(family, services)))?;
                }
                KubeProxy::Nftables => {
                    let mut command = Command::new("nft");
                    command.args(["-f", "-"]);
                    node.netns().tool(command, Some(&nftables(family, services)))?;
                }
            }
        }
        Ok(())
    }
}

fn iptables(family: &Family, services: &[Service]) -> String {
    let cluster = family.cluster;
    let mut chains = String::new();
    let mut rules = String::new();
    for (i, service) in services.iter().enumerate() {
        let endpoints = family.endpoints(service);
        let Some(address) = family.address(service) else { continue };
        let port = service.port;
        let _ = writeln!(chains, ":KUBE-SVC-{i} - [0:0]\n:KUBE-EXT-{i} - [0:0]");
        let _ = writeln!(rules, "-A KUBE-SERVICES -d {address} -p tcp --dport {port} -j KUBE-SVC-{i}");
        let _ = writeln!(
            rules,
            "-A KUBE-SVC-{i} ! -s {cluster} -d {address} -p tcp --dport {port} -j KUBE-MARK-MASQ"
        );
        if let Some(node_port) = service.node_port {
            let _ = writeln!(
                rules,
                "-A KUBE-NODEPORTS -p tcp --dport {node_port} -j KUBE-EXT-{i}\n\
                 -A KUBE-EXT-{i} -j KUBE-MARK-MASQ\n\
                 -A KUBE-EXT-{i} -j KUBE-SVC-{i}"
            );
        }
        for (j, endpoint) in endpoints.iter().enumerate() {
            let left = endpoints.len() - j;
            let odds = match left {
                1 => String::new(),
                _ => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
            };
            let _ = writeln!(chains, ":KUBE-SEP-{i}-{j} - [0:0]");
            let _ = writeln!(
                rules,
                "-A KUBE-SVC-{i} {odds}-j KUBE-SEP-{i}-{j}\n\
                 -A KUBE-SEP-{i}-{j} -s {ip} -j KUBE-MARK-MASQ\n\
                 -A KUBE-SEP-{i}-{j} -p tcp -j DNAT --to-destination {endpoint}",
                ip = endpoint.ip(),
            );
        }
    }
    let services = family.services;
    format!(
        "*nat\n\
         :KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         {chains}\
         -A PREROUTING -j KUBE-SERVICES\n\
         -A OUTPUT -j KUBE-SERVICES\n\
         -A POSTROUTING -j KUBE-POSTROUTING\n\
         -A POSTROUTING -s {cluster} ! -d {cluster} -m addrtype ! --dst-type LOCAL -j MASQUERADE\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {rules}\
         -A KUBE-SERVICES ! -d {services} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         COMMIT\n\
         *filter\n\
         :KUBE-FORWARD - [0:0]\n\
         -A FORWARD -j KUBE-FORWARD\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n"
    )
}

fn nftables(family: &Family, services: &[Service]) -> String {
    let (table, ip) = if family.v6 { ("ip6 kube-proxy", "ip6") } else { ("ip kube-proxy", "ip") };
    let cluster = family.cluster;
    let (mut chains, mut addresses, mut node_ports) = (String::new(), Vec::new(), Vec::new());
    for (i, service) in services.iter().enumerate() {
        let endpoints = family.endpoints(service);
        let Some(address) = family.address(service) else { continue };
        if endpoints.is_empty() {
            continue;
        }
        addresses.push(format!("{address} . {} : goto service-{i}", service.port));
        let choices: Vec<_> = (0..endpoints.len()).map(|j| format!("{j} : goto endpoint-{i}-{j}")).collect();
        for (j, endpoint) in endpoints.iter().enumerate() {
            let _ = writeln!(
                chains,
                "chain endpoint-{i}-{j} {{\n\
                 {ip} saddr {} jump mark-for-masquerade\n\
                 meta l4proto tcp dnat to {endpoint}\n}}",
                endpoint.ip()
            );
        }
        let _ = writeln!(
            chains,
            "chain service-{i} {{\n\
             {ip} daddr {address} {ip} saddr != {cluster} jump mark-for-masquerade\n\
             numgen random mod {} vmap {{ {} }}\n}}",
            endpoints.len(),
            choices.join(", ")
        );
        if let Some(node_port) = service.node_port {
            node_ports.push(format!("{node_port} : goto external-{i}"));
            let _ = writeln!(chains, "chain external-{i} {{\njump mark-for-masquerade\ngoto service-{i}\n}}");
        }
    }
    let map = |name: &str, kind: &str, elements: &[String]| {
        let elements = match elements {
            [] => String::new(),
            some => format!("elements = {{ {} }}\n", some.join(", ")),
        };
        format!("map {name} {{\ntype {kind} : verdict\n{elements}}}\n")
    };
    let address_type = if family.v6 { "ipv6_addr" } else { "ipv4_addr" };
    let service_ips = map("service-ips", &format!("{address_type} . inet_service"), &addresses);
    let service_nodeports = map("service-nodeports", "inet_service", &node_ports);
    format!(
        "table {table} {{}}\n\
         delete table {table}\n\
         table {table} {{\n\
         chain mark-for-masquerade {{ meta mark set meta mark or 0x4000\n}}\n\
         {chains}\
         {service_ips}\
         {service_nodeports}\
         chain services {{\n\
         {ip} daddr . tcp dport vmap @service-ips\n\
         fib daddr type local tcp dport vmap @service-nodeports\n}}\n\
         chain nat-prerouting {{\ntype nat hook prerouting priority dstnat\njump services\n}}\n\
         chain nat-output {{\ntype nat hook output priority -100\njump services\n}}\n\
         chain nat-postrouting {{\ntype nat hook postrouting priority srcnat\n\
         {ip} saddr {cluster} {ip} daddr != {cluster} fib daddr type != local masquerade\n\
         meta mark & 0x4000 == 0 return\n\
         meta mark set meta mark xor 0x4000\n\
         masquerade fully-random\n}}\n\
         chain filter-forward {{\ntype filter hook forward priority 0\nct state invalid drop\n}}\n\
         }}\n"
    )
}
