//! What requests are hashed by.

use std::net::IpAddr;

use http::{HeaderMap, Method};

use crate::model::hash::{xxhash64, xxhash64_all};
use crate::model::matcher::HeaderKey;
use crate::model::route::{HashCookie, HashOn, HashPolicy};
use crate::router::{RequestHead, hash_key, set_cookie};

const CLIENT: &str = "10.1.2.3";

fn policy(on: HashOn) -> HashPolicy {
    HashPolicy { on, terminal: false }
}

fn header(name: &'static str) -> HashPolicy {
    let name = HeaderKey::Name(http::HeaderName::from_static(name));
    policy(HashOn::Header { name, rewrite: None })
}

fn cookie(ttl_s: Option<u64>) -> HashCookie {
    HashCookie { name: "session".into(), path: "/app".into(), ttl_s, attributes: Vec::new() }
}

fn hash(policies: &[HashPolicy], path: &str, headers: &[(&'static str, &str)]) -> Option<u64> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, value.parse().unwrap());
    }
    let head =
        RequestHead { method: &Method::GET, scheme: "http", authority: "app.test", path, headers: &map };
    hash_key(policies, &head, CLIENT.parse::<IpAddr>().unwrap(), |_| "new".to_owned())
}

fn of(text: &str) -> Option<u64> {
    Some(xxhash64(text.as_bytes(), 0))
}

#[test]
fn each_kind_of_policy_hashes_what_it_names() {
    assert_eq!(hash(&[header("x-user")], "/", &[("x-user", "ann")]), of("ann"));
    assert_eq!(hash(&[header("x-user")], "/", &[]), None);
    assert_eq!(hash(&[policy(HashOn::SourceIp)], "/", &[]), of(CLIENT));
    let query = [policy(HashOn::QueryParameter("q".into()))];
    assert_eq!(hash(&query, "/x?a=1&q=two&q=three", &[]), of("two"));
    assert_eq!(hash(&query, "/x", &[]), None);
    let path = [policy(HashOn::Header { name: HeaderKey::Path, rewrite: None })];
    assert_eq!(hash(&path, "/x?a", &[]), of("/x?a"));
}

#[test]
fn the_order_of_a_headers_lines_does_not_matter() {
    let one = hash(&[header("x-tag")], "/", &[("x-tag", "b"), ("x-tag", "a")]);
    let other = hash(&[header("x-tag")], "/", &[("x-tag", "a"), ("x-tag", "b")]);
    assert_eq!(one, other);
    assert_eq!(one, Some(xxhash64_all([&b"a"[..], b"b"])));
}

#[test]
fn a_header_is_rewritten_before_it_is_hashed() {
    let name = HeaderKey::Name(http::HeaderName::from_static("x-user"));
    let rewrite = Some((regex::Regex::new("-.*").unwrap(), String::new()));
    assert_eq!(hash(&[policy(HashOn::Header { name, rewrite })], "/", &[("x-user", "ann-42")]), of("ann"));
}

#[test]
fn several_policies_count_together_and_a_terminal_one_ends_the_list() {
    let (user, address) = (header("x-user"), policy(HashOn::SourceIp));
    let both = hash(&[user.clone(), address.clone()], "/", &[("x-user", "ann")]);
    let (a, b) = (of("ann").unwrap(), of(CLIENT).unwrap());
    assert_eq!(both, Some(a.rotate_left(1) ^ b));
    // Twice the same is not the same as none.
    assert_ne!(hash(&[address.clone(), address.clone()], "/", &[]), Some(0));
    let terminal = HashPolicy { terminal: true, ..user };
    assert_eq!(hash(&[terminal.clone(), address.clone()], "/", &[("x-user", "ann")]), of("ann"));
    assert_eq!(hash(&[terminal, address], "/", &[]), of(CLIENT), "nothing found: the next one counts");
}

#[test]
fn a_cookie_is_hashed_or_given() {
    let kept = [policy(HashOn::Cookie(cookie(None)))];
    assert_eq!(hash(&kept, "/", &[("cookie", "a=1; session=\"s1\"; b=2")]), of("s1"));
    assert_eq!(hash(&kept, "/", &[("cookie", "a=1")]), None);
    let given = [policy(HashOn::Cookie(cookie(Some(60))))];
    assert_eq!(hash(&given, "/", &[("cookie", "a=1")]), of("new"));
    assert_eq!(hash(&given, "/", &[("cookie", "session=s1")]), of("s1"));
}

#[test]
fn a_new_cookie_has_its_path_lifetime_and_attributes() {
    let line = |cookie: &HashCookie| set_cookie(cookie, "v").unwrap().to_str().unwrap().to_owned();
    assert_eq!(line(&cookie(Some(60))), "session=\"v\"; Max-Age=60; Path=/app; HttpOnly");
    let attributes = vec![("SameSite".to_owned(), "Strict".to_owned()), ("Secure".to_owned(), String::new())];
    let session = HashCookie { path: String::new(), attributes, ..cookie(Some(0)) };
    assert_eq!(line(&session), "session=\"v\"; SameSite=Strict; Secure; HttpOnly");
}
