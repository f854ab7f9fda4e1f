//! The route table of a connection: written into its listener, or swapped while the connection goes on.

use std::ops::Deref;
use std::sync::Arc;

use super::WorkerContext;
use crate::model::RouteHandle;
use crate::model::network::RouteSource;
use crate::model::route::RouteTable;

/// Where the requests of one connection find their routes.
#[derive(Debug)]
pub(super) enum Routes {
    Fixed(Arc<RouteTable>),
    Swapped(RouteHandle),
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
        }
    }

    pub(super) fn now(&self) -> Now<'_> {
        match self {
            Self::Fixed(table) => Now::Fixed(table),
            Self::Swapped(handle) => Now::Swapped(handle.load_full()),
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
