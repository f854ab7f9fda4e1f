//! Message heads: bytes to `http` types, and how the body that follows is delimited.
//!
//! `httparse` reads the syntax; the rules that keep two parsers from reading one message in two ways are here:
//! one length, one coding, one host, no bare line feeds, no folded lines. Pure: no I/O, no state beyond the
//! buffer, so tables and fuzzing reach all of it.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version};

use super::header_case::OriginalNames;
use super::target;
use crate::http::service::Refusal;
use crate::model::network::KeepCase;

/// Headers that are parsed without a heap allocation; a higher configured limit costs one per message.
const HEADERS_ON_STACK: usize = 128;

/// Bounds and tolerances of a parser, from `Http1ProtocolOptions` and the connection manager.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Lines of the head, the first one not counted.
    pub max_headers: usize,
    /// Bytes of the whole head.
    pub max_bytes: usize,
    /// `accept_http_10`.
    pub accept_http_10: bool,
    /// `allow_chunked_length`: `Content-Length` beside `Transfer-Encoding: chunked` is dropped, not refused.
    pub allow_chunked_length: bool,
    /// Remember how names of headers were written.
    pub keep_case: Option<KeepCase>,
}

impl Default for Limits {
    /// Envoy's: 100 headers, 60 KiB.
    fn default() -> Self {
        Self {
            max_headers: 100,
            max_bytes: 60 << 10,
            accept_http_10: false,
            allow_chunked_length: false,
            keep_case: None,
        }
    }
}

/// Why a head is refused. Names and statuses are Envoy's response code details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("malformed message head")]
    Syntax,
    #[error("a header has bytes that no header may have")]
    Characters,
    #[error("message head too large")]
    TooLarge,
    #[error("too many headers")]
    TooMany,
    #[error("both a length and a transfer coding")]
    LengthAndChunked,
    #[error("a transfer coding that is not `chunked`")]
    TransferEncoding,
    #[error("malformed authority")]
    Authority,
    #[error("malformed request target")]
    Target,
    #[error("request target of an unknown scheme")]
    Scheme,
    #[error("request target with a fragment")]
    Fragment,
    #[error("unsupported protocol version")]
    Version,
    #[error("no Host header")]
    MissingHost,
    #[error("an upgrade that was not asked for")]
    UnaskedUpgrade,
}

impl HeadError {
    /// The answer to a request with this fault.
    pub fn refusal(self) -> Refusal {
        let bad = (StatusCode::BAD_REQUEST, "Bad Request");
        let large = (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "Request Header Fields Too Large");
        let ((status, body), details) = match self {
            Self::Syntax | Self::UnaskedUpgrade => (bad, "http1.codec_error"),
            Self::Characters => (bad, "http1.invalid_characters"),
            Self::TooLarge => (large, "http1.headers_too_large"),
            Self::TooMany => (large, "http1.too_many_headers"),
            Self::LengthAndChunked => (bad, "http1.content_length_and_chunked_not_allowed"),
            Self::TransferEncoding => {
                ((StatusCode::NOT_IMPLEMENTED, "Not Implemented"), "http1.invalid_transfer_encoding")
            }
            Self::Authority => (bad, "http.invalid_authority"),
            Self::Target => (bad, "http1.invalid_url"),
            Self::Scheme => (bad, "http1.invalid_scheme"),
            Self::Fragment => ((StatusCode::BAD_REQUEST, ""), "path_normalization_failed"),
            Self::Version => ((StatusCode::UPGRADE_REQUIRED, "Upgrade Required"), "low_version"),
            Self::MissingHost => ((StatusCode::BAD_REQUEST, ""), "missing_host_header"),
        };
        Refusal { status, details, body, version: Version::HTTP_11 }
    }
}

/// How a body is delimited (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    /// Until the peer closes its side: responses without length, upgrades and CONNECT.
    UntilClose,
}

/// A parsed request head.
#[derive(Debug)]
pub struct RequestHead {
    pub method: Method,
    pub uri: Uri,
    pub version: Version,
    pub headers: HeaderMap,
    pub framing: Framing,
    /// The client lets the connection live on.
    pub keep_alive: bool,
    /// `Expect: 100-continue`.
    pub expect_continue: bool,
    /// An upgrade or CONNECT: what follows is raw once it is accepted.
    pub upgrade: bool,
    /// With [`Limits::keep_case`].
    pub names: Option<OriginalNames>,
}

/// A parsed response head.
#[derive(Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub framing: Framing,
    pub keep_alive: bool,
    /// With [`Limits::keep_case`].
    pub names: Option<OriginalNames>,
}

/// What of the request decides how its response is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Asked {
    #[default]
    Plain,
    Head,
    Connect,
    Upgrade,
}

/// Remembers how far a head that is not complete yet was looked at, so that bytes are looked at once.
#[derive(Debug, Default, Clone, Copy)]
pub struct Progress {
    scanned: usize,
    /// End of the last part that was checked for syntax.
    checked: usize,
}

/// Takes a request head off the front of `buffer`, or leaves it and returns `None` when more bytes are needed.
/// `spare` is an empty map whose room is used again.
pub fn request(
    buffer: &mut BytesMut,
    progress: &mut Progress,
    limits: &Limits,
    spare: &mut HeaderMap,
) -> Result<Option<RequestHead>, HeadError> {
    while buffer.starts_with(b"\r\n") {
        // A server skips empty lines before a request line (RFC 9112 section 2.2).
        buffer.advance(2);
        *progress = Progress::default();
    }
    let Some(length) = find_end(buffer, progress, limits)? else {
        check_partial(buffer, progress, limits)?;
        return Ok(None);
    };
    *progress = Progress::default();
    let head = buffer.split_to(length).freeze();
    with_headers(limits, |lines| read_request(&head, lines, limits, spare)).map(Some)
}

/// Takes a response head off the front of `buffer`, as [`request`] does.
pub fn response(
    buffer: &mut BytesMut,
    progress: &mut Progress,
    limits: &Limits,
    asked: Asked,
    spare: &mut HeaderMap,
) -> Result<Option<ResponseHead>, HeadError> {
    let Some(length) = find_end(buffer, progress, limits)? else {
        return if buffer.first().is_some_and(|&b| b != b'H') { Err(HeadError::Syntax) } else { Ok(None) };
    };
    *progress = Progress::default();
    let head = buffer.split_to(length).freeze();
    with_headers(limits, |lines| read_response(&head, lines, limits, asked, spare)).map(Some)
}

/// Header lines after the last chunk, up to and with the empty line. `None`: more bytes are needed.
pub fn trailers(
    buffer: &mut BytesMut,
    progress: &mut Progress,
    limits: &Limits,
) -> Result<Option<HeaderMap>, HeadError> {
    if buffer.starts_with(b"\r\n") {
        buffer.advance(2);
        *progress = Progress::default();
        return Ok(Some(HeaderMap::new()));
    }
    let Some(length) = find_end(buffer, progress, limits)? else { return Ok(None) };
    *progress = Progress::default();
    let block = buffer.split_to(length).freeze();
    let mut lines = vec![httparse::EMPTY_HEADER; limits.max_headers];
    match httparse::parse_headers(&block, &mut lines) {
        Ok(httparse::Status::Complete((_, lines))) => {
            let mut headers = HeaderMap::with_capacity(lines.len());
            collect(&block, lines, &mut headers)?;
            Ok(Some(headers))
        }
        Ok(httparse::Status::Partial) => Err(HeadError::Syntax),
        Err(error) => Err(syntax(error)),
    }
}

/// The length of the head, if its end is in the buffer. Every line feed must follow a carriage return.
fn find_end(buffer: &[u8], progress: &mut Progress, limits: &Limits) -> Result<Option<usize>, HeadError> {
    for found in memchr::memchr_iter(b'\n', &buffer[progress.scanned..]) {
        let at = progress.scanned + found;
        if at == 0 || buffer[at - 1] != b'\r' {
            return Err(HeadError::Syntax);
        }
        if at >= 2 && buffer[at - 2] == b'\n' {
            return if at < limits.max_bytes { Ok(Some(at + 1)) } else { Err(HeadError::TooLarge) };
        }
    }
    progress.scanned = buffer.len();
    if buffer.len() > limits.max_bytes { Err(HeadError::TooLarge) } else { Ok(None) }
}

/// Refuses garbage before its end has come. Looks only when a line was completed (or at the first bytes), so
/// that a client that sends byte by byte costs no more than its lines.
fn check_partial(buffer: &[u8], progress: &mut Progress, limits: &Limits) -> Result<(), HeadError> {
    let first = progress.checked == 0 && !buffer.is_empty();
    if !first && memchr::memchr(b'\n', &buffer[progress.checked..]).is_none() {
        return Ok(());
    }
    progress.checked = buffer.len();
    with_headers(limits, |lines| {
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(buffer, lines) {
            Ok(_) => Ok(()),
            Err(httparse::Error::Version) => Err(version_error(buffer)),
            Err(error) => Err(syntax(error)),
        }
    })
}

fn with_headers<'b, R>(
    limits: &Limits,
    read: impl FnOnce(&mut [MaybeUninit<httparse::Header<'b>>]) -> Result<R, HeadError>,
) -> Result<R, HeadError> {
    if limits.max_headers <= HEADERS_ON_STACK {
        let mut lines = [const { MaybeUninit::uninit() }; HEADERS_ON_STACK];
        read(&mut lines[..limits.max_headers])
    } else {
        let mut lines = Vec::new();
        lines.resize_with(limits.max_headers, MaybeUninit::uninit);
        read(&mut lines)
    }
}

fn syntax(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooMany,
        httparse::Error::HeaderValue => HeadError::Characters,
        _ => HeadError::Syntax,
    }
}

/// `HTTP/` of another version, or no version at all (HTTP/0.9), is an old or new client; the rest is garbage.
fn version_error(head: &[u8]) -> HeadError {
    let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&b| b == b' ').filter(|word| !word.is_empty()).skip(1);
    match (words.next(), words.next()) {
        (Some(_), Some(version)) if version.starts_with(b"HTTP/") => HeadError::Version,
        (Some(target), None) if target.starts_with(b"/") => HeadError::Version,
        _ => HeadError::Syntax,
    }
}

fn read_request<'b>(
    head: &'b Bytes,
    lines: &mut [MaybeUninit<httparse::Header<'b>>],
    limits: &Limits,
    spare: &mut HeaderMap,
) -> Result<RequestHead, HeadError> {
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, lines) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(HeadError::Syntax),
        Err(httparse::Error::Version) => return Err(version_error(head)),
        Err(error) => {
            let old = version_error(head) == HeadError::Version && !head.windows(5).any(|w| w == b"HTTP/");
            return Err(if old { HeadError::Version } else { syntax(error) });
        }
    }
    let version = match parsed.version {
        Some(1) => Version::HTTP_11,
        Some(0) if limits.accept_http_10 => Version::HTTP_10,
        _ => return Err(HeadError::Version),
    };
    let method = target::method(parsed.method.unwrap_or_default())?;
    let target = parsed.path.unwrap_or_default();
    let uri = target::uri(&method, &head.slice_ref(target.as_bytes()))?;
    let mut headers = std::mem::take(spare);
    let names = limits.keep_case.map(|keep| OriginalNames::of(parsed.headers, keep));
    let seen = collect(head, parsed.headers, &mut headers)?;

    if !seen.host && version == Version::HTTP_11 && uri.authority().is_none() {
        return Err(HeadError::MissingHost);
    }
    if seen.host {
        target::check_host(&headers)?;
    }
    if let (Some(_), Some(authority)) = (uri.scheme(), uri.authority()) {
        // RFC 9112 section 3.2.2: the target's authority replaces what Host says.
        let value = HeaderValue::from_str(authority.as_str()).map_err(|_| HeadError::Authority)?;
        headers.insert(header::HOST, value);
    }
    let connection = ConnectionTokens::of(&headers, seen.connection);
    let upgrade = method == Method::CONNECT || is_upgrade(&mut headers, &connection);
    let mut framing = body_framing(&mut headers, &seen, limits, Framing::None)?;
    if version == Version::HTTP_10 && seen.transfer_encoding {
        return Err(HeadError::TransferEncoding);
    }
    if upgrade {
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::TRANSFER_ENCODING);
        framing = Framing::UntilClose;
    }
    let keep_alive = match version {
        Version::HTTP_11 => !connection.close,
        _ => connection.keep_alive && !connection.close,
    };
    let expect_continue = seen.expect
        && version == Version::HTTP_11
        && headers.get(header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    Ok(RequestHead { method, uri, version, headers, framing, keep_alive, expect_continue, upgrade, names })
}

fn read_response<'b>(
    head: &'b Bytes,
    lines: &mut [MaybeUninit<httparse::Header<'b>>],
    limits: &Limits,
    asked: Asked,
    spare: &mut HeaderMap,
) -> Result<ResponseHead, HeadError> {
    let mut parsed = httparse::Response::new(&mut []);
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, head, lines) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(HeadError::Syntax),
        Err(error) => return Err(syntax(error)),
    }
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let status = StatusCode::from_u16(parsed.code.unwrap_or(0)).map_err(|_| HeadError::Syntax)?;
    let mut headers = std::mem::take(spare);
    let names = limits.keep_case.map(|keep| OriginalNames::of(parsed.headers, keep));
    let seen = collect(head, parsed.headers, &mut headers)?;
    let connection = ConnectionTokens::of(&headers, seen.connection);
    let framing = match (status.as_u16(), asked) {
        (101, Asked::Upgrade) => Framing::UntilClose,
        (101, _) => return Err(HeadError::UnaskedUpgrade),
        (200..=299, Asked::Connect) => Framing::UntilClose,
        (100..=199 | 204, _) => Framing::None,
        _ => {
            let framing = body_framing(&mut headers, &seen, limits, Framing::UntilClose)?;
            if status == StatusCode::NOT_MODIFIED || asked == Asked::Head { Framing::None } else { framing }
        }
    };
    let keep_alive = framing != Framing::UntilClose
        && !connection.close
        && (version == Version::HTTP_11 || connection.keep_alive);
    Ok(ResponseHead { status, version, headers, framing, keep_alive, names })
}

/// Which of the headers that matter to framing occurred.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    host: bool,
    connection: bool,
    content_length: bool,
    transfer_encoding: bool,
    expect: bool,
}

/// Copies parsed lines into a map; values share the memory of the head.
fn collect(head: &Bytes, lines: &[httparse::Header<'_>], headers: &mut HeaderMap) -> Result<Seen, HeadError> {
    let mut seen = Seen::default();
    headers.reserve(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| HeadError::Syntax)?;
        let value =
            HeaderValue::from_maybe_shared(head.slice_ref(line.value)).map_err(|_| HeadError::Characters)?;
        match name {
            header::HOST => seen.host = true,
            header::CONNECTION => seen.connection = true,
            header::CONTENT_LENGTH => seen.content_length = true,
            header::TRANSFER_ENCODING => seen.transfer_encoding = true,
            header::EXPECT => seen.expect = true,
            _ => {}
        }
        headers.try_append(name, value).map_err(|_| HeadError::TooMany)?;
    }
    Ok(seen)
}

/// RFC 9112 section 6.3, refusing instead of repairing. `otherwise` is for a message without either header.
fn body_framing(
    headers: &mut HeaderMap,
    seen: &Seen,
    limits: &Limits,
    otherwise: Framing,
) -> Result<Framing, HeadError> {
    if seen.transfer_encoding {
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        let chunked = codings.next().is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !chunked || codings.next().is_some() {
            return Err(HeadError::TransferEncoding);
        }
        if seen.content_length {
            if !limits.allow_chunked_length {
                return Err(HeadError::LengthAndChunked);
            }
            headers.remove(header::CONTENT_LENGTH);
        }
        return Ok(Framing::Chunked);
    }
    if !seen.content_length {
        return Ok(otherwise);
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next().and_then(content_length), lengths.next()) {
        (Some(0), None) if otherwise == Framing::None => Ok(Framing::None),
        (Some(length), None) => Ok(Framing::Length(length)),
        _ => Err(HeadError::Syntax),
    }
}

/// Digits and nothing else.
fn content_length(value: &HeaderValue) -> Option<u64> {
    let digits = value.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    value.to_str().ok()?.parse().ok()
}

/// What `Connection` says.
#[derive(Debug, Default, Clone, Copy)]
pub struct ConnectionTokens {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
}

impl ConnectionTokens {
    /// Reads them. `present`: there is such a header.
    pub fn of(headers: &HeaderMap, present: bool) -> Self {
        let mut tokens = Self::default();
        if !present {
            return tokens;
        }
        for value in headers.get_all(header::CONNECTION) {
            for token in value.as_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii) {
                tokens.close |= token.eq_ignore_ascii_case(b"close");
                tokens.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                tokens.upgrade |= token.eq_ignore_ascii_case(b"upgrade");
            }
        }
        tokens
    }
}

/// An upgrade to anything but `h2c`, which is ignored (as Envoy does) and taken out.
fn is_upgrade(headers: &mut HeaderMap, connection: &ConnectionTokens) -> bool {
    let h2c = match headers.get(header::UPGRADE) {
        Some(protocol) => protocol.as_bytes().eq_ignore_ascii_case(b"h2c"),
        None => return false,
    };
    if h2c || !connection.upgrade {
        headers.remove(header::UPGRADE);
        headers.remove("http2-settings");
        return false;
    }
    true
}
