//! Virtual hosts that come apart from their route tables (VHDS): a table serves with those that there are, and is put
//! together anew when one comes or goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mesh_xds::client::ResourceType;

use super::assembly::{Assembly, Routes};
use super::compile::Compiled;
use super::error_state::ErrorState;
use super::slot::Named;
use crate::model::Str;
use crate::model::source::{Need, NeedKind};

/// All virtual hosts of a sidecar that came apart from their tables.
#[derive(Debug, Default)]
pub(super) struct VirtualHosts {
    /// By resource name: the table's, a slash, and whatever the server calls it.
    pub(super) named: BTreeMap<Str, Named>,
    /// The server has said what there is.
    pub(super) answered: bool,
    /// They are others than those that the tables have.
    pub(super) changed: bool,
}

impl VirtualHosts {
    /// Those of a table.
    fn of<'a>(&'a self, table: &'a str) -> impl Iterator<Item = Arc<Compiled>> + 'a {
        let is_its = move |name: &str| name.strip_prefix(table).is_some_and(|rest| rest.starts_with('/'));
        self.named.iter().filter(move |(name, _)| is_its(name)).map(|(_, named)| named.compiled.clone())
    }
}

/// What a table says of virtual hosts that come apart from it.
pub(super) fn need_of(compiled: &Compiled) -> Option<&Need> {
    compiled.needs.iter().find(|need| need.kind == NeedKind::VirtualHosts)
}

impl Assembly {
    /// Takes a table as it came: with its virtual hosts that came before.
    ///
    /// # Errors
    /// They do not go together.
    pub(super) fn take_routes(
        &mut self,
        name: &str,
        compiled: Arc<Compiled>,
        version: &str,
        now: Instant,
    ) -> Result<(), String> {
        let whole = match need_of(&compiled) {
            Some(_) => self.compiler().compile_routes(&compiled, self.virtual_hosts.of(name))?,
            None => compiled.clone(),
        };
        let routes = self.routes.entry(name.into()).or_default();
        routes.base = Some(compiled);
        routes.put(Named::new(whole, version), now);
        self.changed.needs = true;
        Ok(())
    }

    /// Puts tables together anew. One whose virtual hosts do not go together stays as it was.
    pub(super) fn join_virtual_hosts(&mut self, now: Instant) {
        if !std::mem::take(&mut self.virtual_hosts.changed) {
            return;
        }
        let mut routes = std::mem::take(&mut self.routes);
        for (name, table) in &mut routes {
            let Some(base) = table.base.as_ref().filter(|base| need_of(base).is_some()) else { continue };
            match self.compiler().compile_routes(base, self.virtual_hosts.of(name)) {
                Ok(whole) => {
                    let version = table.version();
                    table.put(Named::new(whole, &version), now);
                    self.errors.remove(&(ResourceType::VirtualHost, name.to_string()));
                }
                Err(details) => {
                    tracing::warn!(table = %name, %details, "virtual hosts do not go together");
                    let (failed, at) = (base.body.clone(), SystemTime::now());
                    let error = ErrorState { failed, at, details, version: table.version() };
                    self.errors.insert((ResourceType::VirtualHost, name.to_string()), error);
                }
            }
        }
        self.routes = routes;
    }
}

impl Routes {
    /// The table is to be this one.
    fn put(&mut self, named: Named, now: Instant) {
        match &mut self.active {
            Some(active) if Arc::ptr_eq(&active.compiled, &named.compiled) => {
                *active = named;
                self.pending = None;
            }
            _ => self.pending = Some((named, now)),
        }
    }

    fn version(&self) -> String {
        let newest = self.pending.as_ref().map(|(named, _)| named).or(self.active.as_ref());
        newest.map(|named| named.version.to_string()).unwrap_or_default()
    }
}
