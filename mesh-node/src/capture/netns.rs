//! Being inside the network namespace of a pod: for a moment, on the calling thread.
//!
//! Sockets stay where they were made, so everything the proxy sends for a workload is made here.
//! Nothing may await or return to other work while inside.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_common::{Address, FlowKey, SocketTag, kind};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::accel::Acceleration;
use super::bpf::Map;
use super::programs::Maps;
use super::{sockopt, worker};
use crate::model::workload::{HalfOfConnection, HandOff, PastTcp, SocketFactory, Trial};

/// How long a connection to an application stays noted where sockops does not forget it at its end.
const NOTED: Duration = Duration::from_secs(2);

/// A network namespace, held open.
#[derive(Debug)]
pub(super) struct Namespace {
    fd: OwnedFd,
    /// Device and inode: the same for every path to the namespace.
    pub(super) id: (u64, u64),
}

impl Namespace {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let namespace = Self { fd: file.into(), id: (metadata.dev(), metadata.ino()) };
        // Entering the own namespace again is harmless, and any other kind of file is refused.
        Self::current()?.enter(&namespace, || ())?;
        Ok(namespace)
    }

    /// The namespace with this device and inode: at `path`, or, where that was a descriptor of a process that
    /// has ended, by a process that is in it. `None` if there is none any more.
    pub(super) fn find(path: &Path, id: (u64, u64)) -> Option<Self> {
        let open = |path: &Path| {
            // Before it is opened, which other kinds of files may not like.
            let metadata = std::fs::metadata(path).ok()?;
            let same = (metadata.dev(), metadata.ino()) == id;
            same.then(|| Self::open(path).ok()).flatten().filter(|namespace| namespace.id == id)
        };
        open(path).or_else(|| {
            let processes = std::fs::read_dir("/proc").ok()?.flatten();
            let numbered = processes.filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit());
            numbered.into_iter().find_map(|process| open(&process.path().join("ns/net")))
        })
    }

    /// The namespace of the calling thread.
    pub(super) fn current() -> io::Result<Self> {
        let file = File::open("/proc/thread-self/ns/net")?;
        let metadata = file.metadata()?;
        Ok(Self { fd: file.into(), id: (metadata.dev(), metadata.ino()) })
    }

    pub(super) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Runs `work` inside `other` and comes back to `self`, which must be the thread's own.
    pub(super) fn enter<T>(&self, other: &Self, work: impl FnOnce() -> T) -> io::Result<T> {
        /// Comes back also when `work` panics.
        struct Back<'a>(&'a Namespace);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                if setns(&self.0.fd, CloneFlags::CLONE_NEWNET).is_err() {
                    // A thread that stays in a pod's namespace would open the next workload's
                    // sockets there: one pod would speak for another.
                    std::process::abort();
                }
            }
        }
        setns(&other.fd, CloneFlags::CLONE_NEWNET)?;
        let _back = Back(self);
        Ok(work())
    }
}

/// The sockets of one enrolled pod. Dropped when the last connection of the workload is gone.
#[derive(Debug)]
pub(super) struct PodSockets {
    pub(super) host: Arc<Namespace>,
    pub(super) pod: Arc<Namespace>,
    pub(super) tags: Arc<Map<i32, SocketTag>>,
    pub(super) cookie: u64,
    pub(super) application_mark: u32,
    pub(super) maps: Arc<Maps>,
    pub(super) addresses: Vec<IpAddr>,
    /// Where ports of connections to the application are taken from, see [`super::ports`].
    pub(super) application_ports: RangeInclusive<u16>,
    /// What ports of connections to the network are kept to.
    pub(super) network_ports: Option<RangeInclusive<u16>>,
    /// Counts the ports chosen here: in turn, so that one is used again as late as can be.
    pub(super) next_port: AtomicU16,
    /// Connections to the application that had to be noted here, because no sockops does; the
    /// programs need to know them until their first packet has been delivered.
    pub(super) noted: Option<Mutex<VecDeque<(Instant, FlowKey)>>>,
    pub(super) acceleration: Arc<Acceleration>,
    /// Told the slot at drop, so that what is left in the namespace goes.
    pub(super) gone: Gone,
}

/// Sends a slot when dropped.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) slot: u32,
    pub(super) sender: std::sync::mpsc::Sender<super::manager::Command>,
}

impl Drop for Gone {
    fn drop(&mut self) {
        // Without a receiver the manager has ended, and with it the reason to tell.
        let _ = self.sender.send(super::manager::Command::Gone(self.slot));
    }
}

impl PodSockets {
    fn tag(&self, kind: u16) -> SocketTag {
        SocketTag { netns: self.cookie, slot: self.gone.slot, kind, worker: worker::current() }
    }

    fn socket(&self, remote: SocketAddr, kind: u16) -> io::Result<Socket> {
        let domain = Domain::for_address(remote);
        let socket = self.host.enter(&self.pod, || tcp_socket(domain))??;
        self.tags.tag(socket.as_fd(), &self.tag(kind))?;
        Ok(socket)
    }

    /// Binds to `local` and a port of `ports` from which the pod has no connection with these two ends, and
    /// returns the port. `flow` is the connection as the programs would note it with a port.
    fn bind_in(
        &self,
        socket: &Socket,
        local: IpAddr,
        ports: &RangeInclusive<u16>,
        flow: impl Fn(u16) -> FlowKey,
    ) -> io::Result<u16> {
        // Ports in TIME_WAIT can be used again.
        socket.set_reuse_address(true)?;
        let count = ports.len().max(1) as u16;
        // All of them if need be: those of long-lived connections lie side by side.
        for _ in 0..count {
            let port = *ports.start() + self.next_port.fetch_add(1, Ordering::Relaxed) % count;
            if self.maps.flows.get(&flow(port))?.is_some() {
                continue;
            }
            match socket.bind(&SocketAddr::new(local, port).into()) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Ok(()) => return Ok(port),
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AddrNotAvailable.into())
    }

    /// Binds to the client's address and a port that no connection from there to `remote` has.
    fn bind_client(&self, socket: &Socket, client: IpAddr, remote: SocketAddr) -> io::Result<()> {
        let flow = |port| FlowKey {
            slot: self.gone.slot,
            local: address(remote.ip()),
            remote: address(client),
            local_port: remote.port(),
            remote_port: port,
        };
        let port = self.bind_in(socket, client, &self.application_ports, flow)?;
        self.note(flow(port))
    }

    /// Keeps the kernel's choice of a port to those for the network.
    fn keep_to(&self, socket: &Socket, remote: SocketAddr, ports: &RangeInclusive<u16>) -> io::Result<()> {
        let range =
            i32::from_ne_bytes((u32::from(*ports.end()) << 16 | u32::from(*ports.start())).to_ne_bytes());
        match sockopt::set(socket, libc::IPPROTO_IP, sockopt::IP_LOCAL_PORT_RANGE, range) {
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {}
            other => return other,
        }
        // Before Linux 6.3 the choice is made here.
        let own = self.addresses.iter().find(|ip| ip.is_ipv4() == remote.is_ipv4()).copied();
        let flow = |port| FlowKey {
            slot: self.gone.slot,
            local: own.map_or(Address([0; 4]), address),
            remote: address(remote.ip()),
            local_port: port,
            remote_port: remote.port(),
        };
        let any: IpAddr =
            if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.bind_in(socket, any, ports, flow).map(drop)
    }

    /// Notes a connection to the application where sockops cannot, and forgets those long begun.
    fn note(&self, flow: FlowKey) -> io::Result<()> {
        let Some(noted) = &self.noted else { return Ok(()) };
        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while let Some((_, old)) = noted.pop_front_if(|(at, _)| now - *at > NOTED) {
            self.maps.flows.remove(&old)?;
        }
        self.maps.flows.insert(&flow, &kind::APPLICATION.into())?;
        noted.push_back((now, flow));
        Ok(())
    }

    /// A listener inside the pod, one of a group that shares the port. Bound to the loopback
    /// address: only `sk_lookup` brings connections to it, of both families. (Bound to `::1` it
    /// would be for IPv6 only.)
    pub(super) fn listener(&self, port: u16, kind: u16) -> io::Result<std::net::TcpListener> {
        let v6 = || -> io::Result<Socket> {
            let socket = tcp_socket(Domain::IPV6)?;
            socket.set_only_v6(false)?;
            sockopt::set(&socket, libc::IPPROTO_IPV6, sockopt::IPV6_TRANSPARENT, 1)?;
            Ok(socket)
        };
        let bind = |socket: Socket, address: IpAddr| -> io::Result<Socket> {
            socket.set_ip_transparent_v4(true)?;
            socket.set_reuse_port(true)?;
            // Accepted sockets have the application's port. Without this, inherited, an application that is
            // started again could not listen on it while one of them is open or in TIME_WAIT.
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(SocketAddr::new(address, port)))?;
            Ok(socket)
        };
        let socket = self.host.enter(&self.pod, || match v6() {
            Ok(socket) => bind(socket, Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()),
            // A kernel without IPv6.
            Err(_) => bind(tcp_socket(Domain::IPV4)?, Ipv4Addr::LOCALHOST.into()),
        })??;
        // Before it listens, so that every accepted socket inherits the tag.
        self.tags.tag(socket.as_fd(), &self.tag(kind))?;
        socket.listen(4096)?;
        Ok(socket.into())
    }
}

impl SocketFactory for PodSockets {
    fn past_tcp(&self, socket: BorrowedFd<'_>) -> Option<PastTcp> {
        self.acceleration.gauge.get()?.past_tcp(socket)
    }

    fn hand_off(&self, half: &HalfOfConnection<'_>) -> Option<Box<dyn HandOff>> {
        self.acceleration.hand_off.get()?.half(self.gone.slot, half)
    }

    fn trial(&self, remote: SocketAddr) -> Option<Arc<dyn Trial>> {
        self.acceleration.trial(&self.maps, self.gone.slot, remote.port())
    }

    fn to_network(&self, remote: SocketAddr, source: Option<SocketAddr>) -> io::Result<Socket> {
        let socket = self.socket(remote, kind::NETWORK)?;
        match (source, &self.network_ports) {
            // The configuration's own choice.
            (Some(source), _) => socket.bind(&source.into())?,
            (None, Some(ports)) => self.keep_to(&socket, remote, ports)?,
            (None, None) => {}
        }
        Ok(socket)
    }

    fn to_application(&self, source: SocketAddr, remote: SocketAddr) -> io::Result<Socket> {
        let (source, remote) =
            (source.ip().to_canonical(), SocketAddr::new(remote.ip().to_canonical(), remote.port()));
        if source.is_ipv4() != remote.is_ipv4() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "client and application of different families",
            ));
        }
        let socket = self.socket(remote, kind::APPLICATION)?;
        socket.set_mark(self.application_mark)?;
        if source.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        } else {
            sockopt::set(&socket, libc::IPPROTO_IPV6, sockopt::IPV6_TRANSPARENT, 1)?;
        }
        self.bind_client(&socket, source, remote)?;
        Ok(socket)
    }
}

/// An address as the maps have it.
pub(super) fn address(ip: IpAddr) -> Address {
    Address::from_bytes(match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    })
}

fn tcp_socket(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
}

/// The cookie by which kernel programs tell this namespace: asked of a socket made inside it, or,
/// before Linux 5.14, learned by the connect hook.
pub(super) fn cookie(host: &Namespace, pod: &Namespace, tags: &Map<i32, SocketTag>) -> io::Result<u64> {
    let socket = host.enter(pod, || tcp_socket(Domain::IPV4))??;
    match sockopt::netns_cookie(&socket) {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {}
        other => return other,
    }
    use std::os::fd::AsRawFd;
    let fd = socket.as_raw_fd();
    tags.insert(&fd, &SocketTag { netns: 0, slot: 0, kind: kind::LEARN, worker: 0 })?;
    // The hook refuses it after writing the answer: nothing is sent. (192.0.2.0/24: RFC 5737.)
    let _ = socket.connect(&SocketAddr::from(([192, 0, 2, 1], 9)).into());
    match tags.get(&fd)? {
        Some(SocketTag { netns, .. }) if netns != 0 => Ok(netns),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "the connect hook did not tell its cookie")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_namespace_is_refused_before_anything_is_done_with_it() {
        assert!(Namespace::open(Path::new("/proc/self/status")).is_err());
        assert!(Namespace::open(Path::new("/var/run/netns/not-there")).is_err());
    }
}
