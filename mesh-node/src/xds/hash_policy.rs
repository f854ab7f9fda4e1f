//! `envoy.config.route.v3.RouteAction.HashPolicy`, of routes and of load balancing policies.

use mesh_xds::pb::envoy::config::route::v3::route_action::HashPolicy as Proto;
use mesh_xds::pb::envoy::config::route::v3::route_action::hash_policy::{Cookie, PolicySpecifier};

use super::common::duration;
use super::error::{At, XdsError};
use super::matcher;
use crate::model::route::{HashCookie, HashOn, HashPolicy};

/// The policies of a list, but for those that hash nothing, which Envoy allows.
pub(super) fn convert(at: At<'_>, protos: &[Proto]) -> Result<Vec<HashPolicy>, XdsError> {
    let one = |(i, proto): (usize, &Proto)| {
        let on = hash_on(at.index(i), proto).transpose()?;
        Some(on.map(|on| HashPolicy { on, terminal: proto.terminal }))
    };
    protos.iter().enumerate().filter_map(one).collect()
}

fn hash_on(at: At<'_>, proto: &Proto) -> Result<Option<HashOn>, XdsError> {
    Ok(Some(match &proto.policy_specifier {
        Some(PolicySpecifier::Header(header)) => {
            let at = at.field("header");
            let at_rewrite = at.field("regex_rewrite");
            HashOn::Header {
                name: matcher::header_key(at.field("header_name"), &header.header_name)?,
                rewrite: match &header.regex_rewrite {
                    Some(rewrite) => Some(matcher::rewrite(at_rewrite, rewrite)?),
                    None => None,
                },
            }
        }
        Some(PolicySpecifier::Cookie(cookie)) => HashOn::Cookie(self::cookie(at.field("cookie"), cookie)?),
        Some(PolicySpecifier::ConnectionProperties(properties)) if properties.source_ip => HashOn::SourceIp,
        Some(PolicySpecifier::ConnectionProperties(_)) => return Ok(None),
        Some(PolicySpecifier::QueryParameter(parameter)) => HashOn::QueryParameter(parameter.name.clone()),
        _ => return Err(at.invalid("needs one of header, cookie, connection_properties, query_parameter")),
    }))
}

fn cookie(at: At<'_>, proto: &Cookie) -> Result<HashCookie, XdsError> {
    Ok(HashCookie {
        name: proto.name.clone(),
        path: proto.path.clone(),
        // Whole seconds, as Envoy takes it.
        ttl_s: proto.ttl.map(|ttl| duration(at.field("ttl"), ttl)).transpose()?.map(|ttl| ttl.as_secs()),
        attributes: proto.attributes.iter().map(|a| (a.name.clone(), a.value.clone())).collect(),
    })
}
