//! Heads of messages as bytes.
//!
//! Framing headers are decided here and nowhere else: a `Transfer-Encoding` that came with the message is
//! never written.

use http::{HeaderMap, Method, StatusCode, Uri, Version, header};

use super::header_case::HeaderCase;
use super::parse::Framing;

/// What a body is, as far as framing needs to know.
#[derive(Debug, Clone, Copy)]
pub struct BodyFacts {
    /// There is none.
    pub ended: bool,
    /// Its length, when it is known exactly.
    pub exact: Option<u64>,
}

/// Writes a status line and headers. Returns how the body is framed.
///
/// `head_request`: the answer to HEAD has no body. `close` adds `connection: close`.
pub fn response(
    out: &mut Vec<u8>,
    version: Version,
    status: StatusCode,
    headers: &HeaderMap,
    body: BodyFacts,
    context: ResponseContext<'_>,
) -> Framing {
    out.extend_from_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
    out.extend_from_slice(b"\r\n");

    let bodiless = status.is_informational() || status == StatusCode::NO_CONTENT;
    let mut length = None;
    let mut closes = false;
    for (name, value) in headers {
        if *name == header::TRANSFER_ENCODING || (*name == header::CONTENT_LENGTH && bodiless) {
            continue;
        }
        if *name == header::CONTENT_LENGTH {
            length = value.to_str().ok().and_then(|digits| digits.parse::<u64>().ok());
        }
        closes |= *name == header::CONNECTION && value.as_bytes().eq_ignore_ascii_case(b"close");
        line(out, name.as_str(), value.as_bytes(), context.case);
    }
    if context.close && !closes {
        line(out, "connection", b"close", context.case);
    } else if version == Version::HTTP_10 && !closes {
        line(out, "connection", b"keep-alive", context.case);
    }
    let framing = if context.raw {
        Framing::UntilClose
    } else if bodiless || status == StatusCode::NOT_MODIFIED {
        Framing::None
    } else {
        let framing = match (length, body) {
            (Some(length), _) => Framing::Length(length),
            (None, BodyFacts { ended: true, .. }) if context.head_request => {
                // As in Envoy: what a GET would be answered with is not known here.
                if version != Version::HTTP_10 {
                    line(out, "transfer-encoding", b"chunked", context.case);
                }
                Framing::None
            }
            (None, BodyFacts { ended: true, .. }) => add_length(out, 0, context.case),
            (None, BodyFacts { exact: Some(exact), .. }) => add_length(out, exact, context.case),
            (None, _) if version == Version::HTTP_10 => Framing::UntilClose,
            (None, _) => {
                line(out, "transfer-encoding", b"chunked", context.case);
                Framing::Chunked
            }
        };
        if context.head_request { Framing::None } else { framing }
    };
    out.extend_from_slice(b"\r\n");
    framing
}

/// What a response answers.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResponseContext<'a> {
    pub head_request: bool,
    /// Accepted upgrade or CONNECT: the body has no framing.
    pub raw: bool,
    /// The connection ends after it.
    pub close: bool,
    pub case: HeaderCase<'a>,
}

/// Writes a request line and headers. Returns how the body is framed. `raw`: an upgrade or CONNECT.
pub fn request(
    out: &mut Vec<u8>,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: BodyFacts,
    raw: bool,
    case: HeaderCase<'_>,
) -> Framing {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    if *method == Method::CONNECT {
        out.extend_from_slice(uri.authority().map_or("", |authority| authority.as_str()).as_bytes());
    } else {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        out.extend_from_slice(path.as_bytes());
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");

    let mut length = None;
    // The first header of a request is the host (RFC 9112 section 3.2), wherever it came from.
    let host = headers.get(header::HOST).map(|value| value.as_bytes());
    if let Some(host) = host.or_else(|| uri.authority().map(|authority| authority.as_str().as_bytes())) {
        line(out, "host", host, case);
    }
    for (name, value) in headers {
        if *name == header::TRANSFER_ENCODING || *name == header::HOST {
            continue;
        }
        if *name == header::CONTENT_LENGTH {
            if raw {
                continue;
            }
            length = value.to_str().ok().and_then(|digits| digits.parse::<u64>().ok());
        }
        line(out, name.as_str(), value.as_bytes(), case);
    }
    let framing = match (length, body) {
        _ if raw => Framing::UntilClose,
        (Some(length), _) => Framing::Length(length),
        (None, BodyFacts { ended: true, .. }) => {
            // Methods for which a body is usual say that there is none (RFC 9110 section 8.6).
            if !matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE) {
                add_length(out, 0, case);
            }
            Framing::None
        }
        (None, BodyFacts { exact: Some(exact), .. }) => add_length(out, exact, case),
        (None, _) => {
            line(out, "transfer-encoding", b"chunked", case);
            Framing::Chunked
        }
    };
    out.extend_from_slice(b"\r\n");
    framing
}

/// Writes the last chunk, with trailers if there are any to send.
pub fn last_chunk(out: &mut Vec<u8>, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        // Envoy does not change the case of trailers.
        line(out, name.as_str(), value.as_bytes(), HeaderCase::Lower);
    }
    out.extend_from_slice(b"\r\n");
}

fn add_length(out: &mut Vec<u8>, length: u64, case: HeaderCase<'_>) -> Framing {
    line(out, "content-length", itoa::Buffer::new().format(length).as_bytes(), case);
    Framing::Length(length)
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8], case: HeaderCase<'_>) {
    case.write(out, name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
