//! The hash of a request by its route's policies (`RouteAction.hash_policy`): what consistent hashing chooses a
//! host by. The arithmetic is Envoy's, so that a key comes to the same host through either proxy.

use std::borrow::Cow;
use std::io::Write;
use std::net::IpAddr;

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use smallvec::SmallVec;

use super::RequestHead;
use super::matching::{pseudo_header, query_parameter};
use crate::model::hash::{xxhash64, xxhash64_all};
use crate::model::header_lines::single_line_in_request;
use crate::model::matcher::{HeaderKey, joined};
use crate::model::route::{HashCookie, HashOn, HashPolicy};

/// The hash of a request, as it is sent upstream; `None` when no policy finds anything to hash. `client` is the
/// address after X-Forwarded-For is honoured. `set_cookie` is asked for the value of a cookie that the client
/// lacks and is to be given.
pub fn hash_key(
    policies: &[HashPolicy],
    head: &RequestHead<'_>,
    client: IpAddr,
    mut set_cookie: impl FnMut(&HashCookie) -> String,
) -> Option<u64> {
    let mut hash: Option<u64> = None;
    for policy in policies {
        let new = match &policy.on {
            HashOn::Header { name, rewrite } => header_hash(head, name, rewrite.as_ref()),
            HashOn::SourceIp => Some(address_hash(client)),
            HashOn::QueryParameter(name) => {
                query_parameter(head.path, name).map(|value| xxhash64(value.as_bytes(), 0))
            }
            HashOn::Cookie(cookie) => match cookie_value(head.headers, &cookie.name) {
                Some(value) if !value.is_empty() => Some(xxhash64(value, 0)),
                _ => cookie.ttl_s.map(|_| xxhash64(set_cookie(cookie).as_bytes(), 0)),
            },
        };
        if let Some(new) = new {
            // Rotated, so that two equal policies do not cancel each other out.
            hash = Some(hash.map_or(0, |old| old.rotate_left(1)) ^ new);
        }
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    hash
}

/// The hash of a client's address, for policies on the source.
pub fn address_hash(client: IpAddr) -> u64 {
    // Long enough for any address: no allocation per request.
    let mut text = [0u8; 48];
    let mut rest = &mut text[..];
    // Cannot fail: there is room.
    let _ = write!(rest, "{client}");
    let left = rest.len();
    xxhash64(&text[..text.len() - left], 0)
}

fn header_hash(
    head: &RequestHead<'_>,
    key: &HeaderKey,
    rewrite: Option<&(regex::Regex, String)>,
) -> Option<u64> {
    let mut values: SmallVec<[Cow<'_, [u8]>; 2]> = SmallVec::new();
    match key {
        HeaderKey::Name(name) if single_line_in_request(name) => {
            values
                .extend(joined(head.headers, name).map(|value| Cow::Owned(value.into_owned().into_bytes())));
        }
        HeaderKey::Name(name) => {
            values.extend(head.headers.get_all(name).iter().map(|value| Cow::Borrowed(value.as_bytes())));
        }
        pseudo => values.extend(pseudo_header(head, pseudo).map(|value| Cow::Borrowed(value.as_bytes()))),
    }
    if values.is_empty() {
        return None;
    }
    if let Some((regex, substitution)) = rewrite {
        for value in &mut values {
            let text = String::from_utf8_lossy(value);
            let new = regex.replace_all(&text, substitution.as_str()).into_owned();
            *value = Cow::Owned(new.into_bytes());
        }
    }
    // The order of lines must not matter.
    values.sort_unstable();
    Some(xxhash64_all(values.iter().map(|value| &**value)))
}

/// The value of a cookie without the quotes it may have (RFC 6265 section 4.1.1); the first of that name counts.
fn cookie_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let cookies = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|b| *b == b';'));
    for cookie in cookies {
        let Some(equals) = cookie.iter().position(|b| *b == b'=') else { continue };
        if cookie[..equals].trim_ascii_start() == name.as_bytes() {
            let value = &cookie[equals + 1..];
            let quoted = value.len() >= 2 && value.starts_with(b"\"") && value.ends_with(b"\"");
            return Some(if quoted { &value[1..value.len() - 1] } else { value });
        }
    }
    None
}

/// The `set-cookie` line that gives a client the cookie.
pub fn set_cookie(cookie: &HashCookie, value: &str) -> Option<HeaderValue> {
    let mut line = format!("{}=\"{value}\"", cookie.name);
    if let Some(ttl) = cookie.ttl_s.filter(|ttl| *ttl > 0) {
        line.push_str(&format!("; Max-Age={ttl}"));
    }
    if !cookie.path.is_empty() {
        line.push_str(&format!("; Path={}", cookie.path));
    }
    for (name, value) in &cookie.attributes {
        line.push_str("; ");
        line.push_str(name);
        if !value.is_empty() {
            line.push('=');
            line.push_str(value);
        }
    }
    line.push_str("; HttpOnly");
    HeaderValue::try_from(line).ok()
}
