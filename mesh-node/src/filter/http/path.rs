//! Path normalisation (`normalize_path`, `merge_slashes`, `path_with_escaped_slashes_action`) and host
//! normalisation, before anything is matched. Route and authorization rules are only as good as this: a path
//! that two hops read differently must never get past here unchanged when the configuration asks for it.

use std::borrow::Cow;

use crate::model::network::{EscapedSlashes, HttpConnectionManager};

/// What becomes of a request's path.
#[derive(Debug, PartialEq, Eq)]
pub enum Normalized<'a> {
    /// Forward with this path and query.
    Forward(Cow<'a, str>),
    /// Answer 307 with this location (`UNESCAPE_AND_REDIRECT`).
    Redirect(String),
    /// Answer 400.
    Reject,
}

/// Applies the connection manager's path rules to a path and query in origin form.
pub fn normalize<'a>(path_and_query: &'a str, hcm: &HttpConnectionManager) -> Normalized<'a> {
    // Envoy: `http_reject_path_with_fragment`.
    if path_and_query.contains('#') {
        return Normalized::Reject;
    }
    let (path, query) = match path_and_query.find('?') {
        Some(at) => path_and_query.split_at(at),
        None => (path_and_query, ""),
    };
    let mut path = Cow::Borrowed(path);
    let mut redirect = false;
    if hcm.escaped_slashes != EscapedSlashes::KeepUnchanged
        && let Some(unescaped) = unescape_slashes(&path)
    {
        match hcm.escaped_slashes {
            EscapedSlashes::RejectRequest => return Normalized::Reject,
            EscapedSlashes::UnescapeAndRedirect => redirect = true,
            _ => {}
        }
        path = Cow::Owned(unescaped);
    }
    if hcm.normalize_path && !is_canonical(&path) {
        match canonicalize(&path) {
            Some(canonical) => path = Cow::Owned(canonical),
            None => return Normalized::Reject,
        }
    }
    if hcm.merge_slashes && path.contains("//") {
        path = Cow::Owned(merge_slashes(&path));
    }
    if redirect {
        return Normalized::Redirect(format!("{path}{query}"));
    }
    match path {
        Cow::Borrowed(_) => Normalized::Forward(Cow::Borrowed(path_and_query)),
        Cow::Owned(path) => Normalized::Forward(Cow::Owned(path + query)),
    }
}

/// The path with `%2F` and `%5C` (any case) decoded, if it has one.
fn unescape_slashes(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let escape = |i: usize| -> Option<u8> {
        match bytes.get(i..i + 3)? {
            [b'%', b'2', b'F' | b'f'] => Some(b'/'),
            [b'%', b'5', b'C' | b'c'] => Some(b'\\'),
            _ => None,
        }
    };
    (0..bytes.len()).find(|&i| escape(i).is_some())?;
    let mut out = String::with_capacity(path.len());
    let mut rest = 0;
    let mut i = 0;
    while i < bytes.len() {
        if let Some(slash) = escape(i) {
            out.push_str(&path[rest..i]);
            out.push(char::from(slash));
            i += 3;
            rest = i;
        } else {
            i += 1;
        }
    }
    out.push_str(&path[rest..]);
    Some(out)
}

/// True when canonicalising would change nothing: the common case, decided without allocation.
fn is_canonical(path: &str) -> bool {
    let bytes = path.as_bytes();
    let dot_segment = |i: usize| i > 0 && bytes[i - 1] == b'/' && bytes[i] == b'.';
    !bytes.iter().enumerate().any(|(i, &b)| b == b'%' || b == b'\\' || must_escape(b) || dot_segment(i))
}

fn must_escape(b: u8) -> bool {
    b <= b' ' || b >= 0x7f || matches!(b, b'"' | b'<' | b'>' | b'`' | b'{' | b'}')
}

/// RFC 3986 section 6.2.2 as Envoy does it: unreserved characters are decoded, unsafe ones encoded, `\` is `/`,
/// dot segments are removed. `None` for an encoded NUL.
fn canonicalize(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let mut out: Vec<u8> = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => out.push(b'/'),
            b'%' => match bytes.get(i + 1..i + 3).and_then(hex) {
                Some(0) => return None,
                Some(b) if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') => {
                    out.push(b);
                    i += 2;
                }
                _ => out.push(b'%'),
            },
            b if must_escape(b) => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.extend_from_slice(&[b'%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
            }
            b => out.push(b),
        }
        i += 1;
    }
    // Escapes above only ever yield ASCII.
    let decoded = String::from_utf8(out).ok()?;
    Some(remove_dot_segments(&decoded))
}

fn hex(pair: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    Some(digit(pair[0])? << 4 | digit(pair[1])?)
}

fn remove_dot_segments(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    out.truncate(out.rfind('/').unwrap_or(0));
                }
                if last {
                    out.push('/');
                }
            }
            _ => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    out
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

/// The authority without its port, where the connection manager strips it (`strip_any_host_port`,
/// `strip_matching_host_port`). `local_port` is the port the connection was made to.
pub fn stripped_host<'a>(
    authority: &'a str,
    hcm: &HttpConnectionManager,
    local_port: u16,
) -> Option<&'a str> {
    if !hcm.strip_any_host_port && !hcm.strip_matching_host_port {
        return None;
    }
    let (host, port) = authority.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    // `[::1]` has no port, `[::1]:80` has.
    if host.starts_with('[') && !host.ends_with(']') {
        return None;
    }
    (hcm.strip_any_host_port || port == local_port).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::super::tests::support::hcm;
    use super::*;

    fn forward(path: &str, hcm: &HttpConnectionManager) -> String {
        match normalize(path, hcm) {
            Normalized::Forward(path) => path.into_owned(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_path_is_forwarded_as_it_came_unless_normalisation_is_asked_for() {
        assert_eq!(forward("/a/../b//c/%2e%41?x=/../y", &hcm()), "/a/../b//c/%2e%41?x=/../y");
    }

    #[test]
    fn dot_segments_cannot_hide_a_forbidden_path() {
        let mut hcm = hcm();
        hcm.normalize_path = true;
        for (path, want) in [
            ("/a/../b//c/./d", "/b//c/d"),
            ("/a/%2e%2E/b?q=/../z", "/b?q=/../z"),
            ("/../../x", "/x"),
            ("/x%41", "/xA"),
            ("/a\\b", "/a/b"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a/..b/...", "/a/..b/..."),
            ("/%zz%2", "/%zz%2"),
            ("/a%2Fb", "/a%2Fb"),
        ] {
            assert_eq!(forward(path, &hcm), want, "{path}");
        }
        assert_eq!(normalize("/a%00b", &hcm), Normalized::Reject);
        hcm.merge_slashes = true;
        assert_eq!(forward("/a/../b//c/./d", &hcm), "/b/c/d");
    }

    #[test]
    fn a_fragment_is_refused() {
        assert_eq!(normalize("/a#b", &hcm()), Normalized::Reject);
    }

    #[test]
    fn escaped_slashes_are_refused_redirected_or_decoded_as_configured() {
        let mut hcm = hcm();
        hcm.escaped_slashes = EscapedSlashes::RejectRequest;
        assert_eq!(normalize("/a%2fb", &hcm), Normalized::Reject);
        assert_eq!(forward("/a?x=%2f", &hcm), "/a?x=%2f");
        hcm.escaped_slashes = EscapedSlashes::UnescapeAndRedirect;
        assert_eq!(normalize("/a%5Cb?q", &hcm), Normalized::Redirect("/a\\b?q".into()));
        hcm.escaped_slashes = EscapedSlashes::UnescapeAndForward;
        assert_eq!(forward("/a%2Fb", &hcm), "/a/b");
    }

    #[test]
    fn the_port_of_the_host_is_stripped_as_configured() {
        let mut hcm = hcm();
        assert_eq!(stripped_host("a:80", &hcm, 80), None);
        hcm.strip_matching_host_port = true;
        assert_eq!(stripped_host("a:80", &hcm, 80), Some("a"));
        assert_eq!(stripped_host("a:81", &hcm, 80), None);
        hcm.strip_any_host_port = true;
        assert_eq!(stripped_host("a:81", &hcm, 80), Some("a"));
        assert_eq!(stripped_host("[::1]", &hcm, 80), None);
        assert_eq!(stripped_host("[::1]:81", &hcm, 80), Some("[::1]"));
    }
}
