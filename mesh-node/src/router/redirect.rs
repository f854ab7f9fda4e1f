//! The `location` of redirects (`RedirectAction`), built as Envoy builds it.

use std::borrow::Cow;

use super::rewrite::replace_matched;
use super::{RequestHead, just_path};
use crate::model::route::{Redirect, RedirectPath, Route};

/// The `location` that a route's redirect answers with.
pub fn redirect_location(route: &Route, redirect: &Redirect, head: &RequestHead<'_>) -> String {
    let scheme = match &redirect.scheme {
        _ if redirect.https => "https",
        Some(scheme) => scheme,
        None => head.scheme,
    };
    let host = match &redirect.host {
        Some(host) => host,
        None => request_host(head, scheme, redirect.port.is_some()),
    };
    let port = redirect.port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = location_path(route, redirect, head.path);
    format!("{scheme}://{host}{port}{path}")
}

/// The `location` of a virtual host that serves TLS only (`require_tls`); the status is 301.
pub fn tls_redirect_location(head: &RequestHead<'_>) -> String {
    format!("https://{}{}", head.authority, head.path)
}

/// The request's host. Its port goes where the redirect names one, or where it is the default port of the
/// scheme that is being left.
fn request_host<'a>(head: &RequestHead<'a>, new_scheme: &str, new_port: bool) -> &'a str {
    let authority = head.authority;
    let colon = match authority.starts_with('[') {
        true => authority.rfind("]:").map(|bracket| bracket + 1),
        false => authority.rfind(':'),
    };
    let Some(colon) = colon else { return authority };
    let old_scheme = head.headers.get("x-forwarded-proto").map_or("", |v| v.to_str().unwrap_or(""));
    let default_port = match old_scheme {
        "https" => ":443",
        "http" => ":80",
        _ => "",
    };
    let leaves_default = new_scheme != old_scheme && &authority[colon..] == default_port;
    if new_port || leaves_default { &authority[..colon] } else { authority }
}

fn location_path<'a>(route: &Route, redirect: &'a Redirect, path: &'a str) -> Cow<'a, str> {
    let old = just_path(path);
    let rest = &path[old.len()..];
    let new: Cow<'_, str> = match &redirect.path {
        // A query of its own takes the place of the request's and is never stripped.
        RedirectPath::Replace(new) if new.contains('?') => return Cow::Borrowed(new),
        RedirectPath::Replace(new) if rest.is_empty() => Cow::Borrowed(new),
        RedirectPath::Replace(new) => {
            // From the question mark on, as the query is all that is carried over.
            let query = path.find('?').map_or("", |at| &path[at..]);
            Cow::Owned(format!("{new}{query}"))
        }
        RedirectPath::Keep => Cow::Borrowed(path),
        RedirectPath::PrefixRewrite(new) => Cow::Owned(replace_matched(&route.matches.path, path, new)),
        RedirectPath::Regex(regex, substitution) => {
            Cow::Owned(format!("{}{rest}", regex.replace_all(old, substitution.as_str())))
        }
    };
    match new.find('?').filter(|_| redirect.strip_query) {
        Some(at) => Cow::Owned(new[..at].to_owned()),
        None => new,
    }
}
