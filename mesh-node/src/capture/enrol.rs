//! One pod: everything that is done when it is enrolled (`release.rs` undoes it).
//!
//! The order is what matters here. Listeners exist before anything can be steered to them, and what is
//! changed is on record before it is changed.

use std::net::{IpAddr, TcpListener};
use std::sync::atomic::AtomicU16;
use std::sync::{Arc, Weak, mpsc};

use mesh_common::{
    CidrKey, MAX_WORKERS, Pod, PodAddress, PortKey, SocketTag, direction, kind, listener_index, pod_flags,
    worker_listener_index,
};

use super::accel::Acceleration;
use super::bpf::Map;
use super::error::{CaptureError, PodProblem};
use super::manager::Command;
use super::netlink::{Link, Netlink, Steering};
use super::netns::{self, Gone, Namespace, PodSockets, address};
use super::pods::PodSpec;
use super::ports;
use super::programs::{CidrEntry, Maps, Programs};
use super::record::{Interface, Record, Records};
use super::release;
use super::settings::{Cidr, Settings};
use super::sysctl;
use crate::budget::Budget;
use crate::drain::Signal;
use crate::model::workload::{HandOver, SocketFactory, Workload, WorkloadLimits};
use crate::telemetry::peer::LocalPeer;

/// What enrolling needs beside the pod.
pub(super) struct Context<'a> {
    pub(super) settings: &'a Settings,
    pub(super) host: &'a Arc<Namespace>,
    pub(super) programs: &'a mut Programs,
    pub(super) maps: &'a Arc<Maps>,
    pub(super) tags: &'a Arc<Map<i32, SocketTag>>,
    pub(super) records: &'a Records,
    pub(super) workers: usize,
    pub(super) commands: &'a mpsc::Sender<Command>,
    pub(super) guard: bool,
    pub(super) tc_steering: bool,
    pub(super) sockops: bool,
    pub(super) acceleration: &'a Arc<Acceleration>,
}

/// An enrolled pod, as the manager keeps it.
pub(super) struct Enrolled {
    pub(super) spec: PodSpec,
    pub(super) cookie: u64,
    /// Device and inode of the namespace.
    pub(super) netns_id: (u64, u64),
    pub(super) workload: Arc<Workload>,
    pub(super) sockets: Weak<PodSockets>,
    /// Alive while any worker has a listener of the pod open.
    pub(super) open: Weak<()>,
}

/// The two listeners of one worker.
pub(super) struct Listeners {
    pub(super) outbound: TcpListener,
    pub(super) inbound: TcpListener,
    /// Dropped with the listeners, whoever has them.
    pub(super) open: Arc<()>,
}

/// Enrols `spec` in `slot`; `before` is the record of an earlier process that enrolled the same
/// pod. Returns one pair of listeners per worker.
///
/// # Errors
/// One problem with this pod, which is then left as it was found.
pub(super) fn enrol(
    context: &mut Context<'_>,
    slot: u32,
    spec: &PodSpec,
    before: Option<&Record>,
) -> Result<(Enrolled, Vec<Listeners>), CaptureError> {
    let result = try_enrol(context, slot, spec, before);
    if let Err(problem) = result {
        // The record says what was done; without one nothing was.
        if let Some(record) = context.records.all().iter().find(|record| record.slot == slot) {
            release::stop_steering(context.maps, record.slot, None, &spec.ips);
            release::undo_inside_maps(context.programs, context.maps, record);
            // Another enrolment in the namespace keeps what it needs there.
            if before.is_none_or(|before| before.slot == slot) {
                release::undo_outside_maps(context.host, record);
            }
        }
        context.records.remove(slot);
        return Err(problem.of(spec.display_name()));
    }
    result.map_err(|problem| problem.of(spec.display_name()))
}

fn try_enrol(
    context: &mut Context<'_>,
    slot: u32,
    spec: &PodSpec,
    before: Option<&Record>,
) -> Result<(Enrolled, Vec<Listeners>), PodProblem> {
    let namespace = Namespace::open(&spec.netns)
        .map_err(|source| PodProblem::Namespace { path: spec.netns.clone(), source })?;
    if namespace.id == context.host.id {
        return Err(PodProblem::HostNamespace(spec.netns.clone()));
    }
    let namespace = Arc::new(namespace);
    let spec = &addressed(context.host, spec, &namespace)?;
    let mut record = survey(context, slot, spec, &namespace)?;
    if let Some(before) = before {
        // What an earlier process changed reads as unchanged now; it is still ours to put back.
        record.sysctls = before.sysctls.clone();
        for (now, then) in [
            (&mut record.pod_interfaces, &before.pod_interfaces),
            (&mut record.host_interfaces, &before.host_interfaces),
        ] {
            for interface in now {
                interface.qdisc_added = then.iter().any(|i| i.index == interface.index && i.qdisc_added);
            }
        }
    }
    let write = |record: &Record| {
        context.records.write(record).map_err(|error| match error {
            CaptureError::File { source, .. } => {
                PodProblem::Setup { step: "recording what is changed", source }
            }
            other => PodProblem::Program { program: "record", reason: other.to_string() },
        })
    };
    write(&record)?;
    let cookie = netns::cookie(context.host, &namespace, context.tags)
        .map_err(PodProblem::setup("learning the cookie of the network namespace"))?;
    if let Ok(Some(other)) = context.maps.namespaces.get(&cookie)
        && other != slot
    {
        return Err(PodProblem::SharedNamespace(spec.netns.clone()));
    }

    let ephemeral = context
        .host
        .enter(&namespace, ports::ephemeral)
        .map_err(PodProblem::setup("entering the network namespace"))?
        .map_err(|(name, source)| PodProblem::Sysctl { name, source })?;
    let sockets = Arc::new(PodSockets {
        host: context.host.clone(),
        pod: namespace.clone(),
        tags: context.tags.clone(),
        cookie,
        application_mark: context.settings.application_mark(),
        maps: context.maps.clone(),
        addresses: spec.ips.clone(),
        application_ports: ports::to_application(&ephemeral),
        network_ports: ports::to_network(&ephemeral),
        // A new process does not begin with the ports that the old one's connections wait on.
        next_port: AtomicU16::new(fastrand::u16(..)),
        noted: (!context.sockops).then(Default::default),
        acceleration: context.acceleration.clone(),
        gone: Gone { slot, sender: context.commands.clone() },
    });
    let listeners = listen(context, slot, &sockets)?;
    prepare_namespace(context, &namespace, &record, spec)?;
    attach(context, &namespace, &mut record)?;
    write(&record)?;
    fill_maps(context.maps, context.settings, context.guard, slot, spec, cookie)
        .map_err(PodProblem::setup("filling the kernel maps"))?;
    let settings = context.settings;
    let limits = WorkloadLimits {
        max_connections: settings.max_connections,
        buffers: Arc::new(Budget::new(&spec.display_name(), settings.max_buffered_bytes)),
        ..WorkloadLimits::default()
    };
    let (sockets_left, open) = (Arc::downgrade(&sockets), open_of(&listeners));
    let workload = workload(settings, spec, sockets, Arc::new(limits), Arc::default());
    let netns_id = namespace.id;
    Ok((Enrolled { spec: spec.clone(), cookie, netns_id, workload, sockets: sockets_left, open }, listeners))
}

/// What tells when these are closed.
pub(super) fn open_of(listeners: &[Listeners]) -> Weak<()> {
    listeners.first().map(|listeners| Arc::downgrade(&listeners.open)).unwrap_or_default()
}

/// The pod with its addresses: where they were not told, those that its network namespace has.
fn addressed(host: &Namespace, spec: &PodSpec, namespace: &Namespace) -> Result<PodSpec, PodProblem> {
    let mut spec = spec.clone();
    if spec.ips.is_empty() {
        let step = "reading the addresses of the network namespace";
        let found = || Netlink::open()?.addresses();
        let mut found =
            host.enter(namespace, found).and_then(|found| found).map_err(PodProblem::setup(step))?;
        found.retain(|ip| !ip.is_loopback() && !address(*ip).is_link_local_v6());
        if found.is_empty() {
            return Err(PodProblem::NoAddress);
        }
        spec.ips = found;
    }
    Ok(spec)
}

/// Looks at the namespace and says what will be changed; changes nothing.
fn survey(
    context: &Context<'_>,
    slot: u32,
    spec: &PodSpec,
    namespace: &Namespace,
) -> Result<Record, PodProblem> {
    let inside = || -> std::io::Result<(Vec<Link>, Vec<IpAddr>)> {
        let mut netlink = Netlink::open()?;
        Ok((netlink.links()?, netlink.addresses()?))
    };
    let step = "reading the interfaces of the network namespace";
    let (links, addresses) =
        context.host.enter(namespace, inside).and_then(|r| r).map_err(PodProblem::setup(step))?;
    if let Some(missing) = spec.ips.iter().find(|ip| !addresses.contains(ip)) {
        return Err(PodProblem::Address(*missing));
    }
    let names: Vec<String> = links.iter().filter(|l| !l.loopback).map(|l| l.name.clone()).collect();
    let sysctls = context
        .host
        .enter(namespace, || sysctl::plan(&names))
        .map_err(PodProblem::setup(step))?
        .map_err(|(name, source)| PodProblem::Sysctl { name, source })?;
    let host_links =
        Netlink::open().and_then(|mut n| n.links()).map_err(PodProblem::setup("listing host interfaces"))?;
    let settings = context.settings;
    Ok(Record {
        slot,
        uid: spec.uid.clone(),
        pod: spec.display_name(),
        netns: spec.netns.clone(),
        netns_id: namespace.id,
        steering: Steering {
            mark: settings.mark,
            mask: settings.mark_mask & !1,
            table: settings.route_table,
            priority: settings.rule_priority,
        },
        v4: spec.ips.iter().any(IpAddr::is_ipv4),
        v6: spec.ips.iter().any(IpAddr::is_ipv6),
        sysctls,
        pod_interfaces: links.iter().filter(|l| !l.loopback).map(interface).collect(),
        host_interfaces: host_ends(spec, &links, &host_links),
    })
}

fn interface(link: &Link) -> Interface {
    Interface { name: link.name.clone(), index: link.index, filter: false, qdisc_added: false }
}

/// The host's ends of the pod's interfaces: named, or those whose other end is one of the pod's.
fn host_ends(spec: &PodSpec, pod: &[Link], host: &[Link]) -> Vec<Interface> {
    if let Some(name) = &spec.interface {
        return host.iter().filter(|link| link.name == *name).map(interface).collect();
    }
    let pairs = |theirs: &Link, ours: &Link| {
        !theirs.loopback && theirs.peer == Some(ours.index) && ours.peer == Some(theirs.index)
    };
    host.iter()
        .filter(|ours| ours.kind == "veth" && pod.iter().any(|p| pairs(p, ours)))
        .map(interface)
        .collect()
}

pub(super) fn listen(
    context: &Context<'_>,
    slot: u32,
    sockets: &Arc<PodSockets>,
) -> Result<Vec<Listeners>, PodProblem> {
    use std::os::fd::AsFd;
    let settings = context.settings;
    let mut listeners = Vec::new();
    let all_open = Arc::new(());
    for _ in 0..context.workers {
        let open = |port, kind| {
            sockets
                .listener(port, kind)
                .map_err(PodProblem::setup("opening the listeners (see outbound_port, inbound_port)"))
        };
        listeners.push(Listeners {
            outbound: open(settings.outbound_port, kind::OUTBOUND)?,
            inbound: open(settings.inbound_port, kind::INBOUND)?,
            open: all_open.clone(),
        });
    }
    // One socket stands for its whole group; the kernel spreads connections over the group.
    if let Some(first) = listeners.first() {
        let put = |direction, listener: &TcpListener| {
            let index = listener_index(slot, direction);
            context
                .maps
                .listeners
                .set_socket(index, listener.as_fd())
                .map_err(PodProblem::setup("LISTENERS map"))
        };
        put(direction::OUTBOUND, &first.outbound)?;
        put(direction::INBOUND, &first.inbound)?;
    }
    for (worker, own) in (1..=MAX_WORKERS as u16).zip(&listeners) {
        context
            .maps
            .worker_listeners
            .set_socket(worker_listener_index(slot, worker), own.inbound.as_fd())
            .map_err(PodProblem::setup("WORKER_LISTENERS map"))?;
    }
    Ok(listeners)
}

/// The way of marked packets to the loopback interface, and what the kernel needs for it.
fn prepare_namespace(
    context: &Context<'_>,
    namespace: &Namespace,
    record: &Record,
    spec: &PodSpec,
) -> Result<(), PodProblem> {
    let work = || -> Result<(), PodProblem> {
        sysctl::apply(&record.sysctls).map_err(|(name, source)| PodProblem::Sysctl { name, source })?;
        let mut netlink = Netlink::open().map_err(PodProblem::setup("netlink"))?;
        netlink.loopback_up().map_err(PodProblem::setup("bringing the loopback interface up"))?;
        for v6 in [false, true] {
            if let Some(source) = spec.ips.iter().find(|ip| ip.is_ipv6() == v6) {
                netlink
                    .add_steering(&record.steering, *source)
                    .map_err(PodProblem::setup("adding the rule and the route for steered connections"))?;
            }
        }
        Ok(())
    };
    context.host.enter(namespace, work).map_err(PodProblem::setup("entering the network namespace"))?
}

pub(super) fn attach(
    context: &mut Context<'_>,
    namespace: &Namespace,
    record: &mut Record,
) -> Result<(), PodProblem> {
    let failed = |program| move |reason| PodProblem::Program { program, reason };
    let mut own = context.programs.for_pod(record.slot).map_err(failed("kernel programs"))?;
    own.attach_sk_lookup(namespace.fd()).map_err(failed("sk_lookup"))?;
    if context.tc_steering {
        own.load_steer().map_err(failed("tc_steer"))?;
        let mut inside = || -> Result<(), String> {
            for interface in &mut record.pod_interfaces {
                own.attach_steer(interface)?;
            }
            Ok(())
        };
        let entered = context.host.enter(namespace, &mut inside);
        entered.map_err(PodProblem::setup("entering the network namespace"))?.map_err(failed("tc_steer"))?;
    }
    if context.guard {
        if record.host_interfaces.is_empty() {
            tracing::warn!(
                "pod {}: no host end of its interface was found, so nothing guards it from outside; set `interface`",
                record.pod
            );
        }
        for interface in &mut record.host_interfaces {
            context.programs.attach_guard(record.slot, interface).map_err(failed("tc_guard"))?;
            context
                .maps
                .interfaces
                .insert(&interface.index, &record.slot)
                .map_err(PodProblem::setup("INTERFACES map"))?;
        }
    }
    Ok(())
}

/// The pod becomes visible to the programs, last of all to the connect hook.
pub(super) fn fill_maps(
    maps: &Maps,
    settings: &Settings,
    guard: bool,
    slot: u32,
    spec: &PodSpec,
    cookie: u64,
) -> std::io::Result<()> {
    clear_exclusions(maps, slot);
    let mut flags = pod_flags::OUTBOUND | pod_flags::INBOUND;
    let ports = [
        (direction::OUTBOUND, &settings.exclude_outbound_ports, &spec.exclude_outbound_ports),
        (direction::INBOUND, &settings.exclude_inbound_ports, &spec.exclude_inbound_ports),
    ];
    for (direction, everywhere, here) in ports {
        for port in everywhere.iter().chain(here) {
            maps.excluded_ports.insert(&PortKey { slot, direction, port: *port }, &1)?;
            flags |= pod_flags::PORTS;
        }
    }
    let cidrs = [
        (direction::OUTBOUND, &settings.exclude_outbound_cidrs, &spec.exclude_outbound_cidrs),
        (direction::INBOUND, &settings.exclude_inbound_cidrs, &spec.exclude_inbound_cidrs),
    ];
    for (direction, everywhere, here) in cidrs {
        for cidr in everywhere.iter().chain(here) {
            maps.excluded_cidrs.insert(&cidr_entry(slot, direction, cidr), &1)?;
            flags |= pod_flags::CIDRS;
        }
    }
    if guard {
        flags |= pod_flags::GUARD;
    }
    if spec.acceleration {
        flags |= pod_flags::ACCELERATE;
    }
    if spec.hand_off {
        flags |= pod_flags::HAND_OFF;
    }
    for ip in &spec.ips {
        maps.pod_addresses.insert(&PodAddress { slot, address: address(*ip) }, &1)?;
        maps.address_pods.insert(&address(*ip), &slot)?;
    }
    maps.pods.insert(&slot, &Pod { flags })?;
    maps.namespaces.insert(&cookie, &slot)
}

pub(super) fn clear_exclusions(maps: &Maps, slot: u32) {
    for key in maps.excluded_ports.keys().unwrap_or_default() {
        if key.slot == slot {
            let _ = maps.excluded_ports.remove(&key);
        }
    }
    for entry in maps.excluded_cidrs.keys().unwrap_or_default() {
        if entry.key.slot == slot {
            let _ = maps.excluded_cidrs.remove(&entry);
        }
    }
}

fn cidr_entry(slot: u32, direction: u16, cidr: &Cidr) -> CidrEntry {
    let mapped = if cidr.address.is_ipv4() { 96 } else { 0 };
    CidrEntry {
        prefix_bits: CidrKey::PREFIX_BITS + mapped + u32::from(cidr.bits),
        key: CidrKey { slot, direction: direction.into(), address: address(cidr.address) },
    }
}

pub(super) fn workload(
    settings: &Settings,
    spec: &PodSpec,
    sockets: Arc<dyn SocketFactory>,
    limits: Arc<WorkloadLimits>,
    drain: Arc<Signal>,
) -> Arc<Workload> {
    let ip = spec.ips.first().map(IpAddr::to_string).unwrap_or_default();
    let owner = spec.details.owner(&spec.name, &spec.namespace, &spec.labels);
    Arc::new(Workload {
        uid: spec.uid.as_str().into(),
        namespace: spec.namespace.as_str().into(),
        name: spec.name.as_str().into(),
        service_account: spec.service_account.as_str().into(),
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        details: spec.details.clone(),
        peer: Arc::new(LocalPeer::of_pod(&spec.name, &spec.namespace, &ip, &spec.labels, owner)),
        ips: spec.ips.clone(),
        sockets,
        limits,
        hand_over: hand_over(settings, spec),
        drain,
    })
}

fn hand_over(settings: &Settings, spec: &PodSpec) -> HandOver {
    let cidrs = settings.exclude_inbound_cidrs.iter().chain(&spec.exclude_inbound_cidrs);
    HandOver {
        on: settings.in_memory && spec.in_memory,
        excluded_ports: [&settings.exclude_inbound_ports[..], &spec.exclude_inbound_ports].concat(),
        excluded_sources: cidrs
            .map(|cidr| crate::model::listener::Cidr { address: cidr.address, prefix_len: cidr.bits })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, peer: Option<u32>) -> Link {
        Link { index, name: name.into(), peer, kind: "veth".into(), loopback: false }
    }

    #[test]
    fn the_host_end_is_the_one_whose_other_end_is_the_pods() {
        let mut spec: PodSpec =
            serde_yaml_ng::from_str("{uid: u, name: n, namespace: s, ips: [10.0.0.1], netns: /n}").unwrap();
        let pod = [link(2, "eth0", Some(7))];
        // Number 7 of the host is the other end; number 8 has the same peer number in another pod.
        let host = [link(7, "veth7", Some(2)), link(8, "veth8", Some(2)), link(2, "eth0", None)];
        let names =
            |spec: &PodSpec| host_ends(spec, &pod, &host).into_iter().map(|i| i.name).collect::<Vec<_>>();
        assert_eq!(names(&spec), ["veth7"]);
        spec.interface = Some("veth8".into());
        assert_eq!(names(&spec), ["veth8"]);
    }

    #[test]
    fn an_ipv4_range_covers_its_addresses_in_the_mapped_form_the_programs_look_up() {
        let entry = cidr_entry(3, direction::INBOUND, &"10.0.0.0/8".parse().unwrap());
        assert_eq!(entry.prefix_bits, 64 + 96 + 8);
        assert_eq!(entry.key.address, address("::ffff:10.0.0.0".parse().unwrap()));
    }
}
