//! Hash policies (`RouteAction.hash_policy`): which requests belong together for a hash balancer.

use std::net::IpAddr;

use super::RequestHead;
use super::matching::query_parameter;
use crate::model::route::{HashOn, HashPolicy};

/// The hash of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HashOutcome {
    /// `None` where no policy found anything: the balancer takes a random number.
    pub hash: Option<u64>,
    /// `set-cookie` values for the response: affinity cookies the client did not have yet.
    pub set_cookies: Vec<String>,
}

/// Combines the hashes of all policies; a terminal policy that found something ends the list.
pub fn hash_request(
    policies: &[HashPolicy],
    head: &RequestHead<'_>,
    client: IpAddr,
    random: u64,
) -> HashOutcome {
    let mut outcome = HashOutcome::default();
    for policy in policies {
        let new = match &policy.on {
            HashOn::Header(name) => hash_header(head, name),
            HashOn::SourceIp => Some(hash_text(&client.to_string())),
            HashOn::QueryParameter(name) => query_parameter(head.path, name).map(hash_text),
            HashOn::Cookie { name, path, ttl } => match (cookie(head, name), ttl) {
                (Some(value), _) => Some(hash_text(value)),
                (None, Some(ttl)) => {
                    let value = format!("{random:016x}");
                    outcome.set_cookies.push(set_cookie(name, &value, path, ttl.as_secs()));
                    Some(hash_text(&value))
                }
                (None, None) => None,
            },
        };
        if let Some(new) = new {
            // Rotated, so that equal hashes of two policies do not cancel each other.
            outcome.hash = Some(outcome.hash.map_or(new, |old| old.rotate_left(1) ^ new));
            if policy.terminal {
                break;
            }
        }
    }
    outcome
}

/// Several lines of a header count in sorted order.
fn hash_header(head: &RequestHead<'_>, name: &http::HeaderName) -> Option<u64> {
    let mut values: Vec<&[u8]> = head.headers.get_all(name).iter().map(|v| v.as_bytes()).collect();
    values.sort_unstable();
    (!values.is_empty()).then(|| hash_bytes(&values.concat()))
}

fn cookie<'a>(head: &RequestHead<'a>, name: &str) -> Option<&'a str> {
    let lines = head.headers.get_all(http::header::COOKIE).iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(';')).find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then(|| value.trim_matches('"'))
    })
}

fn set_cookie(name: &str, value: &str, path: &str, max_age_s: u64) -> String {
    let age = if max_age_s > 0 { format!("; Max-Age={max_age_s}") } else { String::new() };
    let path = if path.is_empty() { String::new() } else { format!("; Path={path}") };
    format!("{name}=\"{value}\"{age}{path}; HttpOnly")
}

fn hash_text(text: &str) -> u64 {
    hash_bytes(text.as_bytes())
}

/// The same in every process: instances of the proxy must agree.
fn hash_bytes(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh64::xxh64(bytes, 0)
}
