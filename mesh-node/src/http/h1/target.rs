//! Methods, request targets and hosts: what a request line may say.

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Uri, header};

use super::parse::HeadError;

/// Methods beyond those of RFC 9110 that Envoy's parser knows. Any other is refused.
const EXTENSION_METHODS: [&str; 25] = [
    "ACL",
    "BIND",
    "CHECKOUT",
    "COPY",
    "LINK",
    "LOCK",
    "M-SEARCH",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "NOTIFY",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
];

/// Methods are case sensitive.
pub(super) fn method(name: &str) -> Result<Method, HeadError> {
    Ok(match name {
        "GET" => Method::GET,
        "POST" => Method::POST,
        "PUT" => Method::PUT,
        "DELETE" => Method::DELETE,
        "HEAD" => Method::HEAD,
        "OPTIONS" => Method::OPTIONS,
        "PATCH" => Method::PATCH,
        "CONNECT" => Method::CONNECT,
        "TRACE" => Method::TRACE,
        other if EXTENSION_METHODS.contains(&other) => {
            Method::from_bytes(other.as_bytes()).map_err(|_| HeadError::Syntax)?
        }
        _ => return Err(HeadError::Syntax),
    })
}

/// RFC 9112 section 3.2: origin form, absolute form (`http`, `https`), authority form (CONNECT), asterisk form
/// (OPTIONS).
pub(super) fn uri(method: &Method, target: &Bytes) -> Result<Uri, HeadError> {
    if *method == Method::CONNECT {
        let authority = Authority::from_maybe_shared(target.clone()).map_err(|_| HeadError::Target)?;
        return Ok(Uri::from(authority));
    }
    if !target.is_ascii() {
        return Err(HeadError::Syntax);
    }
    if memchr::memchr(b'#', target).is_some() {
        return Err(HeadError::Fragment);
    }
    if target.first() == Some(&b'/') {
        let path = PathAndQuery::from_maybe_shared(target.clone()).map_err(|_| HeadError::Syntax)?;
        return Ok(Uri::from(path));
    }
    if &target[..] == b"*" {
        let path = PathAndQuery::from_static("*");
        return if *method == Method::OPTIONS { Ok(Uri::from(path)) } else { Err(HeadError::Target) };
    }
    let Some(end) = memchr::memmem::find(target, b"://") else { return Err(HeadError::Syntax) };
    let scheme = &target[..end];
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return Err(HeadError::Scheme);
    }
    let uri = Uri::from_maybe_shared(target.clone()).map_err(|_| HeadError::Target)?;
    if uri.authority().is_none_or(|authority| authority.host().is_empty()) {
        return Err(HeadError::Target);
    }
    Ok(uri)
}

/// One `Host`, of characters that an authority may have. Envoy joins two with a comma; RFC 9112 section 3.2
/// says 400, and two readers of one request must not see two hosts.
pub(super) fn check_host(headers: &HeaderMap) -> Result<(), HeadError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let valid = hosts.next().is_some_and(|host| host.as_bytes().iter().all(|&b| is_authority_byte(b)));
    if valid && hosts.next().is_none() { Ok(()) } else { Err(HeadError::Authority) }
}

fn is_authority_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=:@[]%".contains(&byte)
}
