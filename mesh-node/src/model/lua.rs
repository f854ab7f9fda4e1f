//! Scripts (`envoy.extensions.filters.http.lua.v3`): their text, and which one a route wants.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Str;
use super::metadata::Metadata;
use crate::telemetry::stats::Counter;

/// `lua.v3.Lua`.
#[derive(Debug)]
pub struct LuaFilter {
    /// Runs where no route says otherwise.
    pub default: Option<Arc<Script>>,
    /// What routes may name.
    pub named: BTreeMap<Str, Arc<Script>>,
    /// A script that changes request headers has the route chosen anew. Default true.
    pub clear_route_cache: bool,
    pub context: LuaContext,
    /// `http.PREFIX.lua.*`
    pub errors: Arc<Counter>,
    pub executions: Arc<Counter>,
}

/// `filter_context`: what the configuration has to say to a script.
pub type LuaContext = Metadata;

/// One script, which parses.
#[derive(Debug, PartialEq, Eq)]
pub struct Script {
    pub source: String,
}

/// `lua.v3.LuaPerRoute`.
#[derive(Debug, Clone)]
pub struct LuaOfRoute {
    pub choice: LuaChoice,
    /// `None`: the filter's.
    pub context: Option<LuaContext>,
}

/// Which script a route wants.
#[derive(Debug, Clone)]
pub enum LuaChoice {
    Default,
    None,
    Named(Str),
    Own(Arc<Script>),
}
