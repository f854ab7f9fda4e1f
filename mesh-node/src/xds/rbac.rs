//! `envoy.config.rbac.v3`, of HTTP and of network filters.

use std::sync::Arc;

use mesh_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use mesh_xds::pb::envoy::config::rbac::v3::permission::Rule;
use mesh_xds::pb::envoy::config::rbac::v3::principal::Identifier;
use mesh_xds::pb::envoy::config::rbac::v3::rbac::Action as ActionProto;
use mesh_xds::pb::envoy::config::rbac::v3::{
    MetadataSource, Permission, Policy as PolicyProto, Principal, Rbac as RulesProto, SourcedMetadata,
};
use mesh_xds::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpProto;
use mesh_xds::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use mesh_xds::pb::envoy::r#type::matcher::v3::double_matcher::MatchPattern as DoublePattern;
use mesh_xds::pb::envoy::r#type::matcher::v3::filter_state_matcher::Matcher as StateMatcher;
use mesh_xds::pb::envoy::r#type::matcher::v3::list_matcher::MatchPattern as ListPattern;
use mesh_xds::pb::envoy::r#type::matcher::v3::metadata_matcher::path_segment::Segment;
use mesh_xds::pb::envoy::r#type::matcher::v3::path_matcher::Rule as PathRule;
use mesh_xds::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern;
use mesh_xds::pb::envoy::r#type::matcher::v3::{
    FilterStateMatcher, MetadataMatcher as MetadataProto, PathMatcher, ValueMatcher as ValueProto,
};
use mesh_xds::pb::envoy::r#type::v3::Int32Range;

use super::common::{cidr, enumeration};
use super::error::{At, XdsError};
use super::listener::extension;
use super::matcher;
use super::path_template;
use crate::model::matcher::StringMatcher;
use crate::model::rbac::{
    Action, HttpRbac, Matcher, MetadataMatcher, Policy, RbacStats, Rules, ValueMatcher,
};
use crate::telemetry::stats::Counter;

pub(super) fn http(at: At<'_>, proto: &HttpProto) -> Result<HttpRbac, XdsError> {
    convert(at, proto.rules.as_ref(), proto.shadow_rules.as_ref(), &proto.shadow_rules_stat_prefix)
}

/// Rules and shadow rules of either filter.
pub(super) fn convert(
    at: At<'_>,
    enforced: Option<&RulesProto>,
    shadow: Option<&RulesProto>,
    shadow_prefix: &str,
) -> Result<HttpRbac, XdsError> {
    Ok(HttpRbac {
        rules: enforced.map(|proto| rules(at.field("rules"), proto)).transpose()?,
        shadow: shadow.map(|proto| rules(at.field("shadow_rules"), proto)).transpose()?,
        shadow_prefix: shadow_prefix.to_owned(),
    })
}

/// Statistics; the prefixes come before the names.
pub(super) fn stats(rules: &str, shadow: &str, counter: impl Fn(&str) -> Arc<Counter>) -> RbacStats {
    RbacStats::new(rules, shadow, counter)
}

fn rules(at: At<'_>, proto: &RulesProto) -> Result<Rules, XdsError> {
    let at_policies = at.field("policies");
    let mut names: Vec<_> = proto.policies.keys().collect();
    names.sort();
    let policies = names
        .into_iter()
        .map(|name| Ok((Arc::from(name.as_str()), policy(at_policies.field(name), &proto.policies[name])?)));
    Ok(Rules {
        action: match enumeration(at.field("action"), proto.action)? {
            ActionProto::Allow => Action::Allow,
            ActionProto::Deny => Action::Deny,
            ActionProto::Log => Action::Log,
        },
        policies: policies.collect::<Result<_, _>>()?,
    })
}

fn policy(at: At<'_>, proto: &PolicyProto) -> Result<Policy, XdsError> {
    Ok(Policy {
        permissions: permissions(at.field("permissions"), &proto.permissions)?,
        principals: principals(at.field("principals"), &proto.principals)?,
    })
}

fn permissions(at: At<'_>, protos: &[Permission]) -> Result<Vec<Matcher>, XdsError> {
    protos.iter().enumerate().map(|(i, proto)| permission(at.index(i), proto)).collect()
}

fn principals(at: At<'_>, protos: &[Principal]) -> Result<Vec<Matcher>, XdsError> {
    protos.iter().enumerate().map(|(i, proto)| principal(at.index(i), proto)).collect()
}

fn any(value: bool) -> Matcher {
    if value { Matcher::Any } else { Matcher::Not(Box::new(Matcher::Any)) }
}

fn permission(at: At<'_>, proto: &Permission) -> Result<Matcher, XdsError> {
    Ok(match &proto.rule {
        Some(Rule::AndRules(set)) => {
            Matcher::And(permissions(at.field("and_rules").field("rules"), &set.rules)?)
        }
        Some(Rule::OrRules(set)) => {
            Matcher::Or(permissions(at.field("or_rules").field("rules"), &set.rules)?)
        }
        Some(Rule::NotRule(of)) => Matcher::Not(Box::new(permission(at.field("not_rule"), of)?)),
        Some(Rule::Any(value)) => any(*value),
        Some(Rule::Header(of)) => Matcher::Header(Box::new(matcher::header(at.field("header"), of)?)),
        Some(Rule::UrlPath(of)) => url_path(at.field("url_path"), of)?,
        Some(Rule::UriTemplate(of)) => uri_template(at.field("uri_template"), of)?,
        Some(Rule::DestinationIp(range)) => Matcher::DestinationIp(cidr(at.field("destination_ip"), range)?),
        Some(Rule::DestinationPort(port)) => {
            let port = u16::try_from(*port);
            Matcher::DestinationPort(
                port.map_err(|_| at.field("destination_port").invalid("must be at most 65535"))?,
            )
        }
        Some(Rule::DestinationPortRange(range)) => port_range(at.field("destination_port_range"), range)?,
        Some(Rule::RequestedServerName(of)) => {
            Matcher::RequestedServerName(matcher::string(at.field("requested_server_name"), of)?)
        }
        Some(Rule::Metadata(of)) => metadata(at.field("metadata"), of)?,
        Some(Rule::SourcedMetadata(of)) => sourced(at.field("sourced_metadata"), of)?,
        Some(Rule::Matcher(_)) => return Err(at.field("matcher").unsupported()),
        None => return Err(at.invalid("needs a rule")),
    })
}

fn principal(at: At<'_>, proto: &Principal) -> Result<Matcher, XdsError> {
    Ok(match &proto.identifier {
        Some(Identifier::AndIds(set)) => {
            Matcher::And(principals(at.field("and_ids").field("ids"), &set.ids)?)
        }
        Some(Identifier::OrIds(set)) => Matcher::Or(principals(at.field("or_ids").field("ids"), &set.ids)?),
        Some(Identifier::NotId(of)) => Matcher::Not(Box::new(principal(at.field("not_id"), of)?)),
        Some(Identifier::Any(value)) => any(*value),
        Some(Identifier::Authenticated(of)) => {
            let at = at.field("authenticated");
            let name = of.principal_name.as_ref();
            Matcher::Authenticated(
                name.map(|of| matcher::string(at.field("principal_name"), of)).transpose()?,
            )
        }
        Some(Identifier::SourceIp(range)) => Matcher::DirectRemoteIp(cidr(at.field("source_ip"), range)?),
        Some(Identifier::DirectRemoteIp(range)) => {
            Matcher::DirectRemoteIp(cidr(at.field("direct_remote_ip"), range)?)
        }
        Some(Identifier::RemoteIp(range)) => Matcher::RemoteIp(cidr(at.field("remote_ip"), range)?),
        Some(Identifier::Header(of)) => Matcher::Header(Box::new(matcher::header(at.field("header"), of)?)),
        Some(Identifier::UrlPath(of)) => url_path(at.field("url_path"), of)?,
        Some(Identifier::Metadata(of)) => metadata(at.field("metadata"), of)?,
        Some(Identifier::SourcedMetadata(of)) => sourced(at.field("sourced_metadata"), of)?,
        Some(Identifier::FilterState(of)) => {
            let (key, value) = filter_state(at.field("filter_state"), of)?;
            Matcher::FilterState { key, value }
        }
        Some(Identifier::Custom(_)) => return Err(at.field("custom").unsupported()),
        None => return Err(at.invalid("needs an identifier")),
    })
}

fn url_path(at: At<'_>, proto: &PathMatcher) -> Result<Matcher, XdsError> {
    match &proto.rule {
        Some(PathRule::Path(of)) => Ok(Matcher::UrlPath(matcher::string(at.field("path"), of)?)),
        None => Err(at.field("path").invalid("is required")),
    }
}

fn uri_template(at: At<'_>, proto: &TypedExtensionConfig) -> Result<Matcher, XdsError> {
    let at = at.field("typed_config");
    let Some(config) = &proto.typed_config else { return Err(at.invalid("is required")) };
    match mesh_xds::unpack::<UriTemplateMatchConfig>(config) {
        Some(Ok(of)) => {
            let regex = path_template::compile(&of.path_template);
            Ok(Matcher::UriTemplate(regex.map_err(|message| at.field("path_template").invalid(message))?))
        }
        Some(Err(error)) => Err(at.invalid(error.to_string())),
        None => Err(extension(at, config)),
    }
}

fn port_range(at: At<'_>, range: &Int32Range) -> Result<Matcher, XdsError> {
    let start = u16::try_from(range.start).map_err(|_| at.field("start").invalid("must be a port"))?;
    let end = u32::try_from(range.end).map_err(|_| at.field("end").invalid("must be a port"))?;
    Ok(Matcher::DestinationPortRange(start, end))
}

fn sourced(at: At<'_>, proto: &SourcedMetadata) -> Result<Matcher, XdsError> {
    if !matches!(enumeration(at.field("metadata_source"), proto.metadata_source)?, MetadataSource::Dynamic) {
        return Err(at.field("metadata_source").invalid("must be DYNAMIC; mesh-node has no other"));
    }
    let of = proto.metadata_matcher.as_ref();
    metadata(
        at.field("metadata_matcher"),
        of.ok_or_else(|| at.field("metadata_matcher").invalid("is required"))?,
    )
}

/// A matcher of dynamic metadata, of RBAC or of a route.
pub(super) fn metadata(at: At<'_>, proto: &MetadataProto) -> Result<Matcher, XdsError> {
    Ok(Matcher::Metadata(Box::new(metadata_matcher(at, proto)?)))
}

/// As [`metadata`].
pub(super) fn metadata_matcher(at: At<'_>, proto: &MetadataProto) -> Result<MetadataMatcher, XdsError> {
    let path = proto.path.iter().map(|segment| match &segment.segment {
        Some(Segment::Key(key)) => Ok(key.clone()),
        None => Err(at.field("path").invalid("each segment needs a key")),
    });
    let value_proto = proto.value.as_ref().ok_or_else(|| at.field("value").invalid("is required"))?;
    Ok(MetadataMatcher {
        filter: proto.filter.clone(),
        path: path.collect::<Result<_, _>>()?,
        value: value(at.field("value"), value_proto)?,
        invert: proto.invert,
    })
}

fn value(at: At<'_>, proto: &ValueProto) -> Result<ValueMatcher, XdsError> {
    Ok(match &proto.match_pattern {
        Some(MatchPattern::NullMatch(_)) => ValueMatcher::Null,
        Some(MatchPattern::PresentMatch(present)) => ValueMatcher::Present(*present),
        Some(MatchPattern::BoolMatch(wanted)) => ValueMatcher::Bool(*wanted),
        Some(MatchPattern::StringMatch(of)) => {
            ValueMatcher::String(matcher::string(at.field("string_match"), of)?)
        }
        Some(MatchPattern::DoubleMatch(of)) => match &of.match_pattern {
            Some(DoublePattern::Exact(number)) => {
                ValueMatcher::Number { start: *number, end: *number, exact: true }
            }
            Some(DoublePattern::Range(range)) => {
                ValueMatcher::Number { start: range.start, end: range.end, exact: false }
            }
            None => return Err(at.field("double_match").invalid("needs one of exact, range")),
        },
        Some(MatchPattern::ListMatch(of)) => match &of.match_pattern {
            Some(ListPattern::OneOf(of)) => {
                ValueMatcher::OneOf(Box::new(value(at.field("list_match").field("one_of"), of)?))
            }
            None => return Err(at.field("list_match").invalid("needs one_of")),
        },
        Some(MatchPattern::OrMatch(of)) => {
            let at = at.field("or_match");
            let at = at.field("value_matchers");
            let all = of.value_matchers.iter().enumerate().map(|(i, of)| value(at.index(i), of));
            ValueMatcher::Or(all.collect::<Result<_, _>>()?)
        }
        None => return Err(at.invalid("needs a pattern")),
    })
}

/// Key and what its value must be.
pub(super) fn filter_state(
    at: At<'_>,
    proto: &FilterStateMatcher,
) -> Result<(String, StringMatcher), XdsError> {
    match &proto.matcher {
        Some(StateMatcher::StringMatch(of)) => {
            Ok((proto.key.clone(), matcher::string(at.field("string_match"), of)?))
        }
        _ => Err(at.invalid("needs string_match; mesh-node has no other")),
    }
}
