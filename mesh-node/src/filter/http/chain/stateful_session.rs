//! Sessions that stay with one host (`envoy.filters.http.stateful_session`): the host's address is kept by the
//! client, in a cookie or a header.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Response};

use super::super::request::Request;
use super::super::stream::Stream;
use super::{Decoding, Step};
use crate::http::body::Body;
use crate::model::http_filter::{HttpFilter, Override, SessionState, StatefulSession};
use crate::telemetry::base64;

pub(super) fn decode(
    decoding: &Decoding<'_>,
    filter: &HttpFilter,
    own: Option<&Arc<StatefulSession>>,
    request: &Request,
) {
    let session = match decoding.override_of(filter) {
        Some(Override::StatefulSession(of_route)) => Some(of_route),
        _ => own,
    };
    let Some(session) = session else { return };
    let Some(state) = &session.state else { return };
    let headers = &request.parts.headers;
    let host = match state {
        SessionState::Cookie { name, path, .. } => {
            if !request.path().starts_with(path.as_str()) {
                return;
            }
            cookie(headers, name).and_then(|value| of_cookie(&value))
        }
        SessionState::Header(name) => headers
            .get(name)
            .and_then(|value| String::from_utf8(base64::decode(value.as_bytes())?).ok()?.parse().ok()),
    };
    decoding.stream.chain.session_host.set(host.map(|host| (host, session.strict)));
    decoding.stream.chain.push(Step::StatefulSession(session.clone(), host));
}

pub(super) fn encode(
    stream: &Stream,
    session: &StatefulSession,
    was: Option<SocketAddr>,
    response: &mut Response<Body>,
) {
    let upstream = stream.upstream();
    let host = upstream.as_ref().and_then(|upstream| upstream.host.as_ref()).map(|host| host.address);
    let (Some(host), Some(state)) = (host, &session.state) else { return };
    let (name, value) = match state {
        // The header is told with every response, the cookie when it changes.
        SessionState::Header(name) => (name.clone(), base64::encode(host.to_string().as_bytes())),
        SessionState::Cookie { .. } if was == Some(host) => return,
        SessionState::Cookie { name, path, ttl, attributes } => {
            let value = base64::encode(&to_cookie(host, *ttl));
            let age = ttl.map(|ttl| format!("; Max-Age={}", ttl.as_secs())).unwrap_or_default();
            let path = if path.is_empty() { String::new() } else { format!("; Path={path}") };
            (SET_COOKIE, format!("{name}=\"{value}\"{age}{path}{attributes}; HttpOnly"))
        }
    };
    if let Ok(value) = HeaderValue::from_str(&value) {
        if name == SET_COOKIE {
            response.headers_mut().append(name, value);
        } else {
            response.headers_mut().insert(name, value);
        }
    }
}

/// The value of a cookie, without quotes.
pub(super) fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines = headers.get_all(COOKIE).into_iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.trim_matches('"').to_owned())
}

/// Envoy's `Cookie` message: the address, and when it expires.
fn to_cookie(host: SocketAddr, ttl: Option<Duration>) -> Vec<u8> {
    let address = host.to_string();
    let mut message = vec![0x0a, address.len() as u8];
    message.extend_from_slice(address.as_bytes());
    if let Some(ttl) = ttl {
        let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + ttl;
        message.push(0x10);
        let mut left = expires.as_secs();
        while left >= 0x80 {
            message.push((left & 0x7f) as u8 | 0x80);
            left >>= 7;
        }
        message.push(left as u8);
    }
    message
}

/// The host of a cookie that has not expired.
fn of_cookie(value: &str) -> Option<SocketAddr> {
    let message = base64::decode(value.as_bytes())?;
    let (&0x0a, rest) = message.split_first()? else {
        // Envoy's old form: the address alone.
        return String::from_utf8(message).ok()?.parse().ok();
    };
    let (&len, rest) = rest.split_first()?;
    let (address, rest) = rest.split_at_checked(len.into())?;
    if let Some((&0x10, varint)) = rest.split_first() {
        let expires = varint.iter().take(10).enumerate().fold(0u64, |sum, (at, byte)| {
            sum | u64::from(byte & 0x7f).checked_shl(7 * at as u32).unwrap_or(0)
        });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if expires <= now {
            return None;
        }
    }
    std::str::from_utf8(address).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_finds_its_host_again_until_it_expires() {
        let host: SocketAddr = "10.0.0.7:8080".parse().unwrap();
        for ttl in [None, Some(Duration::from_secs(60))] {
            assert_eq!(of_cookie(&base64::encode(&to_cookie(host, ttl))), Some(host));
        }
        assert_eq!(of_cookie(&base64::encode(&to_cookie(host, Some(Duration::ZERO)))), None);
        assert_eq!(of_cookie(&base64::encode(b"10.0.0.7:8080")), Some(host));
        for garbage in ["", "AAAA", "CgA=", "CjAA", "%"] {
            assert_eq!(of_cookie(garbage), None, "{garbage}");
        }
    }
}
