//! The route table of a request: written into its listener, or swapped while its connection goes on.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderMap;

use super::WorkerContext;
use crate::model::headers::HeaderMutations;
use crate::model::network::RouteSource;
use crate::model::route::{Action, ClusterChoice, Route, RouteTable, VirtualHost, WeightedCluster};
use crate::model::scopes::{ScopeHandle, ScopedRoutes, Scopes};
use crate::model::{RouteHandle, Str};
use crate::router::Routed;

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
    Fixed(&'a Arc<RouteTable>),
    Swapped(Arc<RouteTable>),
}

/// The route of a stream whose response headers it changes: answers of the proxy's own have them too.
#[derive(Debug)]
pub struct KeptRoute {
    table: Arc<RouteTable>,
    virtual_host: Arc<VirtualHost>,
    route: Arc<Route>,
    /// Index of the weighted cluster that was drawn.
    weighted: Option<usize>,
}

impl KeptRoute {
    /// `None` if the response stays as it is.
    pub(super) fn of(table: &Arc<RouteTable>, routed: &Routed<'_>) -> Option<Self> {
        let weighted = routed.weighted.map(|weighted| &weighted.headers);
        let levels = [&routed.route.headers, &routed.virtual_host.headers, &table.headers];
        let changes =
            |level: &HeaderMutations| !level.response_add.is_empty() || !level.response_remove.is_empty();
        if !levels.into_iter().chain(weighted).any(changes) {
            return None;
        }
        let at = |drawn: &WeightedCluster| {
            weighted_clusters(routed.route).iter().position(|cluster| std::ptr::eq(cluster, drawn))
        };
        Some(Self {
            table: table.clone(),
            virtual_host: routed.virtual_host.clone(),
            route: routed.route.clone(),
            weighted: routed.weighted.and_then(at),
        })
    }

    pub(super) fn table(&self) -> &RouteTable {
        &self.table
    }

    pub(super) fn routed(&self) -> Routed<'_> {
        Routed {
            virtual_host: &self.virtual_host,
            route: &self.route,
            weighted: self.weighted.and_then(|at| weighted_clusters(&self.route).get(at)),
        }
    }
}

fn weighted_clusters(route: &Route) -> &[WeightedCluster] {
    match &route.action {
        Action::Forward(forward) => match &forward.cluster {
            ClusterChoice::Weighted { clusters, .. } => clusters,
            _ => &[],
        },
        _ => &[],
    }
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
    type Target = Arc<RouteTable>;

    fn deref(&self) -> &Arc<RouteTable> {
        match self {
            Self::Fixed(table) => table,
            Self::Swapped(table) => table,
        }
    }
}
