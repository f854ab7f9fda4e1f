//! Listener filters that look at a connection's first bytes: TLS (server name, ALPN) and HTTP.
//!
//! They read into a buffer that is replayed to whoever serves the connection; they never answer. A buffer
//! comes from an untrusted peer: parsing is pure, bounded, and may be called again with more bytes.

use rustls::server::Acceptor;

/// Most bytes that detection looks at; Envoy's `tls_inspector` stops at 16 KiB as well.
pub const MAX_INSPECT_BYTES: usize = 16 * 1024;

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes of a connection say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detected {
    pub tls: bool,
    /// Lower case.
    pub server_name: Option<String>,
    /// ALPN offered in a ClientHello, or `h2c`, `http/1.1`, `http/1.0` from the HTTP inspector.
    pub application_protocols: Vec<String>,
}

/// A verdict on the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// More bytes could change the answer.
    NeedMore,
    Done(Detected),
}

/// Looks at `bytes` with the inspectors that are on.
pub fn inspect(bytes: &[u8], tls: bool, http: bool) -> Verdict {
    if tls {
        match client_hello(bytes) {
            TlsVerdict::NeedMore => return Verdict::NeedMore,
            TlsVerdict::Hello { server_name, alpn } => {
                return Verdict::Done(Detected { tls: true, server_name, application_protocols: alpn });
            }
            TlsVerdict::NotTls => {}
        }
    }
    if !http {
        return Verdict::Done(Detected::default());
    }
    match http_version(bytes) {
        HttpVerdict::NeedMore => Verdict::NeedMore,
        HttpVerdict::NotHttp => Verdict::Done(Detected::default()),
        HttpVerdict::Http(name) => {
            Verdict::Done(Detected { application_protocols: vec![name.to_owned()], ..Detected::default() })
        }
    }
}

enum TlsVerdict {
    NeedMore,
    NotTls,
    Hello { server_name: Option<String>, alpn: Vec<String> },
}

/// RFC 8446 section 5.1: a handshake record starts with 22, 3, and a minor version.
fn client_hello(bytes: &[u8]) -> TlsVerdict {
    const HANDSHAKE: u8 = 22;
    match bytes {
        [] => return TlsVerdict::NeedMore,
        [HANDSHAKE] => return TlsVerdict::NeedMore,
        [HANDSHAKE, 3, ..] => {}
        _ => return TlsVerdict::NotTls,
    }
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        match acceptor.read_tls(&mut rest) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return TlsVerdict::NotTls,
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let alpn = hello
                    .alpn()
                    .map(|names| names.map(|n| String::from_utf8_lossy(n).into_owned()).collect())
                    .unwrap_or_default();
                return TlsVerdict::Hello {
                    server_name: hello.server_name().map(str::to_ascii_lowercase),
                    alpn,
                };
            }
            // A record that is no ClientHello we know: whoever serves the connection answers it.
            Err(_) => return TlsVerdict::Hello { server_name: None, alpn: Vec::new() },
        }
    }
    if bytes.len() >= MAX_INSPECT_BYTES { TlsVerdict::NotTls } else { TlsVerdict::NeedMore }
}

enum HttpVerdict {
    NeedMore,
    NotHttp,
    Http(&'static str),
}

/// The HTTP/2 preface (RFC 9113 section 3.4) or an HTTP/1 request line (RFC 9112 section 3).
fn http_version(bytes: &[u8]) -> HttpVerdict {
    const MAX_METHOD_BYTES: usize = 32;
    let shared = bytes.len().min(H2_PREFACE.len());
    if bytes[..shared] == H2_PREFACE[..shared] {
        return if shared == H2_PREFACE.len() { HttpVerdict::Http("h2c") } else { HttpVerdict::NeedMore };
    }
    // RFC 9112 section 2.2: an empty line before the request line is skipped.
    let line = match bytes {
        [b'\r', b'\n', rest @ ..] => rest,
        [b'\r'] => return HttpVerdict::NeedMore,
        _ => bytes,
    };
    let method_len = line.iter().position(|b| !(b.is_ascii_uppercase() || matches!(b, b'-' | b'_')));
    match method_len {
        None if line.len() > MAX_METHOD_BYTES => return HttpVerdict::NotHttp,
        None => return HttpVerdict::NeedMore,
        Some(n) if n == 0 || n > MAX_METHOD_BYTES || line[n] != b' ' => return HttpVerdict::NotHttp,
        Some(_) => {}
    }
    match memchr::memchr(b'\n', line) {
        None if line.iter().any(|b| b.is_ascii_control() && *b != b'\r') => HttpVerdict::NotHttp,
        None if bytes.len() >= MAX_INSPECT_BYTES => HttpVerdict::NotHttp,
        None => HttpVerdict::NeedMore,
        Some(end) => {
            let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
            if line.ends_with(b" HTTP/1.1") {
                HttpVerdict::Http("http/1.1")
            } else if line.ends_with(b" HTTP/1.0") {
                HttpVerdict::Http("http/1.0")
            } else {
                HttpVerdict::NotHttp
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detected(bytes: &[u8]) -> Verdict {
        inspect(bytes, true, true)
    }

    fn http(name: &str) -> Verdict {
        Verdict::Done(Detected { application_protocols: vec![name.into()], ..Default::default() })
    }

    #[test]
    fn http_is_told_by_its_first_line() {
        assert_eq!(detected(b"GET / HTTP/1.1\r\n"), http("http/1.1"));
        assert_eq!(detected(b"PURGE-X /a b HTTP/1.0\r\nHost"), http("http/1.0"));
        assert_eq!(detected(H2_PREFACE), http("h2c"));
        assert_eq!(detected(b"GET / HTTP/2.7\r\n"), Verdict::Done(Detected::default()));
    }

    #[test]
    fn other_protocols_are_known_from_their_first_bytes() {
        for bytes in [
            &b"\x00\x00\x00\x08"[..],
            b"*1\r\n$4\r\nPING\r\n",
            b"SSH-2.0-x\r\n",
            b"\x16\x02",
            b"get / HTTP/1.1\r\n",
        ] {
            assert_eq!(detected(bytes), Verdict::Done(Detected::default()), "{bytes:?}");
        }
    }

    #[test]
    fn every_strict_prefix_of_a_request_waits_for_more() {
        let whole = b"GET /index.html HTTP/1.1\r\n";
        for end in 0..whole.len() - 1 {
            assert_eq!(detected(&whole[..end]), Verdict::NeedMore, "{end}");
        }
        for end in 0..H2_PREFACE.len() {
            assert_eq!(detected(&H2_PREFACE[..end]), Verdict::NeedMore, "{end}");
        }
    }

    #[test]
    fn a_client_hello_gives_server_name_and_protocols() {
        let mut config =
            rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
        config.alpn_protocols = vec![b"istio-h2".to_vec(), b"istio".to_vec()];
        let name = "Reviews.Example.com".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        for end in 0..hello.len() {
            assert_eq!(detected(&hello[..end]), Verdict::NeedMore, "{end}");
        }
        let expected = Detected {
            tls: true,
            server_name: Some("reviews.example.com".into()),
            application_protocols: vec!["istio-h2".into(), "istio".into()],
        };
        assert_eq!(detected(&hello), Verdict::Done(expected));
    }

    #[test]
    fn endless_first_lines_are_given_up() {
        let long = [b"GET /".as_slice(), &vec![b'a'; MAX_INSPECT_BYTES]].concat();
        assert_eq!(detected(&long), Verdict::Done(Detected::default()));
    }
}
