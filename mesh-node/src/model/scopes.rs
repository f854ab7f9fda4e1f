//! Scoped routes: which route table a request uses, by a key made of its headers (`scoped_routes`).

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::HOST;
use http::{HeaderMap, HeaderName};

use super::route::RouteTable;
use super::{RouteHandle, Str};

/// Envoy's `ScopedRoutes`.
#[derive(Debug)]
pub struct ScopedRoutes {
    /// Every part must be in a request, or it has no scope.
    pub key: Vec<KeyPart>,
    pub scopes: Scopes,
}

/// Where the scopes are.
#[derive(Debug)]
pub enum Scopes {
    Inline(Vec<Scope>),
    /// They come apart from the listener (`scoped_rds`): `Snapshot::scopes` has them.
    Apart,
}

/// `ScopedRouteConfiguration`.
#[derive(Debug)]
pub struct Scope {
    pub name: Str,
    pub key: ScopeKey,
    pub routes: ScopeRoutes,
}

/// The fragments of a key, in order.
pub type ScopeKey = Box<[Box<str>]>;

#[derive(Debug)]
pub enum ScopeRoutes {
    Inline(Arc<RouteTable>),
    Named(Str),
}

/// Route tables by key, as they are now.
pub type ScopeTable = HashMap<ScopeKey, RouteHandle, ahash::RandomState>;

/// The scopes that come apart from listeners: swapped in place.
pub type ScopeHandle = Arc<ArcSwap<ScopeTable>>;

/// `HeaderValueExtractor`.
#[derive(Debug)]
pub struct KeyPart {
    pub header: HeaderName,
    /// Splits the header's first value; empty: it is one element.
    pub separator: Str,
    pub take: Take,
}

#[derive(Debug)]
pub enum Take {
    Index(usize),
    /// What stands behind `key` and the separator in the first element that has this key.
    Element {
        separator: Str,
        key: Str,
    },
}

impl ScopedRoutes {
    /// The key of a request with these headers; `None` if a part of it is missing.
    pub fn key_of(&self, headers: &HeaderMap) -> Option<ScopeKey> {
        self.key.iter().map(|part| part.of(headers).map(Box::from)).collect()
    }
}

impl KeyPart {
    /// A header that is looked for by this name: Envoy's `:authority` is `host` here.
    pub fn header(name: &str) -> Option<HeaderName> {
        if name.eq_ignore_ascii_case(":authority") { Some(HOST) } else { name.parse().ok() }
    }

    fn of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let value = headers.get(&self.header)?.to_str().ok()?;
        let (whole, parts) = match &*self.separator {
            "" => (Some(value), None),
            separator => (None, Some(value.split(separator))),
        };
        let mut elements = whole.into_iter().chain(parts.into_iter().flatten());
        match &self.take {
            Take::Index(index) => elements.nth(*index),
            Take::Element { separator, key } => elements.find_map(|element| {
                let (found, value) = element.split_once(&**separator)?;
                (*found == **key).then_some(value)
            }),
        }
    }
}

impl Scope {
    /// The handle of its routes, given those of named tables; `None` if its table is not known.
    pub fn handle(&self, named: impl Fn(&Str) -> Option<RouteHandle>) -> Option<RouteHandle> {
        match &self.routes {
            ScopeRoutes::Inline(table) => Some(Arc::new(ArcSwap::new(table.clone()))),
            ScopeRoutes::Named(name) => named(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(separator: &str, take: Take) -> KeyPart {
        KeyPart { header: "x-scope".parse().unwrap(), separator: separator.into(), take }
    }

    #[test]
    fn a_key_is_cut_out_of_headers_as_envoy_does() {
        let headers = HeaderMap::from_iter([
            ("x-scope".parse().unwrap(), "a=1;b=2;c".parse().unwrap()),
            (HOST, "here:80".parse().unwrap()),
        ]);
        let element = |key: &str| Take::Element { separator: "=".into(), key: key.into() };
        assert_eq!(part("", Take::Index(0)).of(&headers), Some("a=1;b=2;c"));
        assert_eq!(part(";", Take::Index(2)).of(&headers), Some("c"));
        assert_eq!(part(";", Take::Index(3)).of(&headers), None);
        assert_eq!(part(";", element("b")).of(&headers), Some("2"));
        assert_eq!(part(";", element("c")).of(&headers), None, "no separator, no value");
        let host = KeyPart {
            header: KeyPart::header(":authority").unwrap(),
            separator: "".into(),
            take: Take::Index(0),
        };
        let routes = ScopedRoutes { key: vec![host, part(";", element("a"))], scopes: Scopes::Apart };
        let key: ScopeKey = vec!["here:80".into(), "1".into()].into_boxed_slice();
        assert_eq!(routes.key_of(&headers), Some(key));
        assert_eq!(routes.key_of(&HeaderMap::new()), None);
    }
}
