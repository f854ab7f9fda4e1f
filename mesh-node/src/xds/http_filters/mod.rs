//! HTTP filters and what routes say to them. The table of supported fields has refused what is not known before
//! anything here is asked.

mod compressor;
mod istio;
mod lua;
mod metadata;
mod rate_limit;
mod session;
mod traffic;

use std::sync::Arc;

use mesh_xds::pb::envoy::config::route::v3::cors_policy::EnabledSpecifier;
use mesh_xds::pb::envoy::config::route::v3::{CorsPolicy as OldCorsPolicy, FilterConfig};
use mesh_xds::pb::envoy::extensions::filters::http::buffer::v3::{Buffer, BufferPerRoute, buffer_per_route};
use mesh_xds::pb::envoy::extensions::filters::http::compressor::v3::{Compressor, CompressorPerRoute};
use mesh_xds::pb::envoy::extensions::filters::http::cors::v3::{Cors, CorsPolicy};
use mesh_xds::pb::envoy::extensions::filters::http::csrf::v3::CsrfPolicy;
use mesh_xds::pb::envoy::extensions::filters::http::decompressor::v3::Decompressor;
use mesh_xds::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3::{
    FilterConfig as ForwardProxy, PerRouteConfig,
};
use mesh_xds::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use mesh_xds::pb::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig as GrpcStats;
use mesh_xds::pb::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use mesh_xds::pb::envoy::extensions::filters::http::header_mutation::v3::{
    HeaderMutation, HeaderMutationPerRoute,
};
use mesh_xds::pb::envoy::extensions::filters::http::header_to_metadata::v3::Config as HeaderToMetadata;
use mesh_xds::pb::envoy::extensions::filters::http::health_check::v3::HealthCheck;
use mesh_xds::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use mesh_xds::pb::envoy::extensions::filters::http::lua::v3::{Lua, LuaPerRoute};
use mesh_xds::pb::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use mesh_xds::pb::envoy::extensions::filters::http::router::v3::Router;
use mesh_xds::pb::envoy::extensions::filters::http::set_filter_state::v3::Config as SetFilterState;
use mesh_xds::pb::envoy::extensions::filters::http::set_metadata::v3::Config as SetMetadata;
use mesh_xds::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession, StatefulSessionPerRoute,
};
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter as FilterProto, http_filter,
};
use mesh_xds::pb::google::protobuf::Any;
use mesh_xds::prost::{Message, Name};

pub(super) use self::istio::stats;
pub(super) use self::rate_limit::{bucket, of_route as rate_limits};
pub(super) use self::traffic::delay;
use super::error::{At, XdsError};
use super::listener::extension;
use super::{Context, access_log, forward_proxy, rbac};
use crate::model::http_filter::{HttpFilter, HttpFilterKind, Override, Overrides, SetFilterStates};
use crate::model::listener::Direction;
use crate::model::network::RouterFilter;
use crate::telemetry::stats::{Counter, Gauge, http_tags};

/// The name that the filter has everywhere.
const CORS: &str = "envoy.filters.http.cors";

/// Where a filter list stands.
pub(super) struct Place<'a, 'b> {
    pub(super) context: &'a Context<'b>,
    /// The connection manager's `stat_prefix`.
    pub(super) stat_prefix: &'a str,
    pub(super) direction: Direction,
}

impl Place<'_, '_> {
    /// `http.PREFIX.REST`
    fn counter(&self, rest: &str) -> Arc<Counter> {
        let name = format!("http.{}.{rest}", self.stat_prefix);
        self.context.stats.custom().counter(&name, || http_tags(self.stat_prefix, rest))
    }

    fn gauge(&self, rest: &str) -> Arc<Gauge> {
        let name = format!("http.{}.{rest}", self.stat_prefix);
        self.context.stats.custom().gauge(&name, || http_tags(self.stat_prefix, rest))
    }
}

/// The filters of a connection manager; the router is the last one.
pub(super) fn chain(
    at: At<'_>,
    protos: &[FilterProto],
    place: &Place<'_, '_>,
) -> Result<Vec<HttpFilter>, XdsError> {
    let mut filters = Vec::with_capacity(protos.len());
    for (i, proto) in protos.iter().enumerate() {
        let at = at.index(i);
        let Some(http_filter::ConfigType::TypedConfig(config)) = &proto.config_type else {
            return Err(at.field("typed_config").invalid("is required"));
        };
        let kind = one(at.field("typed_config"), config, place)?;
        let is_router = matches!(kind, HttpFilterKind::Router(_));
        if is_router != (i + 1 == protos.len()) {
            let message = match is_router {
                true => format!("{:?} must be the last HTTP filter", proto.name),
                false => format!("{:?} must not be the last HTTP filter; the router must", proto.name),
            };
            return Err(at.invalid(message));
        }
        filters.push(HttpFilter { name: proto.name.as_str().into(), disabled: proto.disabled, kind });
    }
    if filters.is_empty() {
        return Err(at.invalid("needs envoy.filters.http.router as the last filter"));
    }
    Ok(filters)
}

/// The message of a type, if `config` is one.
fn read<T: Message + Name + Default>(at: At<'_>, config: &Any) -> Result<Option<T>, XdsError> {
    mesh_xds::unpack::<T>(config).transpose().map_err(|e| at.invalid(e.to_string()))
}

fn one(at: At<'_>, config: &Any, place: &Place<'_, '_>) -> Result<HttpFilterKind, XdsError> {
    if let Some(router) = read::<Router>(at, config)? {
        return Ok(HttpFilterKind::Router(Arc::new(RouterFilter {
            suppress_envoy_headers: router.suppress_envoy_headers,
            upstream_log: access_log::convert(at.field("upstream_log"), &router.upstream_log, place.context)?,
        })));
    }
    if let Some(kind) = istio::filter(at, config, place)? {
        return Ok(kind);
    }
    if read::<Cors>(at, config)?.is_some() {
        return Ok(HttpFilterKind::Cors(Arc::new(traffic::cors_stats(place))));
    }
    if let Some(proto) = read::<HttpFault>(at, config)? {
        let fault = traffic::fault(at, &proto)?;
        return Ok(HttpFilterKind::Fault(Arc::new(fault), Arc::new(traffic::fault_stats(place))));
    }
    if let Some(proto) = read::<Rbac>(at, config)? {
        let counter = |name: &str| place.counter(&format!("rbac.{name}"));
        let stats = rbac::stats(&proto.rules_stat_prefix, &proto.shadow_rules_stat_prefix, counter);
        return Ok(HttpFilterKind::Rbac(Arc::new(rbac::http(at, &proto)?), stats));
    }
    if read::<GrpcStats>(at, config)?.is_some() {
        return Ok(HttpFilterKind::GrpcStats);
    }
    if read::<GrpcWeb>(at, config)?.is_some() {
        return Ok(HttpFilterKind::GrpcWeb);
    }
    if let Some(proto) = read::<LocalRateLimit>(at, config)? {
        return Ok(HttpFilterKind::LocalRateLimit(Arc::new(rate_limit::http(at, &proto, place.context)?)));
    }
    if let Some(proto) = read::<HeaderMutation>(at, config)? {
        let wins = proto.most_specific_header_mutations_wins;
        let mutation = traffic::header_mutation(at.field("mutations"), proto.mutations.as_ref(), wins)?;
        return Ok(HttpFilterKind::HeaderMutation(Arc::new(mutation)));
    }
    if let Some(proto) = read::<Buffer>(at, config)? {
        return Ok(HttpFilterKind::Buffer(traffic::buffer(&proto)));
    }
    if let Some(proto) = read::<CsrfPolicy>(at, config)? {
        let policy = traffic::csrf(at, &proto)?;
        return Ok(HttpFilterKind::Csrf(Arc::new(policy), traffic::csrf_stats(place)));
    }
    if let Some(proto) = read::<StatefulSession>(at, config)? {
        return Ok(HttpFilterKind::StatefulSession(session::convert(at, &proto)?.map(Arc::new)));
    }
    if let Some(proto) = read::<HeaderToMetadata>(at, config)? {
        return Ok(HttpFilterKind::HeaderToMetadata(Arc::new(metadata::from_headers(at, &proto)?)));
    }
    if let Some(proto) = read::<SetMetadata>(at, config)? {
        return Ok(HttpFilterKind::SetMetadata(Arc::new(metadata::set(&proto))));
    }
    if let Some(proto) = read::<SetFilterState>(at, config)? {
        let entries = metadata::filter_state(at.field("on_request_headers"), &proto.on_request_headers)?;
        return Ok(HttpFilterKind::SetFilterState(Arc::new(SetFilterStates {
            entries,
            clear_route_cache: proto.clear_route_cache,
        })));
    }
    if let Some(proto) = read::<HealthCheck>(at, config)? {
        return Ok(HttpFilterKind::HealthCheck(Arc::new(traffic::health_check(at, &proto)?)));
    }
    if let Some(proto) = read::<ForwardProxy>(at, config)? {
        return Ok(HttpFilterKind::ForwardProxy(forward_proxy::filter(at, &proto)?));
    }
    if let Some(proto) = read::<Compressor>(at, config)? {
        return Ok(HttpFilterKind::Compressor(Arc::new(compressor::convert(at, &proto, place)?)));
    }
    if let Some(proto) = read::<Decompressor>(at, config)? {
        let filter = compressor::decompressor(at, &proto, place)?;
        return Ok(HttpFilterKind::Decompressor(Arc::new(filter)));
    }
    if let Some(proto) = read::<Lua>(at, config)? {
        return Ok(HttpFilterKind::Lua(Arc::new(lua::convert(at, &proto, place)?)));
    }
    Err(extension(at, config))
}

/// `typed_per_filter_config` of a level, sorted by name.
pub(super) fn overrides(
    at: At<'_>,
    configs: &std::collections::HashMap<String, Any>,
    context: &Context<'_>,
) -> Result<Overrides, XdsError> {
    if configs.is_empty() {
        return Ok(Overrides::new());
    }
    let at = at.field("typed_per_filter_config");
    let mut names: Vec<_> = configs.keys().collect();
    names.sort();
    let of = |name: &String| {
        let said = said(at.field(name), &configs[name], context)?;
        Ok((name.as_str().into(), said))
    };
    names.into_iter().map(of).collect()
}

/// What the fields from before `typed_per_filter_config` say counts where that says nothing.
pub(super) fn with_cors(
    at: At<'_>,
    mut overrides: Overrides,
    old: Option<&OldCorsPolicy>,
) -> Result<Overrides, XdsError> {
    let Some(old) = old.filter(|_| !overrides.iter().any(|(_, said)| matches!(said, Override::Cors(_))))
    else {
        return Ok(overrides);
    };
    let enabled = old.enabled_specifier.as_ref();
    let policy = CorsPolicy {
        allow_origin_string_match: old.allow_origin_string_match.clone(),
        allow_methods: old.allow_methods.clone(),
        allow_headers: old.allow_headers.clone(),
        expose_headers: old.expose_headers.clone(),
        max_age: old.max_age.clone(),
        allow_credentials: old.allow_credentials,
        filter_enabled: enabled.map(|EnabledSpecifier::FilterEnabled(share)| share.clone()),
        shadow_enabled: old.shadow_enabled.clone(),
        allow_private_network_access: old.allow_private_network_access,
        forward_not_matching_preflights: old.forward_not_matching_preflights,
    };
    overrides.push((CORS.into(), Override::Cors(Arc::new(traffic::cors(at, &policy)?))));
    overrides.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(overrides)
}

fn said(at: At<'_>, config: &Any, context: &Context<'_>) -> Result<Override, XdsError> {
    if let Some(wrapper) = read::<FilterConfig>(at, config)? {
        return match &wrapper.config {
            _ if wrapper.disabled => Ok(Override::Disabled(true)),
            Some(config) if !config.type_url.is_empty() => said(at.field("config"), config, context),
            _ => Ok(Override::Disabled(false)),
        };
    }
    if let Some(proto) = read::<CorsPolicy>(at, config)? {
        return Ok(Override::Cors(Arc::new(traffic::cors(at, &proto)?)));
    }
    if let Some(proto) = read::<HttpFault>(at, config)? {
        return Ok(Override::Fault(Arc::new(traffic::fault(at, &proto)?)));
    }
    if let Some(proto) = read::<RbacPerRoute>(at, config)? {
        let rules = match &proto.rbac {
            Some(proto) => Some(Arc::new(rbac::http(at.field("rbac"), proto)?)),
            None => None,
        };
        return Ok(Override::Rbac(rules));
    }
    if let Some(proto) = read::<LocalRateLimit>(at, config)? {
        return Ok(Override::LocalRateLimit(Arc::new(rate_limit::http(at, &proto, context)?)));
    }
    if let Some(proto) = read::<HeaderMutationPerRoute>(at, config)? {
        let mutation = traffic::header_mutation(at.field("mutations"), proto.mutations.as_ref(), false)?;
        return Ok(Override::HeaderMutation(Arc::new(mutation)));
    }
    if let Some(proto) = read::<BufferPerRoute>(at, config)? {
        return Ok(match &proto.r#override {
            Some(buffer_per_route::Override::Buffer(buffer)) => Override::Buffer(traffic::buffer(buffer)),
            Some(buffer_per_route::Override::Disabled(off)) => Override::Disabled(*off),
            None => Override::Nothing,
        });
    }
    if let Some(proto) = read::<CsrfPolicy>(at, config)? {
        return Ok(Override::Csrf(Arc::new(traffic::csrf(at, &proto)?)));
    }
    if let Some(proto) = read::<StatefulSessionPerRoute>(at, config)? {
        return session::of_route(at, &proto);
    }
    if let Some(proto) = read::<SetFilterState>(at, config)? {
        let entries = metadata::filter_state(at.field("on_request_headers"), &proto.on_request_headers)?;
        return Ok(Override::SetFilterState(Arc::new(SetFilterStates {
            entries,
            clear_route_cache: proto.clear_route_cache,
        })));
    }
    if let Some(proto) = read::<CompressorPerRoute>(at, config)? {
        return compressor::of_route(at, &proto);
    }
    if let Some(proto) = read::<PerRouteConfig>(at, config)? {
        return forward_proxy::of_route(at, &proto);
    }
    if let Some(proto) = read::<LuaPerRoute>(at, config)? {
        return Ok(Override::Lua(Arc::new(lua::of_route(at, &proto)?)));
    }
    Err(extension(at, config))
}
