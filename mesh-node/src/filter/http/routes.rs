//! The route table of a request: written into its listener, or swapped while its connection goes on.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderMap;

use super::WorkerContext;
use crate::model::network::RouteSource;
use crate::model::route::RouteTable;
use crate::model::scopes::{ScopeHandle, ScopedRoutes, Scopes};
use crate::model::{RouteHandle, Str};

/// Where the requests of one connection find their routes.
#[derive(Debug)]
pub(super) enum Routes {
    Fixed(Arc<RouteTable>),
    Swapped(RouteHandle),
    /// A table for each key of headers.
    Scoped(Arc<ScopedRoutes>, ScopeHandle),
}

/// The table as of one moment.
pub(super) enum Now<'a> {
    Fixed(&'a RouteTable),
    Swapped(Arc<RouteTable>),
}

impl Routes {
    /// A name that the configuration does not have is an empty table: no request finds a route.
    pub(super) fn of(source: &RouteSource, ctx: &WorkerContext) -> Self {
        match source {
            RouteSource::Inline(table) => Self::Fixed(table.clone()),
            RouteSource::Named(name) => match ctx.published.load().routes.get(name) {
                Some(handle) => Self::Swapped(handle.clone()),
                None => Self::Fixed(Arc::default()),
            },
            RouteSource::Scoped(scoped) => {
                let snapshot = ctx.published.load();
                let handle = match &scoped.scopes {
                    Scopes::Apart => snapshot.scopes.clone(),
                    Scopes::Inline(scopes) => {
                        let handle = |name: &Str| snapshot.routes.get(name).cloned();
                        let table = scopes.iter().filter_map(|s| Some((s.key.clone(), s.handle(handle)?)));
                        Arc::new(ArcSwap::from_pointee(table.collect()))
                    }
                };
                Self::Scoped(scoped.clone(), handle)
            }
        }
    }

    /// The table for a request with these headers. One without a scope finds no route.
    pub(super) fn now(&self, headers: &HeaderMap) -> Now<'_> {
        match self {
            Self::Fixed(table) => Now::Fixed(table),
            Self::Swapped(handle) => Now::Swapped(handle.load_full()),
            Self::Scoped(scoped, scopes) => {
                let found = scoped.key_of(headers).and_then(|key| scopes.load().get(&key).cloned());
                Now::Swapped(found.map(|handle| handle.load_full()).unwrap_or_default())
            }
        }
    }
}

impl Deref for Now<'_> {
    type Target = RouteTable;

    fn deref(&self) -> &RouteTable {
        match self {
            Self::Fixed(table) => table,
            Self::Swapped(table) => table,
        }
    }
}
