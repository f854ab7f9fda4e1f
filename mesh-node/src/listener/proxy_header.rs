//! The listener filter for the PROXY protocol (HAProxy's "The PROXY protocol", versions 1 and 2): before the bytes of a
//! client, a proxy in front says who the client is and where it wanted to go.
//!
//! A header comes from an untrusted peer: parsing is pure, bounded, and may be called again with more bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncReadExt;

use crate::model::listener::ProxyProtocol;
use crate::stream::Stream;

const SIGNATURE_1: &[u8] = b"PROXY ";
const SIGNATURE_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, with its end of line.
const MAX_LINE_BYTES: usize = 107;
/// Of version 2: what stands before the addresses.
const FIXED_BYTES: usize = 16;

/// Who a client is, and where it wanted to go.
pub type Ends = (SocketAddr, SocketAddr);

/// What the first bytes of a connection say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// More bytes could change the answer.
    NeedMore,
    /// No header, or one of a version that is disallowed, which is none, as with Envoy.
    Absent,
    Wrong(&'static str),
    /// A header of so many bytes. It names nobody if the proxy speaks for itself.
    Header {
        bytes: usize,
        ends: Option<Ends>,
    },
}

/// Looks for a header of a version that is not disallowed.
pub fn parse(bytes: &[u8], filter: &ProxyProtocol) -> Verdict {
    let begins = |signature: &[u8]| {
        let shared = bytes.len().min(signature.len());
        (bytes[..shared] == signature[..shared]).then_some(shared == signature.len())
    };
    match (begins(SIGNATURE_1), begins(SIGNATURE_2)) {
        (Some(true), _) if filter.versions[0] => line(bytes),
        (_, Some(true)) if filter.versions[1] => binary(bytes),
        (Some(false), _) if filter.versions[0] => Verdict::NeedMore,
        (_, Some(false)) if filter.versions[1] => Verdict::NeedMore,
        _ => Verdict::Absent,
    }
}

/// Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 4000 80`, and the end of the line.
fn line(bytes: &[u8]) -> Verdict {
    let Some(end) = bytes.iter().take(MAX_LINE_BYTES).position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_LINE_BYTES {
            Verdict::NeedMore
        } else {
            Verdict::Wrong("no end of line")
        };
    };
    let Some(Ok(text)) = bytes[..end].strip_suffix(b"\r").map(std::str::from_utf8) else {
        return Verdict::Wrong("not a line of text");
    };
    let bytes = end + 1;
    let words: Vec<&str> = text.split(' ').skip(1).collect();
    let v4 = match words[..] {
        // What follows says nothing.
        ["UNKNOWN", ..] => return Verdict::Header { bytes, ends: None },
        ["TCP4", _, _, _, _] => true,
        ["TCP6", _, _, _, _] => false,
        _ => return Verdict::Wrong("neither TCP4, TCP6 nor UNKNOWN with what belongs to it"),
    };
    let address = |ip: &str, port: &str| {
        let ip = ip.parse().ok().filter(|ip: &IpAddr| ip.is_ipv4() == v4)?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        Some(SocketAddr::new(ip, port.parse().ok().filter(|_| digits)?))
    };
    match (address(words[1], words[3]), address(words[2], words[4])) {
        (Some(from), Some(to)) => Verdict::Header { bytes, ends: Some((from, to)) },
        _ => Verdict::Wrong("an address or port that is none"),
    }
}

/// Version 2: signature, version and command, family and transport, length, addresses, and more that is skipped.
fn binary(bytes: &[u8]) -> Verdict {
    let Some(fixed) = bytes.first_chunk::<FIXED_BYTES>() else { return Verdict::NeedMore };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let whole = FIXED_BYTES + length;
    let local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Verdict::Wrong("neither LOCAL nor PROXY of version 2"),
    };
    let addresses = match family {
        _ if local => 0,
        // Streams and datagrams.
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        _ => return Verdict::Wrong("a family other than IP"),
    };
    if length < addresses {
        return Verdict::Wrong("shorter than its addresses");
    }
    if bytes.len() < whole {
        return Verdict::NeedMore;
    }
    let mut rest = &bytes[FIXED_BYTES..whole];
    let ends = match addresses {
        12 => {
            let [from, to] = [(); 2].map(|()| IpAddr::V4(Ipv4Addr::from_bits(rest.get_u32())));
            Some((from, to))
        }
        36 => {
            let [from, to] = [(); 2].map(|()| IpAddr::V6(Ipv6Addr::from_bits(rest.get_u128())));
            Some((from, to))
        }
        _ => None,
    };
    let ends = ends.map(|(from, to)| {
        let [from_port, to_port] = [(); 2].map(|()| rest.get_u16());
        (SocketAddr::new(from, from_port), SocketAddr::new(to, to_port))
    });
    Verdict::Header { bytes: whole, ends }
}

/// Takes the header off a connection; what was read after it stays in `bytes`.
///
/// # Errors
/// Why the connection is not served.
pub(super) async fn take(
    io: &mut Stream,
    bytes: &mut BytesMut,
    filter: &ProxyProtocol,
) -> Result<Option<Ends>, &'static str> {
    loop {
        match parse(bytes, filter) {
            Verdict::Header { bytes: length, ends } => {
                bytes.advance(length);
                return Ok(ends);
            }
            Verdict::Absent if filter.optional => return Ok(None),
            Verdict::Absent => return Err("there is none"),
            Verdict::Wrong(why) => return Err(why),
            Verdict::NeedMore => {}
        }
        bytes.reserve(1024);
        match io.read_buf(bytes).await {
            // Too little to be a header: bytes like others.
            Ok(0) if filter.optional && !bytes.is_empty() => return Ok(None),
            Ok(0) | Err(_) => return Err("the connection ended in it"),
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: ProxyProtocol = ProxyProtocol { optional: false, versions: [true, true] };

    fn ends(from: &str, to: &str) -> Option<Ends> {
        Some((from.parse().unwrap(), to.parse().unwrap()))
    }

    fn found(header: &[u8], named: Option<Ends>) {
        for end in 0..header.len() {
            assert_eq!(parse(&header[..end], &ALL), Verdict::NeedMore, "{end} of {header:?}");
        }
        let whole = Verdict::Header { bytes: header.len(), ends: named };
        assert_eq!(parse(&[header, b"GET /"].concat(), &ALL), whole, "{header:?}");
    }

    fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        [SIGNATURE_2, &[command, family, 0, rest.len() as u8], rest].concat()
    }

    #[test]
    fn a_client_and_where_it_wanted_to_go_are_read_however_the_header_arrives() {
        found(b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 80\r\n", ends("192.0.2.1:4000", "192.0.2.2:80"));
        found(b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", ends("[2001:db8::1]:1", "[::1]:65535"));
        found(b"PROXY UNKNOWN ffff::1 whatever\r\n", None);
        found(b"PROXY UNKNOWN\r\n", None);
        let four = [192, 0, 2, 1, 192, 0, 2, 2, 1, 2, 0, 80];
        found(&version_2(0x21, 0x11, &four), ends("192.0.2.1:258", "192.0.2.2:80"));
        let more = [&four[..], &[4, 0, 1, 0]].concat();
        found(&version_2(0x21, 0x11, &more), ends("192.0.2.1:258", "192.0.2.2:80"));
        let six = [&[0; 15][..], &[1], &[0; 15], &[2], &[0, 7, 0, 8]].concat();
        found(&version_2(0x21, 0x21, &six), ends("[::1]:7", "[::2]:8"));
        found(&version_2(0x20, 0, &[]), None);
        found(&version_2(0x20, 0x11, &four), None);
    }

    #[test]
    fn what_is_no_header_is_told_from_one_that_is_wrong() {
        for absent in [&b"GET / HTTP/1.1\r\n"[..], b"PROXX", b"\r\n\r\nx", b"\x16\x03\x01"] {
            assert_eq!(parse(absent, &ALL), Verdict::Absent, "{absent:?}");
        }
        let long = [&b"PROXY UNKNOWN "[..], &[b'x'; MAX_LINE_BYTES]].concat();
        for wrong in [
            &b"PROXY TCP4 192.0.2.1 192.0.2.2 4000\r\n"[..],
            b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 80 \r\n",
            b"PROXY TCP4  192.0.2.1 192.0.2.2 4000 80\r\n",
            b"PROXY TCP4 192.0.2.1 2001:db8::1 4000 80\r\n",
            b"PROXY TCP6 192.0.2.1 192.0.2.2 4000 80\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +4000 80\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 65536\r\n",
            b"PROXY UDP4 192.0.2.1 192.0.2.2 4000 80\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 80\n",
            &long,
            &version_2(0x31, 0x11, &[0; 12]),
            &version_2(0x22, 0x11, &[0; 12]),
            &version_2(0x21, 0x13, &[0; 12]),
            &version_2(0x21, 0x31, &[0; 216]),
            &version_2(0x21, 0, &[]),
            &version_2(0x21, 0x11, &[0; 11]),
        ] {
            assert!(matches!(parse(wrong, &ALL), Verdict::Wrong(_)), "{:?}", String::from_utf8_lossy(wrong));
        }
    }

    #[test]
    fn a_header_of_a_version_that_is_disallowed_is_none() {
        let only = |versions| ProxyProtocol { optional: true, versions };
        let (one, two) = (b"PROXY UNKNOWN\r\n", version_2(0x20, 0, &[]));
        assert_eq!(parse(one, &only([false, true])), Verdict::Absent);
        assert_eq!(parse(&two, &only([true, false])), Verdict::Absent);
        assert_eq!(parse(b"PRO", &only([false, true])), Verdict::Absent);
        assert_eq!(parse(b"\r\n\r", &only([false, true])), Verdict::NeedMore);
    }
}
