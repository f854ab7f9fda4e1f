//! Rules, routes, links and addresses of the current network namespace, over rtnetlink.
//!
//! Only the few requests that enrolment needs; synchronous, because the calling thread is inside
//! the namespace of a pod and must not be anything else meanwhile.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use socket2::{Domain, Protocol, Socket, Type};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_DELQDISC: u16 = 37;
const RTM_GETTFILTER: u16 = 46;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE_EXCL: u16 = 0x600;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

const LOOPBACK: u32 = 1;
const RTN_LOCAL: u8 = 2;
const RT_SCOPE_HOST: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const FR_ACT_TO_TBL: u8 = 1;

/// The rule and the route that bring marked packets to the loopback interface.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Steering {
    pub(super) mark: u32,
    pub(super) mask: u32,
    pub(super) table: u32,
    pub(super) priority: u32,
}

/// An interface of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Index of the other end, in whichever namespace that is.
    pub(super) peer: Option<u32>,
    /// `veth`, `bridge`, ...; empty for physical ones.
    pub(super) kind: String,
    pub(super) loopback: bool,
}

pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// A connection to the namespace that the calling thread is in now.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW,
            Some(Protocol::from(libc::NETLINK_ROUTE)),
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    pub(super) fn loopback_up(&mut self) -> io::Result<()> {
        const IFF_UP: u32 = 1;
        let mut body = vec![0; 4];
        body.extend(LOOPBACK.to_ne_bytes());
        body.extend(IFF_UP.to_ne_bytes());
        body.extend(IFF_UP.to_ne_bytes());
        self.request(RTM_NEWLINK, NLM_F_ACK, &body).map(drop)
    }

    /// Adds the rule and the route for one family; what is there already stays. `source` is the
    /// address of the pod that connections get which choose none themselves.
    pub(super) fn add_steering(&mut self, steering: &Steering, source: IpAddr) -> io::Result<()> {
        let exists = |result: io::Result<_>| match result {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other.map(drop),
        };
        let v6 = source.is_ipv6();
        exists(self.request(
            RTM_NEWROUTE,
            NLM_F_ACK | NLM_F_CREATE_EXCL,
            &route(steering, v6, Some(source)),
        ))?;
        // The kernel takes a second equal rule, so look for ours by trying to remove it.
        let _ = self.request(RTM_DELRULE, NLM_F_ACK, &rule(steering, v6));
        exists(self.request(RTM_NEWRULE, NLM_F_ACK | NLM_F_CREATE_EXCL, &rule(steering, v6)))
    }

    /// Removes what [`Self::add_steering`] added; what is gone already is no error.
    pub(super) fn remove_steering(&mut self, steering: &Steering, v6: bool) -> io::Result<()> {
        let gone = |result: io::Result<_>| match result {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EAFNOSUPPORT)) =>
            {
                Ok(())
            }
            other => other.map(drop),
        };
        gone(self.request(RTM_DELRULE, NLM_F_ACK, &rule(steering, v6)))?;
        gone(self.request(RTM_DELROUTE, NLM_F_ACK, &route(steering, v6, None)))
    }

    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        const IFF_LOOPBACK: u32 = 8;
        let messages = self.request(RTM_GETLINK, NLM_F_DUMP, &[0; 16])?;
        Ok(messages
            .iter()
            .filter(|body| body.len() >= 16)
            .map(|body| {
                let attributes = &body[16..];
                let text = |value: &[u8]| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
                let kind = attribute(attributes, 18).and_then(|info| attribute(info, 1)).map(text);
                Link {
                    index: u32_at(body, 4),
                    name: attribute(attributes, 3).map(text).unwrap_or_default(),
                    peer: attribute(attributes, 5).filter(|v| v.len() == 4).map(|v| u32_at(v, 0)),
                    kind: kind.unwrap_or_default(),
                    loopback: u32_at(body, 8) & IFF_LOOPBACK != 0,
                }
            })
            .collect())
    }

    /// All addresses of the namespace's interfaces.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        let messages = self.request(RTM_GETADDR, NLM_F_DUMP, &[0; 8])?;
        Ok(messages
            .iter()
            .filter(|body| body.len() >= 8)
            .filter_map(|body| {
                // IFA_LOCAL is the own end of a point-to-point address; IPv6 has only IFA_ADDRESS.
                let value = attribute(&body[8..], 2).or_else(|| attribute(&body[8..], 1))?;
                match value.len() {
                    4 => <[u8; 4]>::try_from(value).ok().map(|a| IpAddr::V4(Ipv4Addr::from(a))),
                    16 => <[u8; 16]>::try_from(value).ok().map(|a| IpAddr::V6(Ipv6Addr::from(a))),
                    _ => None,
                }
            })
            .collect())
    }

    /// Removes the `clsact` queueing discipline of an interface, unless a filter is left in it.
    pub(super) fn remove_empty_clsact(&mut self, interface: u32) -> io::Result<()> {
        const CLSACT: u32 = 0xffff_fff1;
        for parent in [CLSACT + 1, CLSACT + 2] {
            if !self.request(RTM_GETTFILTER, NLM_F_DUMP, &traffic_control(interface, 0, parent))?.is_empty() {
                return Ok(());
            }
        }
        let mut body = traffic_control(interface, 0xffff_0000, CLSACT);
        push_attribute(&mut body, 1, b"clsact\0");
        self.request(RTM_DELQDISC, NLM_F_ACK, &body).map(drop)
    }

    /// Sends one request and collects the bodies of the answer.
    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        self.socket.send(&message)?;

        let mut answers = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let size = self.socket.read(&mut buffer)?;
            let mut rest = &buffer[..size];
            while rest.len() >= HEADER {
                let length = u32_at(rest, 0) as usize;
                if length < HEADER || length > rest.len() {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                let body = &rest[HEADER..length];
                match u16::from_ne_bytes([rest[4], rest[5]]) {
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        let code = if body.len() >= 4 { u32_at(body, 0) as i32 } else { -libc::EPROTO };
                        return if code == 0 {
                            Ok(answers)
                        } else {
                            Err(io::Error::from_raw_os_error(-code))
                        };
                    }
                    _ => answers.push(body.to_vec()),
                }
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}

fn rule(steering: &Steering, v6: bool) -> Vec<u8> {
    let mut body = vec![family(v6), 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL];
    body.extend(0_u32.to_ne_bytes());
    push_attribute(&mut body, 6, &steering.priority.to_ne_bytes());
    push_attribute(&mut body, 10, &steering.mark.to_ne_bytes());
    push_attribute(&mut body, 16, &steering.mask.to_ne_bytes());
    push_attribute(&mut body, 15, &steering.table.to_ne_bytes());
    body
}

fn route(steering: &Steering, v6: bool, source: Option<IpAddr>) -> Vec<u8> {
    let mut body = vec![family(v6), 0, 0, 0, 0, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL];
    body.extend(0_u32.to_ne_bytes());
    push_attribute(&mut body, 4, &LOOPBACK.to_ne_bytes());
    push_attribute(&mut body, 15, &steering.table.to_ne_bytes());
    match source {
        Some(IpAddr::V4(address)) => push_attribute(&mut body, 7, &address.octets()),
        Some(IpAddr::V6(address)) => push_attribute(&mut body, 7, &address.octets()),
        None => {}
    }
    body
}

fn traffic_control(interface: u32, handle: u32, parent: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [interface, handle, parent, 0] {
        body.extend(word.to_ne_bytes());
    }
    body
}

fn family(v6: bool) -> u8 {
    (if v6 { libc::AF_INET6 } else { libc::AF_INET }) as u8
}

fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The value of the first attribute of a type.
fn attribute(mut rest: &[u8], kind: u16) -> Option<&[u8]> {
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let found = u16::from_ne_bytes([rest[2], rest[3]]) & 0x3fff;
        if length < 4 || length > rest.len() {
            return None;
        }
        if found == kind {
            return Some(&rest[4..length]);
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again_and_cut_ones_are_not_read() {
        let mut body = Vec::new();
        push_attribute(&mut body, 3, b"eth0\0");
        push_attribute(&mut body, 5, &7_u32.to_ne_bytes());
        assert_eq!(body.len() % 4, 0);
        assert_eq!(attribute(&body, 3), Some(&b"eth0\0"[..]));
        assert_eq!(attribute(&body, 5), Some(&7_u32.to_ne_bytes()[..]));
        assert_eq!(attribute(&body, 6), None);
        assert_eq!(attribute(&body[..6], 3), None);
    }

    #[test]
    fn the_loopback_interface_of_this_namespace_is_listed() {
        let links = Netlink::open().and_then(|mut n| n.links()).unwrap();
        assert!(links.iter().any(|link| link.loopback && link.index == LOOPBACK && link.name == "lo"));
    }
}
