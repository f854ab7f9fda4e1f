//! Filters whose configuration comes apart from their listener (`config_discovery`, ECDS): which ones a listener
//! names, and the listener with them filled in.
//!
//! A listener is compiled with its filters' configurations in place, so the data path knows nothing of this; a
//! change of one is a change of its listeners.

use mesh_xds::pb::envoy::config::core::v3::{ExtensionConfigSource, TypedExtensionConfig};
use mesh_xds::pb::envoy::config::listener::v3::filter::ConfigType;
use mesh_xds::pb::envoy::config::listener::v3::{FilterChain, Listener};
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType as HttpConfigType;
use mesh_xds::pb::google::protobuf::Any;
use mesh_xds::prost::{Message, Name};

use super::config_source::need;
use super::error::{At, XdsError};
use super::{Context, listener, support};
use crate::model::Str;
use crate::model::source::NeedKind;

/// A filter of a listener whose configuration has a name in place of content.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovered {
    pub name: Str,
    /// Full names of the messages that it may be.
    types: Vec<String>,
    /// For the time until one comes, and where none does.
    default: Option<Any>,
    /// `apply_default_config_without_warming`
    pub default_at_once: bool,
}

impl Discovered {
    pub fn has_default(&self) -> bool {
        self.default.is_some()
    }
}

/// The filters of a listener that come apart from it; each is added to the needs of `context`. None for most.
pub fn discovered(
    path: &str,
    proto: &Listener,
    context: &mut Context<'_>,
) -> Result<Vec<Discovered>, XdsError> {
    let mut found = Vec::new();
    let at = At::root(path);
    let at_chains = at.field("filter_chains");
    let numbered = proto.filter_chains.iter().enumerate().map(|(i, chain)| (Some(i), chain));
    for (i, chain) in numbered.chain(proto.default_filter_chain.as_ref().map(|chain| (None, chain))) {
        let at = i.map_or(at.field("default_filter_chain"), |i| at_chains.index(i));
        of_chain(at, chain, context, &mut found)?;
    }
    if !found.is_empty() {
        support::check(path, proto, &mut context.ignored)?;
    }
    Ok(found)
}

fn of_chain(
    at: At<'_>,
    chain: &FilterChain,
    context: &Context<'_>,
    found: &mut Vec<Discovered>,
) -> Result<(), XdsError> {
    let at = at.field("filters");
    for (i, filter) in chain.filters.iter().enumerate() {
        let at = at.index(i);
        match &filter.config_type {
            Some(ConfigType::ConfigDiscovery(source)) => {
                one(at.field("config_discovery"), &filter.name, "network_filter", source, context, found)?;
            }
            Some(ConfigType::TypedConfig(config)) => {
                let Some(manager) = manager(config) else { continue };
                let at = at.field("typed_config");
                let at = at.field("http_filters");
                for (i, filter) in manager.http_filters.iter().enumerate() {
                    if let Some(HttpConfigType::ConfigDiscovery(source)) = &filter.config_type {
                        let at = at.index(i);
                        let at = at.field("config_discovery");
                        one(at, &filter.name, "http_filter", source, context, found)?;
                    }
                }
            }
            None => {}
        }
    }
    Ok(())
}

fn manager(config: &Any) -> Option<HttpConnectionManager> {
    // What cannot be read is refused where it is converted.
    mesh_xds::unpack::<HttpConnectionManager>(config)?.ok()
}

fn one(
    at: At<'_>,
    name: &str,
    kind: &str,
    source: &ExtensionConfigSource,
    context: &Context<'_>,
    found: &mut Vec<Discovered>,
) -> Result<(), XdsError> {
    if source.type_urls.is_empty() {
        return Err(at.field("type_urls").invalid("is required"));
    }
    let types: Vec<String> =
        source.type_urls.iter().filter_map(|url| Some(url.rsplit('/').next()?.to_owned())).collect();
    if let Some(default) = &source.default_config {
        let of = mesh_xds::type_name(default);
        if !types.contains(&of) {
            return Err(at.field("default_config").invalid(format!("is a {of}, which type_urls lacks")));
        }
    }
    let config_source = source.config_source.as_ref();
    let scope = format!("extension_config_discovery.{kind}.{name}");
    need(at.field("config_source"), NeedKind::Extension, name, &scope, config_source, context)?;
    found.push(Discovered {
        name: name.into(),
        types,
        default: source.default_config.clone(),
        default_at_once: source.apply_default_config_without_warming,
    });
    Ok(())
}

/// The listener with each filter filled in: by what has come (`come`), else by its default. A filter that has neither
/// has no place here: the caller has made sure that there is none.
///
/// # Errors
/// A configuration of a type that the listener does not allow.
pub fn filled<'a>(
    proto: &Listener,
    found: &[Discovered],
    come: &dyn Fn(&str) -> Option<&'a TypedExtensionConfig>,
) -> Result<Listener, String> {
    let pick = |name: &str| -> Result<Any, String> {
        let wanted = found.iter().find(|of| *of.name == *name).ok_or("is not known")?;
        match come(name).and_then(|come| come.typed_config.as_ref()) {
            Some(config) => {
                allowed(wanted, config)?;
                Ok(config.clone())
            }
            None => wanted.default.clone().ok_or_else(|| format!("{name:?} has not come")),
        }
    };
    let mut listener = proto.clone();
    let chains = listener.filter_chains.iter_mut().chain(listener.default_filter_chain.iter_mut());
    for filter in chains.flat_map(|chain| &mut chain.filters) {
        match &mut filter.config_type {
            Some(ConfigType::ConfigDiscovery(_)) => {
                filter.config_type = Some(ConfigType::TypedConfig(pick(&filter.name)?));
            }
            Some(ConfigType::TypedConfig(config)) => {
                let Some(mut manager) = manager(config) else { continue };
                let mut changed = false;
                for filter in &mut manager.http_filters {
                    if matches!(filter.config_type, Some(HttpConfigType::ConfigDiscovery(_))) {
                        filter.config_type = Some(HttpConfigType::TypedConfig(pick(&filter.name)?));
                        changed = true;
                    }
                }
                if changed {
                    let type_url = format!("type.googleapis.com/{}", HttpConnectionManager::full_name());
                    *config = Any { type_url, value: manager.encode_to_vec() };
                }
            }
            None => {}
        }
    }
    Ok(listener)
}

/// May this configuration stand for that filter?
///
/// # Errors
/// Why not.
pub fn allowed(wanted: &Discovered, config: &Any) -> Result<(), String> {
    let of = mesh_xds::type_name(config);
    if wanted.types.contains(&of) {
        return Ok(());
    }
    Err(format!("typed_config: is a {of}; its listener allows {}", wanted.types.join(", ")))
}

/// Is this a filter that is built here? It is compiled with the listeners that name it.
pub fn extension(
    path: &str,
    proto: &TypedExtensionConfig,
    context: &mut Context<'_>,
) -> Result<(), XdsError> {
    support::check(path, proto, &mut context.ignored)?;
    let at = At::root(path);
    match &proto.typed_config {
        None => Err(at.field("typed_config").invalid("is required")),
        Some(config)
            if support::of_field(&mesh_xds::type_name(config), "@type") == support::Verdict::Refused =>
        {
            Err(listener::extension(at.field("typed_config"), config))
        }
        Some(_) => Ok(()),
    }
}
