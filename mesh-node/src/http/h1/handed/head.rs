//! Heads of messages that are handed over: what writing and parsing them would have made of them.

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header};
use http_body::Body as _;

use super::super::parse::{ConnectionTokens, Framing, HeadError, Limits};
use super::super::target;
use crate::http::body::Body;
use crate::http::informational::Informational;

pub(super) fn is_upgrade(parts: &Parts) -> bool {
    parts.headers.contains_key(header::UPGRADE)
        && ConnectionTokens::of(&parts.headers, parts.headers.contains_key(header::CONNECTION)).upgrade
}

/// Brings the head of a request into the form in which it would arrive (`encode::request`, then `parse::request`).
pub(super) fn written(parts: &mut Parts, body: &Body, raw: bool) -> Framing {
    let headers = &mut parts.headers;
    parts.version = Version::HTTP_11;
    if let Some(authority) = parts.uri.authority()
        && !headers.contains_key(header::HOST)
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        headers.insert(header::HOST, host);
    }
    if parts.method != Method::CONNECT && parts.uri.authority().is_some() {
        let path = std::mem::take(&mut parts.uri).into_parts().path_and_query;
        parts.uri = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));
    }
    headers.remove(header::TRANSFER_ENCODING);
    if raw {
        headers.remove(header::CONTENT_LENGTH);
        return Framing::UntilClose;
    }
    if headers.remove(header::UPGRADE).is_some() {
        headers.remove("http2-settings");
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    match (length, body.is_end_stream(), body.size_hint().exact()) {
        (Some(length), ..) => Framing::Length(length),
        (None, true, _) => {
            // Methods for which a body is usual say that there is none (RFC 9110 section 8.6).
            if !matches!(parts.method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE) {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            Framing::None
        }
        (None, false, Some(exact)) => {
            headers.insert(header::CONTENT_LENGTH, exact.into());
            Framing::Length(exact)
        }
        (None, false, None) => {
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            Framing::Chunked
        }
    }
}

/// Refuses what the server's parser would.
pub(super) fn check(parts: &Parts, bytes: usize, limits: &Limits) -> Result<(), HeadError> {
    if bytes > limits.max_bytes {
        return Err(HeadError::TooLarge);
    }
    if parts.headers.len() > limits.max_headers {
        return Err(HeadError::TooMany);
    }
    match parts.headers.contains_key(header::HOST) {
        true => target::check_host(&parts.headers),
        false if parts.uri.authority().is_none() => Err(HeadError::MissingHost),
        false => Ok(()),
    }
}

/// Passes interim responses on, or sends the one that the client expects.
pub(super) fn expect(parts: &mut Parts, proxied: bool) {
    let informational = std::mem::take(&mut parts.extensions).remove::<Informational>();
    if proxied {
        parts.extensions.insert(informational.unwrap_or_default());
    } else if parts
        .headers
        .get(header::EXPECT)
        .is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        parts.headers.remove(header::EXPECT);
        if let Some(informational) = informational {
            informational.send(StatusCode::CONTINUE, HeaderMap::new());
        }
    }
}

/// The framing of a response and its headers (`encode::response`, then `parse::response`).
pub(super) fn frame_response(
    headers: &mut HeaderMap,
    status: StatusCode,
    (ended, exact): (bool, Option<u64>),
    head: bool,
    raw: bool,
) -> Framing {
    headers.remove(header::TRANSFER_ENCODING);
    let bodiless = status.is_informational() || status == StatusCode::NO_CONTENT;
    if bodiless {
        headers.remove(header::CONTENT_LENGTH);
    }
    if raw {
        return Framing::UntilClose;
    }
    if bodiless || status == StatusCode::NOT_MODIFIED {
        return Framing::None;
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let framing = match (length, ended, exact) {
        (Some(length), ..) => Framing::Length(length),
        (None, true, _) if head => Framing::None,
        (None, true, _) => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
            Framing::None
        }
        (None, false, Some(exact)) => {
            headers.insert(header::CONTENT_LENGTH, exact.into());
            Framing::Length(exact)
        }
        (None, false, None) => {
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            Framing::Chunked
        }
    };
    if head { Framing::None } else { framing }
}

pub(super) fn request_bytes(parts: &Parts) -> usize {
    let target = match parts.uri.path_and_query() {
        Some(path) => path.as_str().len(),
        None => parts.uri.authority().map_or(0, |authority| authority.as_str().len()),
    };
    parts.method.as_str().len() + target + " ".len() + " HTTP/1.1\r\n\r\n".len() + lines(&parts.headers)
}

pub(super) fn response_bytes(headers: &HeaderMap, status: StatusCode) -> usize {
    let reason = status.canonical_reason().unwrap_or("Unknown");
    "HTTP/1.1 200 ".len() + reason.len() + "\r\n\r\n".len() + lines(headers)
}

fn lines(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum()
}
