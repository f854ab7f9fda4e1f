//! Listeners with filters that come apart from them (ECDS): which have all they need, and what is done when one
//! comes. A listener waits as a template, and is compiled with its filters filled in.

use std::sync::Arc;
use std::time::Instant;

use mesh_xds::client::ResourceType;
use mesh_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use mesh_xds::pb::envoy::config::listener::v3::Listener as ListenerProto;

use super::Assembly;
use super::assembly::is_over;
use super::compile::{Compiled, Value};
use super::slot::put_named;
use crate::model::Str;
use crate::model::listener::Listener;
use crate::model::source::{Need, NeedKind};
use crate::xds::{self, Discovered};

/// A listener as it came, with names in place of filters.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) raw: Arc<Compiled>,
    proto: Arc<ListenerProto>,
    filters: Arc<[Discovered]>,
    pub(super) version: String,
    since: Instant,
    /// It has been compiled at least once.
    filled: bool,
}

impl Template {
    pub(super) fn needs(&self) -> &[Need] {
        &self.raw.needs
    }

    /// Until when a default is not used yet.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let patience = self.needs().iter().filter_map(|need| need.patience);
        patience.filter(|_| !self.filled).map(|patience| self.since + patience)
    }

    fn patience(&self, name: &str) -> Option<std::time::Duration> {
        self.needs().iter().find(|need| *need.name == *name).and_then(|need| need.patience)
    }
}

impl Assembly {
    /// Takes a listener that names filters.
    pub(super) fn take_template(
        &mut self,
        name: &str,
        raw: Arc<Compiled>,
        version: &str,
        now: Instant,
    ) -> Result<(), String> {
        let Value::Template(proto, filters) = &raw.value else { return Ok(()) };
        let (proto, filters) = (proto.clone(), filters.clone());
        let same = self.templates.get(name).is_some_and(|known| Arc::ptr_eq(&known.raw, &raw));
        let (since, filled) = match self.templates.get(name).filter(|_| same) {
            Some(known) => (known.since, known.filled),
            None => (now, false),
        };
        let template = Template { raw, proto, filters, version: version.to_owned(), since, filled };
        let before = self.templates.insert(name.into(), template);
        let taken = self.fill(name, now);
        if taken.is_err() {
            // The one before stays in force.
            match before {
                Some(before) => drop(self.templates.insert(name.into(), before)),
                None => drop(self.templates.remove(name)),
            }
        }
        self.changed.needs = true;
        taken
    }

    /// Compiles a listener that names filters, if they are there.
    fn fill(&mut self, name: &str, now: Instant) -> Result<(), String> {
        let Some(template) = self.templates.get(name) else { return Ok(()) };
        let settled = |filter: &Discovered| {
            self.extensions.contains_key(&filter.name)
                || filter.has_default()
                    && (filter.default_at_once
                        || template.filled
                        || is_over(template.patience(&filter.name), template.since, now))
        };
        if !template.filters.iter().all(settled) {
            return Ok(());
        }
        let come = |name: &str| -> Option<&TypedExtensionConfig> {
            match &self.extensions.get(name)?.compiled.value {
                Value::Extension(config) => Some(config),
                _ => None,
            }
        };
        let listener = xds::filled(&template.proto, &template.filters, &come)?;
        let compiled = self.compiler().compile_listener(&listener)?;
        let version = template.version.clone();
        let Value::Listener(listener) = &compiled.value else { return Ok(()) };
        let value = Arc::new(Listener { drain: Arc::default(), ..(**listener).clone() });
        self.changed.needs |= self.listeners.put(name, value, &compiled, &version, now)?;
        if let Some(template) = self.templates.get_mut(name) {
            template.filled = true;
        }
        Ok(())
    }

    /// Takes a filter's configuration, and compiles the listeners that name it anew.
    pub(super) fn take_extension(
        &mut self,
        name: &str,
        compiled: Arc<Compiled>,
        version: &str,
        now: Instant,
    ) -> Result<(), String> {
        if let Value::Extension(config) = &compiled.value
            && let Some(config) = &config.typed_config
        {
            for template in self.templates.values() {
                if let Some(filter) = template.filters.iter().find(|filter| *filter.name == *name) {
                    xds::allowed(filter, config)?;
                }
            }
        }
        let name = Str::from(name);
        let before = self.extensions.remove(&name);
        put_named(&mut self.extensions, &name, compiled, version);
        let outcome = self.fill_all(&name, now);
        if outcome.is_err() {
            match before {
                Some(before) => drop(self.extensions.insert(name.clone(), before)),
                None => drop(self.extensions.remove(&name)),
            }
            // What was compiled before is in the compiler's memory: this brings it back.
            let _ = self.fill_all(&name, now);
        }
        outcome
    }

    /// Compiles the listeners that name this filter.
    fn fill_all(&mut self, filter: &str, now: Instant) -> Result<(), String> {
        let named = |template: &Template| template.filters.iter().any(|of| *of.name == *filter);
        let listeners: Vec<Str> =
            self.templates.iter().filter(|(_, t)| named(t)).map(|(name, _)| name.clone()).collect();
        listeners.iter().try_for_each(|listener| self.fill(listener, now))
    }

    /// A filter's configuration is gone: its default holds where there is one, else what it was.
    pub(super) fn remove_extension(&mut self, name: &str, now: Instant) {
        let defaults = self.templates.values().all(|template| {
            let of = template.filters.iter().find(|filter| *filter.name == *name);
            of.is_none_or(Discovered::has_default)
        });
        if defaults && self.extensions.remove(name).is_some() {
            let _ = self.fill_all(name, now);
        }
    }

    /// Compiles listeners whose filters have not come in time and have a default.
    pub(super) fn fill_late(&mut self, now: Instant) {
        let late: Vec<Str> = self
            .templates
            .iter()
            .filter(|(_, template)| !template.filled && template.deadlines().any(|at| at <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in late {
            if let Err(reason) = self.fill(&name, now) {
                tracing::warn!(%name, "listener with the defaults of its filters: {reason}");
            }
        }
    }

    /// Does a listener wait for a filter that may still come? One that was refused does not.
    pub(super) fn awaits_extensions(&self) -> bool {
        let pending = |need: &Need| {
            need.kind == NeedKind::Extension
                && !self.extensions.contains_key(&need.name)
                && !self.errors.contains_key(&(ResourceType::ExtensionConfig, need.name.to_string()))
        };
        self.templates.values().any(|template| !template.filled && template.needs().iter().any(pending))
    }
}
