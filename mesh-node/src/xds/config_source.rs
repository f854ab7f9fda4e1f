//! `envoy.config.core.v3.ConfigSource`, and `dynamic_resources` of the bootstrap.

use std::time::Duration;

use mesh_xds::pb::envoy::config::bootstrap::v3::bootstrap::DynamicResources;
use mesh_xds::pb::envoy::config::core::v3::api_config_source::ApiType;
use mesh_xds::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use mesh_xds::pb::envoy::config::core::v3::{ApiConfigSource, ApiVersion, ConfigSource};

use super::common::{duration, duration_or, enumeration, timeout};
use super::error::{At, XdsError};
use super::{Context, grpc_service};
use crate::model::source::{Dynamic, GrpcServer, GrpcSource, GrpcTarget, Need, NeedKind, Source};

/// Envoy's `initial_fetch_timeout`.
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Notes that the resource being compiled names another one. `scope`: what its statistics are named after.
pub(super) fn need(
    at: At<'_>,
    kind: NeedKind,
    name: &str,
    scope: &str,
    source: Option<&ConfigSource>,
    context: &Context<'_>,
) -> Result<(), XdsError> {
    let source = source.ok_or_else(|| at.invalid("is required"))?;
    let (source, patience) = convert(at, source)?;
    let (name, scope) = (name.into(), scope.into());
    context.needs.borrow_mut().push(Need { kind, name, scope, source, patience, tables: None });
    Ok(())
}

/// Notes that the resource being compiled takes all scopes of one source, whose tables come from another.
pub(super) fn need_scopes(
    (at, scopes): (At<'_>, &ConfigSource),
    (at_tables, tables): (At<'_>, &ConfigSource),
    scope: &str,
    context: &Context<'_>,
) -> Result<(), XdsError> {
    let (source, patience) = convert(at, scopes)?;
    let tables = Some(Box::new(convert(at_tables, tables)?));
    let need =
        Need { kind: NeedKind::Scopes, name: "".into(), scope: scope.into(), source, patience, tables };
    context.needs.borrow_mut().push(need);
    Ok(())
}

/// The source, and for how long its first answer is waited for.
fn convert(at: At<'_>, proto: &ConfigSource) -> Result<(Source, Option<Duration>), XdsError> {
    version(at.field("resource_api_version"), proto.resource_api_version)?;
    let source = match &proto.config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_)) => Source::Ads,
        // Of a resource that came over ADS it is ADS.
        Some(ConfigSourceSpecifier::Self_(own)) => {
            let at = at.field("self");
            version(at.field("transport_api_version"), own.transport_api_version)?;
            Source::Ads
        }
        Some(ConfigSourceSpecifier::PathConfigSource(file)) => Source::File {
            path: file.path.as_str().into(),
            watched: file.watched_directory.as_ref().map(|watched| watched.path.as_str().into()),
        },
        Some(ConfigSourceSpecifier::Path(path)) => Source::File { path: path.as_str().into(), watched: None },
        Some(ConfigSourceSpecifier::ApiConfigSource(api)) => {
            let at = at.field("api_config_source");
            match enumeration(at.field("api_type"), api.api_type)? {
                ApiType::Grpc => Source::Grpc(grpc(at, api, false)?),
                ApiType::DeltaGrpc => Source::Grpc(grpc(at, api, true)?),
                // Envoy: the stream of these is that of `ads_config`.
                ApiType::AggregatedGrpc | ApiType::AggregatedDeltaGrpc => Source::Ads,
                ApiType::Rest => Source::Grpc(rest(at, api)?),
                ApiType::DeprecatedAndUnavailableDoNotUse => {
                    return Err(at.field("api_type").invalid("must be REST, GRPC or DELTA_GRPC"));
                }
            }
        }
        None => return Err(at.invalid("needs one of path_config_source, api_config_source, ads")),
    };
    let at_timeout = at.field("initial_fetch_timeout");
    Ok((source, timeout(at_timeout, proto.initial_fetch_timeout, Some(INITIAL_FETCH_TIMEOUT))?))
}

/// There is only one version of the protocol left.
pub(super) fn version(at: At<'_>, version: i32) -> Result<(), XdsError> {
    match enumeration(at, version)? {
        ApiVersion::V2 => Err(at.invalid("must be V3")),
        ApiVersion::Auto | ApiVersion::V3 => Ok(()),
    }
}

fn grpc(at: At<'_>, proto: &ApiConfigSource, delta: bool) -> Result<GrpcSource, XdsError> {
    version(at.field("transport_api_version"), proto.transport_api_version)?;
    let at = at.field("grpc_services");
    if proto.grpc_services.is_empty() {
        return Err(at.invalid("needs a server"));
    }
    let servers = proto.grpc_services.iter().enumerate();
    let servers = servers.map(|(i, service)| grpc_service::server(at.index(i), service));
    Ok(GrpcSource { delta, poll: None, servers: servers.collect::<Result<_, _>>()? })
}

/// Envoy's `request_timeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

fn rest(at: At<'_>, proto: &ApiConfigSource) -> Result<GrpcSource, XdsError> {
    version(at.field("transport_api_version"), proto.transport_api_version)?;
    let [name] = &proto.cluster_names[..] else {
        return Err(at.field("cluster_names").invalid("must be the name of one static cluster"));
    };
    let every = proto.refresh_delay.ok_or_else(|| at.field("refresh_delay").invalid("is required"))?;
    let every = duration(at.field("refresh_delay"), every)?;
    if every.is_zero() {
        return Err(at.field("refresh_delay").invalid("must be above 0"));
    }
    let timeout = duration_or(at.field("request_timeout"), proto.request_timeout, REQUEST_TIMEOUT)?;
    let server = GrpcServer {
        target: GrpcTarget::Cluster(name.as_str().into()),
        authority: name.as_str().into(),
        metadata: Vec::new(),
        tokens: Vec::new(),
        max_message_bytes: None,
    };
    Ok(GrpcSource { delta: false, poll: Some((every, timeout)), servers: vec![server] })
}

/// `dynamic_resources`.
pub(super) fn dynamic(proto: &DynamicResources) -> Result<Dynamic, XdsError> {
    let at = At::root("dynamic_resources");
    let of = |name, proto: Option<&ConfigSource>| match proto {
        Some(proto) => convert(at.field(name), proto).map(Some),
        None => Ok(None),
    };
    let at_ads = at.field("ads_config");
    let ads = match &proto.ads_config {
        Some(api) => {
            let delta = match enumeration(at_ads.field("api_type"), api.api_type)? {
                ApiType::Grpc | ApiType::AggregatedGrpc => false,
                ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc => true,
                _ => return Err(at_ads.field("api_type").invalid("must be GRPC or DELTA_GRPC")),
            };
            Some(grpc(at_ads, api, delta)?)
        }
        None => None,
    };
    let dynamic = Dynamic {
        ads,
        clusters: of("cds_config", proto.cds_config.as_ref())?,
        listeners: of("lds_config", proto.lds_config.as_ref())?,
        runtime: Vec::new(),
        name_table: false,
        local_cluster: None,
    };
    let uses_ads = [&dynamic.clusters, &dynamic.listeners]
        .into_iter()
        .any(|source| matches!(source, Some((Source::Ads, _))));
    if uses_ads && dynamic.ads.is_none() {
        return Err(at_ads.invalid("is required where ads is the source"));
    }
    Ok(dynamic)
}
