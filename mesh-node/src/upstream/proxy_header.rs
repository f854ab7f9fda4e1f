//! What a PROXY protocol says of a client (HAProxy's "The PROXY protocol", versions 1 and 2), for upstreams.

use std::net::{IpAddr, SocketAddr};

use crate::model::cluster::ProxyHeader;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, of a connection of somebody else or of the proxy's own.
const PROXY: u8 = 0x21;
const LOCAL: u8 = 0x20;
/// TCP over IPv4 and IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// The header for a connection from `client` to where it wanted to go; `None`: nobody asked for it, or more than one
/// do. `own`: both ends of the connection itself.
pub(super) fn header(
    version: ProxyHeader,
    client: Option<(SocketAddr, SocketAddr)>,
    own: (SocketAddr, SocketAddr),
) -> Vec<u8> {
    match (version, client) {
        (ProxyHeader::V1, client) => {
            let (from, to) = same_family(client.unwrap_or(own));
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
        }
        (ProxyHeader::V2, None) => [&SIGNATURE[..], &[LOCAL, 0, 0, 0]].concat(),
        (ProxyHeader::V2, Some(client)) => {
            let (from, to) = same_family(client);
            let mut addresses = Vec::with_capacity(36);
            for ip in [from.ip(), to.ip()] {
                match ip {
                    IpAddr::V4(ip) => addresses.extend(ip.octets()),
                    IpAddr::V6(ip) => addresses.extend(ip.octets()),
                }
            }
            addresses.extend(from.port().to_be_bytes());
            addresses.extend(to.port().to_be_bytes());
            let family = if from.is_ipv4() { TCP4 } else { TCP6 };
            [&SIGNATURE[..], &[PROXY, family, 0, addresses.len() as u8], &addresses].concat()
        }
    }
}

/// One header has addresses of one family.
fn same_family((from, to): (SocketAddr, SocketAddr)) -> (SocketAddr, SocketAddr) {
    if from.is_ipv4() == to.is_ipv4() {
        return (from, to);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    (mapped(from), mapped(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(from: &str, to: &str) -> (SocketAddr, SocketAddr) {
        (from.parse().unwrap(), to.parse().unwrap())
    }

    #[test]
    fn a_server_is_told_of_the_client_and_where_it_wanted_to_go() {
        let own = ends("10.0.0.1:5000", "10.0.0.2:80");
        let client = Some(ends("192.0.2.1:258", "192.0.2.2:80"));
        let v1 = |client| String::from_utf8(header(ProxyHeader::V1, client, own)).unwrap();
        assert_eq!(v1(client), "PROXY TCP4 192.0.2.1 192.0.2.2 258 80\r\n");
        assert_eq!(v1(None), "PROXY TCP4 10.0.0.1 10.0.0.2 5000 80\r\n");
        let six = Some(ends("[2001:db8::1]:1", "[2001:db8::2]:2"));
        assert_eq!(v1(six), "PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n");
        let mixed = Some(ends("192.0.2.1:1", "[2001:db8::2]:2"));
        assert_eq!(v1(mixed), "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n");
        let v2 = header(ProxyHeader::V2, client, own);
        assert_eq!(v2[..12], *b"\r\n\r\n\0\r\nQUIT\n");
        assert_eq!(v2[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 1, 192, 0, 2, 2, 1, 2, 0, 80]);
        assert_eq!(header(ProxyHeader::V2, None, own)[12..], [0x20, 0, 0, 0]);
        assert_eq!(header(ProxyHeader::V2, six, own).len(), 16 + 36);
    }
}
