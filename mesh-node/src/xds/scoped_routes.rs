//! `scoped_routes` of a connection manager, and the scopes that come apart from it.

use std::sync::Arc;

use mesh_xds::pb::envoy::config::route::v3::ScopedRouteConfiguration;
use mesh_xds::pb::envoy::config::route::v3::scoped_route_configuration::key::fragment;
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::ScopedRoutes as Proto;
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::ConfigSpecifier;
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::scope_key_builder::{
    FragmentBuilder, fragment_builder,
};

use super::config_source::{need, need_scopes};
use super::error::{At, XdsError};
use super::{Context, route, support};
use crate::model::scopes::{KeyPart, Scope, ScopeRoutes, ScopedRoutes, Scopes, Take};
use crate::model::source::NeedKind;

pub(super) fn convert(at: At<'_>, proto: &Proto, context: &Context<'_>) -> Result<ScopedRoutes, XdsError> {
    let at_key = at.field("scope_key_builder");
    let builder = proto.scope_key_builder.as_ref().ok_or_else(|| at_key.invalid("is required"))?;
    let parts = builder.fragments.iter().enumerate();
    let at_parts = at_key.field("fragments");
    let key: Vec<KeyPart> =
        parts.map(|(i, part)| self::part(at_parts.index(i), part)).collect::<Result<_, _>>()?;
    if key.is_empty() {
        return Err(at_parts.invalid("needs a fragment"));
    }
    let at_tables = at.field("rds_config_source");
    let scopes = match &proto.config_specifier {
        Some(ConfigSpecifier::ScopedRds(rds)) => {
            let at_rds = at.field("scoped_rds");
            let at_rds = at_rds.field("scoped_rds_config_source");
            let source =
                rds.scoped_rds_config_source.as_ref().ok_or_else(|| at_rds.invalid("is required"))?;
            // Envoy: the tables come from where the scopes do unless another source is given.
            let tables = proto.rds_config_source.as_ref().unwrap_or(source);
            need_scopes((at_rds, source), (at_tables, tables), context)?;
            Scopes::Apart
        }
        Some(ConfigSpecifier::ScopedRouteConfigurationsList(list)) => {
            let at = at.field("scoped_route_configurations_list");
            let at = at.field("scoped_route_configurations");
            let mut scopes: Vec<Scope> = Vec::with_capacity(list.scoped_route_configurations.len());
            for (i, proto_scope) in list.scoped_route_configurations.iter().enumerate() {
                let scope = self::one(at.index(i), proto_scope, context)?;
                if let ScopeRoutes::Named(name) = &scope.routes {
                    need(at_tables, NeedKind::Routes, name, proto.rds_config_source.as_ref(), context)?;
                }
                if let Some(same) = scopes.iter().find(|other| other.key == scope.key) {
                    let message = format!("has the key of {:?}; change one", same.name);
                    return Err(at.index(i).field("key").invalid(message));
                }
                scopes.push(scope);
            }
            Scopes::Inline(scopes)
        }
        None => return Err(at.invalid("needs one of scoped_rds, scoped_route_configurations_list")),
    };
    Ok(ScopedRoutes { key, scopes })
}

fn part(at: At<'_>, proto: &FragmentBuilder) -> Result<KeyPart, XdsError> {
    use fragment_builder::Type;
    use fragment_builder::header_value_extractor::ExtractType;
    let at = at.field("header_value_extractor");
    let Some(Type::HeaderValueExtractor(proto)) = &proto.r#type else {
        return Err(at.invalid("is required"));
    };
    let header = KeyPart::header(&proto.name);
    let header =
        header.ok_or_else(|| at.field("name").invalid(format!("{:?} is no header name", proto.name)))?;
    let take = match &proto.extract_type {
        Some(ExtractType::Index(index)) => {
            if *index != 0 && proto.element_separator.is_empty() {
                return Err(at.field("index").invalid("must be 0 without an element_separator"));
            }
            Take::Index(usize::try_from(*index).unwrap_or(usize::MAX))
        }
        Some(ExtractType::Element(element)) => {
            let at = at.field("element");
            if element.separator.is_empty() || element.key.is_empty() {
                return Err(at.invalid("needs separator and key"));
            }
            Take::Element { separator: element.separator.as_str().into(), key: element.key.as_str().into() }
        }
        None => return Err(at.invalid("needs one of element, index")),
    };
    Ok(KeyPart { header, separator: proto.element_separator.as_str().into(), take })
}

/// Compiles a scope that comes apart from its listeners; `path` is where it stands, for errors.
pub fn scope(
    path: &str,
    proto: &ScopedRouteConfiguration,
    context: &mut Context<'_>,
) -> Result<Scope, XdsError> {
    support::check(path, proto, &mut context.ignored)?;
    one(At::root(path), proto, context)
}

fn one(at: At<'_>, proto: &ScopedRouteConfiguration, context: &Context<'_>) -> Result<Scope, XdsError> {
    if proto.name.is_empty() {
        return Err(at.field("name").invalid("is required"));
    }
    let at_key = at.field("key");
    let key = proto.key.as_ref().filter(|key| !key.fragments.is_empty());
    let key = key.ok_or_else(|| at_key.invalid("needs a fragment"))?;
    let fragments = key.fragments.iter().map(|fragment| match &fragment.r#type {
        Some(fragment::Type::StringKey(text)) => Ok(text.as_str().into()),
        None => Err(at_key.invalid("every fragment needs string_key")),
    });
    let routes = match (&*proto.route_configuration_name, &proto.route_configuration) {
        ("", None) => return Err(at.invalid("needs one of route_configuration_name, route_configuration")),
        ("", Some(table)) => {
            let at = at.field("route_configuration");
            ScopeRoutes::Inline(Arc::new(route::convert(at, table, context)?))
        }
        (name, None) => ScopeRoutes::Named(name.into()),
        (_, Some(_)) => {
            let message = "cannot be given beside route_configuration_name; keep one";
            return Err(at.field("route_configuration").invalid(message));
        }
    };
    Ok(Scope { name: proto.name.as_str().into(), key: fragments.collect::<Result<_, _>>()?, routes })
}
