//! `envoy.config.route.v3.RouteConfiguration`: virtual hosts and what their routes match.

use std::sync::Arc;

use http::HeaderValue;
use mesh_xds::pb::envoy::config::route::v3::route::Action as ActionProto;
use mesh_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;
use mesh_xds::pb::envoy::config::route::v3::virtual_host::TlsRequirementType;
use mesh_xds::pb::envoy::config::route::v3::{
    Decorator as DecoratorProto, Route as RouteProto, RouteConfiguration, RouteMatch as MatchProto,
    VirtualHost as HostProto,
};

use super::common::{boolean, enumeration, number, runtime_fraction};
use super::config_source::need;
use super::error::{At, XdsError};
use super::headers::{lists, mutations};
use super::http_filters::{overrides, rate_limits, with_cors};
use super::{Context, matcher, metadata, rbac, route_action, support, tracing};
use crate::model::domains::Domains;
use crate::model::route::{
    Action, PathMatch, RequireTls, Route, RouteMatch, RouteTable, TlsMatch, VirtualHost,
};
use crate::model::source::{NeedKind, Source};
use crate::model::tracing::Decorator;

/// Envoy's `max_direct_response_body_size_bytes`.
const DIRECT_RESPONSE_BODY_BYTES: u32 = 4096;

/// What the converters of one table share.
pub(super) struct Table<'a, 'b> {
    pub(super) context: &'a Context<'b>,
    /// Must clusters exist?
    pub(super) validate_clusters: bool,
    pub(super) max_body_bytes: usize,
}

/// Compiles a table that comes apart from its listeners; `path` is where it stands, for errors.
pub fn table(
    path: &str,
    proto: &RouteConfiguration,
    context: &mut Context<'_>,
) -> Result<RouteTable, XdsError> {
    support::check(path, proto, &mut context.ignored)?;
    let at = At::root(path);
    if let Some(vhds) = &proto.vhds {
        let at = at.field("vhds.config_source");
        let (name, scope) = (&proto.name, format!("vhds.{}", proto.name));
        need(at, NeedKind::VirtualHosts, name, &scope, vhds.config_source.as_ref(), context)?;
        let needs = context.needs.borrow();
        if let Some(Source::Grpc(source)) = needs.last().map(|need| &need.source)
            && !source.delta
        {
            // Envoy's own rule.
            return Err(at.field("api_config_source.api_type").invalid("must be DELTA_GRPC"));
        }
    }
    whole(at, proto, context)
}

/// Compiles a virtual host that comes apart from its table, to see whether it can be honoured.
pub fn virtual_host_apart(
    path: &str,
    proto: &HostProto,
    context: &mut Context<'_>,
) -> Result<VirtualHost, XdsError> {
    support::check(path, proto, &mut context.ignored)?;
    let max_body_bytes = DIRECT_RESPONSE_BODY_BYTES as usize;
    virtual_host(At::root(path), proto, &Table { context, validate_clusters: false, max_body_bytes })
}

/// A table within its listener, which has no parts that come apart from it.
pub(super) fn convert(
    at: At<'_>,
    proto: &RouteConfiguration,
    context: &Context<'_>,
) -> Result<RouteTable, XdsError> {
    if proto.vhds.is_some() {
        return Err(at.field("vhds").invalid("is only for tables that come by rds"));
    }
    whole(at, proto, context)
}

fn whole(at: At<'_>, proto: &RouteConfiguration, context: &Context<'_>) -> Result<RouteTable, XdsError> {
    let max_body = number(proto.max_direct_response_body_size_bytes, DIRECT_RESPONSE_BODY_BYTES);
    let table = Table {
        context,
        // Envoy: true for inline tables.
        validate_clusters: boolean(proto.validate_clusters, true),
        max_body_bytes: usize::try_from(max_body).unwrap_or(usize::MAX),
    };
    let at_hosts = at.field("virtual_hosts");
    let hosts = proto.virtual_hosts.iter().enumerate();
    let virtual_hosts: Vec<_> = hosts
        .map(|(i, proto)| virtual_host(at_hosts.index(i), proto, &table).map(Arc::new))
        .collect::<Result<_, _>>()?;
    let domains = Domains::new(virtual_hosts.iter().map(|host| host.domains.iter()))
        .map_err(|e| at_hosts.invalid(format!("{e}; remove one")))?;
    Ok(RouteTable {
        name: proto.name.as_str().into(),
        virtual_hosts,
        domains,
        headers: mutations(at, lists!(proto))?,
        filters: overrides(at, &proto.typed_per_filter_config, context)?,
        internal_only_headers: proto
            .internal_only_headers
            .iter()
            .map(|name| name.to_ascii_lowercase().into())
            .collect(),
        ignore_port_in_host_matching: proto.ignore_port_in_host_matching,
        most_specific_header_mutations_wins: proto.most_specific_header_mutations_wins,
    })
}

fn virtual_host(at: At<'_>, proto: &HostProto, table: &Table<'_, '_>) -> Result<VirtualHost, XdsError> {
    let at_routes = at.field("routes");
    let routes = proto.routes.iter().enumerate();
    let retry = match &proto.retry_policy {
        Some(policy) => Some(Arc::new(route_action::retry(at.field("retry_policy"), policy)?)),
        None => None,
    };
    let at_domains = at.field("domains");
    for (i, domain) in proto.domains.iter().enumerate() {
        let fixed = domain.strip_prefix('*').or(domain.strip_suffix('*')).unwrap_or(domain);
        if domain.is_empty() || fixed.contains('*') {
            let message = format!("{domain:?} is not a domain; * may only be its first or last character");
            return Err(at_domains.index(i).invalid(message));
        }
    }
    let at_virtual = at.field("virtual_clusters");
    Ok(VirtualHost {
        name: proto.name.as_str().into(),
        domains: proto.domains.iter().map(|domain| domain.as_str().into()).collect(),
        routes: routes
            .map(|(i, proto)| route(at_routes.index(i), proto, table).map(Arc::new))
            .collect::<Result<_, _>>()?,
        require_tls: match enumeration(at.field("require_tls"), proto.require_tls)? {
            TlsRequirementType::None => RequireTls::None,
            TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
            TlsRequirementType::All => RequireTls::All,
        },
        headers: mutations(at, lists!(proto))?,
        filters: with_cors(
            at.field("cors"),
            overrides(at, &proto.typed_per_filter_config, table.context)?,
            proto.cors.as_ref(),
        )?,
        retry,
        hedge: proto.hedge_policy.as_ref().map(|policy| policy.hedge_on_per_try_timeout),
        rate_limits: rate_limits(at.field("rate_limits"), &proto.rate_limits)?,
        include_request_attempt_count: proto.include_request_attempt_count,
        include_attempt_count_in_response: proto.include_attempt_count_in_response,
        virtual_clusters: proto
            .virtual_clusters
            .iter()
            .enumerate()
            .map(|(i, proto)| {
                let at = at_virtual.index(i);
                Ok((proto.name.as_str().into(), matcher::headers(at.field("headers"), &proto.headers)?))
            })
            .collect::<Result<_, XdsError>>()?,
    })
}

fn route(at: At<'_>, proto: &RouteProto, table: &Table<'_, '_>) -> Result<Route, XdsError> {
    let matches = proto.r#match.as_ref().ok_or_else(|| at.field("match").invalid("is required"))?;
    let action = match &proto.action {
        Some(ActionProto::Route(action)) => {
            let forward = route_action::forward(at.field("route"), action, table)?;
            Action::Forward(Box::new(forward))
        }
        Some(ActionProto::Redirect(action)) => {
            Action::Redirect(route_action::redirect(at.field("redirect"), action)?)
        }
        Some(ActionProto::DirectResponse(action)) => {
            Action::Direct(route_action::direct(at.field("direct_response"), action, table)?)
        }
        Some(_) => return Err(at.unsupported()),
        None => return Err(at.invalid("needs one of route, redirect, direct_response")),
    };
    let filters = overrides(at, &proto.typed_per_filter_config, table.context)?;
    let of_route = match &proto.action {
        Some(ActionProto::Route(action)) => Some((action, at.field("route"))),
        _ => None,
    };
    let (rate_limits, with_rate_limits_of_host) = match &of_route {
        Some((action, at)) => (
            rate_limits(at.field("rate_limits"), &action.rate_limits)?,
            boolean(action.include_vh_rate_limits, false),
        ),
        None => (Vec::new(), false),
    };
    Ok(Route {
        rate_limits,
        with_rate_limits_of_host,
        metadata: metadata::by_namespace(proto.metadata.as_ref(), &["istio"]),
        decorator: decorator(at.field("decorator"), proto.decorator.as_ref())?,
        tracing: match &proto.tracing {
            Some(own) => Some(tracing::of_route(at.field("tracing"), own)?),
            None => None,
        },
        name: proto.name.as_str().into(),
        matches: route_match(at.field("match"), matches)?,
        action,
        headers: mutations(at, lists!(proto))?,
        filters: match &of_route {
            Some((action, at)) => with_cors(at.field("cors"), filters, action.cors.as_ref())?,
            None => filters,
        },
    })
}

/// What requests are called.
fn decorator(at: At<'_>, proto: Option<&DecoratorProto>) -> Result<Option<Decorator>, XdsError> {
    let Some(proto) = proto else { return Ok(None) };
    if proto.operation.is_empty() {
        return Err(at.field("operation").invalid("is required"));
    }
    let operation = HeaderValue::try_from(&proto.operation)
        .map_err(|_| at.field("operation").invalid("cannot be the value of a header"))?;
    Ok(Some(Decorator { operation, propagate: boolean(proto.propagate, true) }))
}

fn route_match(at: At<'_>, proto: &MatchProto) -> Result<RouteMatch, XdsError> {
    Ok(RouteMatch {
        path: path_match(at, proto)?,
        case_sensitive: boolean(proto.case_sensitive, true),
        headers: matcher::headers(at.field("headers"), &proto.headers)?,
        query: matcher::queries(at.field("query_parameters"), &proto.query_parameters)?,
        metadata: {
            let at = at.field("dynamic_metadata");
            let given = proto.dynamic_metadata.iter().enumerate();
            given.map(|(i, proto)| rbac::metadata_matcher(at.index(i), proto)).collect::<Result<_, _>>()?
        },
        tls: proto.tls_context.as_ref().map(|tls| TlsMatch {
            presented: tls.presented.map(|presented| presented.value),
            validated: tls.validated.map(|validated| validated.value),
        }),
        filter_state: {
            let at = at.field("filter_state");
            let given = proto.filter_state.iter().enumerate();
            given.map(|(i, proto)| rbac::filter_state(at.index(i), proto)).collect::<Result<_, _>>()?
        },
        runtime_fraction: proto.runtime_fraction.as_ref().map(runtime_fraction),
        grpc: proto.grpc.is_some(),
    })
}

fn path_match(at: At<'_>, proto: &MatchProto) -> Result<PathMatch, XdsError> {
    Ok(match &proto.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => PathMatch::Prefix(prefix.clone()),
        Some(PathSpecifier::Path(path)) => PathMatch::Exact(path.clone()),
        Some(PathSpecifier::SafeRegex(regex)) => {
            PathMatch::Regex(matcher::whole(at.field("safe_regex"), regex)?)
        }
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            // Envoy: "^[^?#]+[^?#/]$".
            if !prefix.starts_with('/') || prefix.ends_with('/') || prefix.contains(['?', '#']) {
                let message = format!("{prefix:?} must begin with /, not end with /, and have no ? or #");
                return Err(at.field("path_separated_prefix").invalid(message));
            }
            PathMatch::SeparatedPrefix(prefix.clone())
        }
        Some(PathSpecifier::ConnectMatcher(_)) => PathMatch::Connect,
        Some(_) => return Err(at.unsupported()),
        None => {
            let message = "needs one of prefix, path, safe_regex, path_separated_prefix, connect_matcher";
            return Err(at.invalid(message));
        }
    })
}
