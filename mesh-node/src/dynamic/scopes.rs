//! The scopes of scoped routes: they serve once the route tables that they name have come.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::assembly::{Named, Routes};
use super::compile::{Compiled, Value};
use crate::model::scopes::{Scope, ScopeHandle, ScopeRoutes, ScopeTable};
use crate::model::source::{Need, NeedKind};
use crate::model::{RouteHandle, Str};

/// All scopes of a sidecar, whatever listener uses them.
#[derive(Debug, Default)]
pub(super) struct ScopeSet {
    pub(super) handle: ScopeHandle,
    pub(super) named: BTreeMap<Str, Named>,
    /// The server has said what there is.
    answered: bool,
    /// They have served before.
    pub(super) serves: bool,
    /// Since when there are others than those that serve.
    pub(super) changed: Option<Instant>,
    /// The tables of those that serve.
    serving: BTreeSet<Str>,
    /// The tables of all of them, each with where it comes from.
    pub(super) needs: Vec<Need>,
}

impl ScopeSet {
    /// Takes a scope.
    ///
    /// # Errors
    /// Another one has its key.
    pub(super) fn put(
        &mut self,
        name: &str,
        compiled: Arc<Compiled>,
        version: &str,
        now: Instant,
    ) -> Result<(), String> {
        let key = |compiled: &Compiled| scope(compiled).map(|scope| scope.key.clone());
        let of = key(&compiled);
        let same = self.named.iter().find(|(other, held)| ***other != *name && key(&held.compiled) == of);
        if let Some((other, _)) = same {
            return Err(format!("scoped_route.key: is that of {other:?} too; change one"));
        }
        let new = Named { compiled, version: version.to_owned(), updated: SystemTime::now() };
        let held = self.named.get(name);
        if held.is_none_or(|held| !Arc::ptr_eq(&held.compiled, &new.compiled)) {
            self.changed.get_or_insert(now);
        }
        self.named.insert(name.into(), new);
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str, now: Instant) {
        if self.named.remove(name).is_some() {
            self.changed.get_or_insert(now);
        }
    }

    /// A response was taken.
    pub(super) fn answered(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.answered, true) {
            self.changed.get_or_insert(now);
        }
    }

    fn tables(&self) -> impl Iterator<Item = &Str> {
        self.named.values().filter_map(|named| match &scope(&named.compiled)?.routes {
            ScopeRoutes::Named(name) => Some(name),
            ScopeRoutes::Inline(_) => None,
        })
    }

    /// Notes what tables are needed, given what listeners need.
    pub(super) fn set_needs<'a>(&mut self, of_listeners: impl Iterator<Item = &'a Need>) {
        let of_listeners: BTreeSet<&Need> =
            of_listeners.filter(|need| need.kind == NeedKind::Scopes).collect();
        let names: BTreeSet<Str> = self.tables().chain(&self.serving).cloned().collect();
        let sources = of_listeners.iter().filter_map(|need| need.tables.as_deref());
        let needs = sources.flat_map(|(source, patience)| {
            names.iter().map(move |name| Need {
                kind: NeedKind::Routes,
                name: name.clone(),
                source: source.clone(),
                patience: *patience,
                tables: None,
            })
        });
        self.needs = needs.collect();
        if of_listeners.is_empty() {
            *self = Self { handle: self.handle.clone(), ..Self::default() };
        }
    }

    /// When [`Self::settle`] should look again, though nothing comes.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let patience = self.needs.iter().filter_map(|need| need.patience);
        let since = self.changed;
        patience.filter_map(move |patience| Some(since? + patience))
    }

    /// The table that is to serve from now on; `None` while there is no other, or its route tables have not come.
    pub(super) fn settle(
        &mut self,
        routes: &mut BTreeMap<Str, Routes>,
        over: impl Fn(&Need, Instant) -> bool,
    ) -> Option<Arc<ScopeTable>> {
        let since = self.changed.filter(|_| self.answered)?;
        let tables: BTreeSet<Str> = self.tables().cloned().collect();
        let waits = |need: &Need| {
            tables.contains(&need.name)
                && routes.get(&need.name).is_none_or(|table| table.active.is_none())
                && !over(need, since)
        };
        if self.needs.iter().any(waits) {
            return None;
        }
        let mut handle = |name: &Str| -> RouteHandle {
            // Also of a table that has not come: it may yet.
            routes.entry(name.clone()).or_default().handle.clone()
        };
        let handles: HashMap<Str, RouteHandle> =
            tables.iter().map(|name| (name.clone(), handle(name))).collect();
        let scopes = self.named.values().filter_map(|named| scope(&named.compiled));
        let table: ScopeTable = scopes
            .filter_map(|scope| Some((scope.key.clone(), scope.handle(|name| handles.get(name).cloned())?)))
            .collect();
        (self.changed, self.serves, self.serving) = (None, true, tables);
        Some(Arc::new(table))
    }
}

fn scope(compiled: &Compiled) -> Option<&Scope> {
    match &compiled.value {
        Value::Scope(scope) => Some(scope),
        _ => None,
    }
}
