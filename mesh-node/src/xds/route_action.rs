//! What a matched route does: forward, redirect, answer; retry policies.

use std::sync::Arc;
use std::time::Duration;

use mesh_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use mesh_xds::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use mesh_xds::pb::envoy::config::route::v3::retry_policy::{
    RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority,
};
use mesh_xds::pb::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy,
};
use mesh_xds::pb::envoy::config::route::v3::weighted_cluster::cluster_weight;
use mesh_xds::pb::envoy::config::route::v3::{
    DirectResponseAction, InternalRedirectPolicy, RedirectAction, RetryPolicy as RetryProto, RouteAction,
    WeightedCluster as WeightedProto,
};
use mesh_xds::pb::envoy::extensions::internal_redirect::allow_listed_routes::v3::AllowListedRoutesConfig;
use mesh_xds::pb::envoy::extensions::internal_redirect::previous_routes::v3::PreviousRoutesConfig;
use mesh_xds::pb::envoy::extensions::internal_redirect::safe_cross_scheme::v3::SafeCrossSchemeConfig;
use mesh_xds::pb::envoy::extensions::retry::host::omit_canary_hosts::v3::OmitCanaryHostsPredicate;
use mesh_xds::pb::envoy::extensions::retry::host::omit_host_metadata::v3::OmitHostMetadataConfig;
use mesh_xds::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use mesh_xds::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use mesh_xds::pb::google::protobuf;

use super::common::{data, duration_or, enumeration, non_empty, number, runtime_fraction, timeout};
use super::error::{At, XdsError};
use super::headers::{lists, mutations};
use super::http_connection_manager::upgrades;
use super::http_filters::overrides;
use super::listener::extension;
use super::route::Table;
use super::{format, hash_policy, headers, matcher, metadata};
use crate::model::metadata::{Metadata, MetadataValue};
use crate::model::route::{
    ClusterChoice, DirectResponse, Forward, HostRewrite, InternalRedirect, Mirror, PathRewrite, Redirect,
    RedirectPath, RedirectPredicate, RetryOn, RetryPolicy, WeightedCluster,
};
use crate::runtime::Setting;

/// Envoy's route timeout.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's base of the retry back-off.
const RETRY_BASE: Duration = Duration::from_millis(25);

pub(super) fn forward(at: At<'_>, proto: &RouteAction, table: &Table<'_, '_>) -> Result<Forward, XdsError> {
    let retry = match &proto.retry_policy {
        Some(policy) => Some(Arc::new(self::retry(at.field("retry_policy"), policy)?)),
        None => None,
    };
    let at_duration = at.field("max_stream_duration");
    let stream = proto.max_stream_duration.unwrap_or_default();
    let not_found = at.field("cluster_not_found_response_code");
    let upgrades = proto.upgrade_configs.iter().map(|u| (u.upgrade_type.as_str(), u.enabled));
    Ok(Forward {
        cluster: cluster_choice(at, proto, table)?,
        cluster_not_found_status: match enumeration(not_found, proto.cluster_not_found_response_code)? {
            ClusterNotFoundResponseCode::ServiceUnavailable => 503,
            ClusterNotFoundResponseCode::NotFound => 404,
            ClusterNotFoundResponseCode::InternalServerError => 500,
        },
        path_rewrite: path_rewrite(at, proto)?,
        internal_redirect: match &proto.internal_redirect_policy {
            Some(policy) => Some(Box::new(internal_redirect(at.field("internal_redirect_policy"), policy)?)),
            None => None,
        },
        host_rewrite: host_rewrite(at, proto)?,
        append_x_forwarded_host: proto.append_x_forwarded_host,
        timeout: timeout(at.field("timeout"), proto.timeout, Some(TIMEOUT))?,
        idle_timeout: timeout(at.field("idle_timeout"), proto.idle_timeout, None)?,
        max_stream_duration: given(at_duration.field("max_stream_duration"), stream.max_stream_duration)?,
        max_grpc_timeout: given(at.field("max_grpc_timeout"), proto.max_grpc_timeout)?,
        grpc_timeout_offset: timeout(at.field("grpc_timeout_offset"), proto.grpc_timeout_offset, None)?,
        grpc_timeout_header_max: given(
            at_duration.field("grpc_timeout_header_max"),
            stream.grpc_timeout_header_max,
        )?,
        retry,
        hedge: proto.hedge_policy.as_ref().map(|policy| policy.hedge_on_per_try_timeout),
        upgrades: self::upgrades(at.field("upgrade_configs"), upgrades)?,
        terminates_connect: proto
            .upgrade_configs
            .iter()
            .any(|u| u.upgrade_type.eq_ignore_ascii_case("connect") && u.connect_config.is_some()),
        metadata_match: metadata::criteria(proto.metadata_match.as_ref(), None),
        hash_policy: hash_policy::convert(at.field("hash_policy"), &proto.hash_policy)?,
        priority_high: proto.priority == 1,
        mirrors: mirrors(at.field("request_mirror_policies"), &proto.request_mirror_policies, table)?,
    })
}

fn mirrors(
    at: At<'_>,
    protos: &[RequestMirrorPolicy],
    table: &Table<'_, '_>,
) -> Result<Vec<Mirror>, XdsError> {
    let one = |(i, proto): (usize, &RequestMirrorPolicy)| {
        let at = at.index(i);
        let header = match proto.cluster_header.as_str() {
            "" => None,
            name => Some(headers::name(at.field("cluster_header"), name)?),
        };
        if header.is_none() {
            known_cluster(at.field("cluster"), &proto.cluster, table)?;
        }
        Ok(Mirror {
            cluster: proto.cluster.as_str().into(),
            header,
            fraction: proto.runtime_fraction.as_ref().map(runtime_fraction),
            keep_host: proto.disable_shadow_host_suffix_append,
            host_rewrite: non_empty(&proto.host_rewrite_literal),
        })
    };
    protos.iter().enumerate().map(one).collect()
}

/// `None`: not given; `Some(None)`: zero, which is "no limit".
fn given(at: At<'_>, value: Option<protobuf::Duration>) -> Result<Option<Option<Duration>>, XdsError> {
    value.map(|value| timeout(at, Some(value), None)).transpose()
}

fn cluster_choice(at: At<'_>, proto: &RouteAction, table: &Table<'_, '_>) -> Result<ClusterChoice, XdsError> {
    match &proto.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            known_cluster(at.field("cluster"), name, table)?;
            Ok(ClusterChoice::Single(name.as_str().into()))
        }
        Some(ClusterSpecifier::ClusterHeader(name)) => {
            Ok(ClusterChoice::Header(matcher::header_key(at.field("cluster_header"), name)?))
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            let route = metadata::criteria(proto.metadata_match.as_ref(), None);
            self::weighted(at.field("weighted_clusters"), weighted, route.as_ref(), table)
        }
        Some(_) => Err(at.unsupported()),
        None => Err(at.invalid("needs one of cluster, cluster_header, weighted_clusters")),
    }
}

fn known_cluster(at: At<'_>, name: &str, table: &Table<'_, '_>) -> Result<(), XdsError> {
    if table.validate_clusters { table.context.known_cluster(at, name) } else { Ok(()) }
}

fn weighted(
    at: At<'_>,
    proto: &WeightedProto,
    metadata_match: Option<&Metadata>,
    table: &Table<'_, '_>,
) -> Result<ClusterChoice, XdsError> {
    let at_clusters = at.field("clusters");
    let mut sum = 0u32;
    let mut clusters = Vec::with_capacity(proto.clusters.len());
    for (i, cluster) in proto.clusters.iter().enumerate() {
        let at = at_clusters.index(i);
        known_cluster(at.field("name"), &cluster.name, table)?;
        let weight = number(cluster.weight, 0);
        sum = sum
            .checked_add(weight)
            .ok_or_else(|| at.field("weight").invalid("the sum of all weights exceeds 4294967295"))?;
        let key = match proto.runtime_key_prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}.{}", cluster.name),
        };
        clusters.push(WeightedCluster {
            name: cluster.name.as_str().into(),
            weight: Setting::new(weight.into(), &key),
            headers: mutations(at, lists!(cluster))?,
            metadata_match: metadata::criteria(cluster.metadata_match.as_ref(), metadata_match),
            filters: overrides(at, &cluster.typed_per_filter_config, table.context)?,
            host_rewrite: cluster
                .host_rewrite_specifier
                .as_ref()
                .map(|cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)| host.as_str().into()),
        });
    }
    if sum == 0 {
        return Err(at_clusters.invalid("needs at least one cluster with a weight above 0"));
    }
    let total = proto.runtime_key_prefix.is_empty().then_some(sum.into());
    Ok(ClusterChoice::Weighted { clusters, total })
}

fn path_rewrite(at: At<'_>, proto: &RouteAction) -> Result<PathRewrite, XdsError> {
    match (&proto.regex_rewrite, proto.prefix_rewrite.as_str()) {
        (None, "") => Ok(PathRewrite::None),
        (None, prefix) => Ok(PathRewrite::Prefix(prefix.to_owned())),
        (Some(rewrite), "") => {
            let (regex, substitution) = matcher::rewrite(at.field("regex_rewrite"), rewrite)?;
            Ok(PathRewrite::Regex(regex, substitution))
        }
        (Some(_), _) => {
            Err(at.field("regex_rewrite").invalid("cannot be given beside prefix_rewrite; keep one"))
        }
    }
}

fn host_rewrite(at: At<'_>, proto: &RouteAction) -> Result<HostRewrite, XdsError> {
    Ok(match &proto.host_rewrite_specifier {
        None => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => HostRewrite::Literal(host.as_str().into()),
        Some(HostRewriteSpecifier::AutoHostRewrite(auto)) => {
            if auto.value {
                HostRewrite::Auto
            } else {
                HostRewrite::None
            }
        }
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            HostRewrite::Header(headers::name(at.field("host_rewrite_header"), name)?)
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(rewrite)) => {
            let (regex, substitution) = matcher::rewrite(at.field("host_rewrite_path_regex"), rewrite)?;
            HostRewrite::PathRegex(regex, substitution)
        }
        Some(_) => return Err(at.unsupported()),
    })
}

pub(super) fn redirect(at: At<'_>, proto: &RedirectAction) -> Result<Redirect, XdsError> {
    let (mut scheme, mut https) = (None, false);
    match &proto.scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(redirect)) => https = *redirect,
        Some(SchemeRewriteSpecifier::SchemeRedirect(to)) => scheme = Some(to.clone()),
        None => {}
    }
    let path = match &proto.path_rewrite_specifier {
        None => RedirectPath::Keep,
        // An empty path redirects to where the request came from.
        Some(PathRewriteSpecifier::PathRedirect(path)) if path.is_empty() => RedirectPath::Keep,
        Some(PathRewriteSpecifier::PathRedirect(path)) => RedirectPath::Replace(path.clone()),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) if prefix.is_empty() => RedirectPath::Keep,
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => RedirectPath::PrefixRewrite(prefix.clone()),
        Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
            let (regex, substitution) = matcher::rewrite(at.field("regex_rewrite"), rewrite)?;
            RedirectPath::Regex(regex, substitution)
        }
        Some(_) => return Err(at.unsupported()),
    };
    Ok(Redirect {
        scheme,
        https,
        host: Some(proto.host_redirect.clone()).filter(|host| !host.is_empty()),
        port: Some(proto.port_redirect).filter(|&port| port != 0),
        path,
        strip_query: proto.strip_query,
        status: match enumeration(at.field("response_code"), proto.response_code)? {
            RedirectResponseCode::MovedPermanently => 301,
            RedirectResponseCode::Found => 302,
            RedirectResponseCode::SeeOther => 303,
            RedirectResponseCode::TemporaryRedirect => 307,
            RedirectResponseCode::PermanentRedirect => 308,
        },
    })
}

pub(super) fn direct(
    at: At<'_>,
    proto: &DirectResponseAction,
    table: &Table<'_, '_>,
) -> Result<DirectResponse, XdsError> {
    let status = u16::try_from(proto.status).ok().filter(|status| (200..600).contains(status));
    let status = status.ok_or_else(|| {
        at.field("status").invalid(format!("must be from 200 to 599, not {}", proto.status))
    })?;
    let at_body = at.field("body");
    let body = match &proto.body {
        Some(source) => data(at_body, source)?,
        None => Vec::new(),
    };
    if body.len() > table.max_body_bytes {
        let message = format!(
            "has {} bytes; the limit is {} (max_direct_response_body_size_bytes)",
            body.len(),
            table.max_body_bytes
        );
        return Err(at_body.invalid(message));
    }
    let body_format = match &proto.body_format {
        Some(format) => Some(format::body(at.field("body_format"), format)?),
        None => None,
    };
    Ok(DirectResponse { status, body: body.into(), body_format })
}

pub(super) fn retry(at: At<'_>, proto: &RetryProto) -> Result<RetryPolicy, XdsError> {
    let mut on = RetryOn::default();
    for condition in proto.retry_on.split(',').map(str::trim).filter(|c| !c.is_empty()) {
        // A bare status code is Istio's way to write a retriable one; Envoy ignores conditions that it does
        // not know, so that one policy fits several versions.
        if !on.add(condition) {
            on.add_grpc(condition);
        }
    }
    let at_codes = at.field("retriable_status_codes");
    let codes = proto.retriable_status_codes.iter().enumerate().map(|(i, &code)| {
        u16::try_from(code).map_err(|_| at_codes.index(i).invalid(format!("{code} is not a status")))
    });
    let at_back_off = at.field("retry_back_off");
    let back_off = match &proto.retry_back_off {
        Some(back_off) => {
            let base = duration_or(at_back_off.field("base_interval"), back_off.base_interval, RETRY_BASE)?;
            let max = duration_or(at_back_off.field("max_interval"), back_off.max_interval, base * 10)?;
            if max < base {
                return Err(at_back_off.field("max_interval").invalid("must not be below base_interval"));
            }
            (base, max)
        }
        None => (RETRY_BASE, RETRY_BASE * 10),
    };
    let at_predicates = at.field("retry_host_predicate");
    let (mut previous_hosts, mut avoid) = (false, Vec::new());
    for (i, predicate) in proto.retry_host_predicate.iter().enumerate() {
        match host_predicate(at_predicates.index(i), predicate)? {
            Some(metadata) => avoid.push(metadata),
            None => previous_hosts = true,
        }
    }
    Ok(RetryPolicy {
        on,
        num_retries: number(proto.num_retries, 1),
        per_try_timeout: timeout(at.field("per_try_timeout"), proto.per_try_timeout, None)?,
        per_try_idle_timeout: timeout(at.field("per_try_idle_timeout"), proto.per_try_idle_timeout, None)?,
        retriable_status_codes: codes.collect::<Result<_, _>>()?,
        retriable_headers: matcher::headers(at.field("retriable_headers"), &proto.retriable_headers)?,
        retriable_request_headers: matcher::headers(
            at.field("retriable_request_headers"),
            &proto.retriable_request_headers,
        )?,
        previous_hosts,
        avoid,
        other_priorities: match &proto.retry_priority {
            Some(priority) => Some(retry_priority(at.field("retry_priority"), priority)?),
            None => None,
        },
        // Envoy: one attempt if nothing is said.
        host_selection_retry_max_attempts: u32::try_from(proto.host_selection_retry_max_attempts)
            .ok()
            .filter(|&n| n > 0)
            .unwrap_or(1),
        back_off,
    })
}

/// The metadata of hosts that retries avoid; `None`: those that were tried already.
fn host_predicate(at: At<'_>, proto: &RetryHostPredicate) -> Result<Option<Metadata>, XdsError> {
    let Some(retry_host_predicate::ConfigType::TypedConfig(config)) = &proto.config_type else {
        // By name alone.
        return match proto.name.as_str() {
            PREVIOUS_HOSTS => Ok(None),
            OMIT_CANARIES => Ok(Some(canary())),
            _ => Err(XdsError::Extension { path: at.to_string(), name: proto.name.clone() }),
        };
    };
    let at = at.field("typed_config");
    if mesh_xds::unpack::<PreviousHostsPredicate>(config).is_some() {
        return Ok(None);
    }
    if mesh_xds::unpack::<OmitCanaryHostsPredicate>(config).is_some() {
        return Ok(Some(canary()));
    }
    match mesh_xds::unpack::<OmitHostMetadataConfig>(config) {
        Some(Ok(proto)) => {
            Ok(metadata::criteria(proto.metadata_match.as_ref(), None).or_else(|| Some(nobody())))
        }
        Some(Err(error)) => Err(at.invalid(error.to_string())),
        None => Err(extension(at, config)),
    }
}

/// `update_frequency` of the only one that there is.
fn retry_priority(at: At<'_>, proto: &RetryPriority) -> Result<usize, XdsError> {
    let at = at.field("typed_config");
    let Some(retry_priority::ConfigType::TypedConfig(config)) = &proto.config_type else {
        return Err(at.invalid("is required"));
    };
    let proto = match mesh_xds::unpack::<PreviousPrioritiesConfig>(config) {
        Some(proto) => proto.map_err(|error| at.invalid(error.to_string()))?,
        None => return Err(extension(at, config)),
    };
    let every = usize::try_from(proto.update_frequency).ok().filter(|every| *every > 0);
    every.ok_or_else(|| at.field("update_frequency").invalid("must be above 0"))
}

const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";
const OMIT_CANARIES: &str = "envoy.retry_host_predicates.omit_canary_hosts";

fn canary() -> Metadata {
    [("canary".into(), MetadataValue::Bool(true))].into()
}

/// What no host has.
fn nobody() -> Metadata {
    [("".into(), MetadataValue::Null)].into()
}

/// `InternalRedirectPolicy`
fn internal_redirect(at: At<'_>, proto: &InternalRedirectPolicy) -> Result<InternalRedirect, XdsError> {
    const FOLLOWED: [u32; 5] = [301, 302, 303, 307, 308];
    let codes = proto.redirect_response_codes.iter().filter(|code| FOLLOWED.contains(code));
    let mut statuses: Vec<u16> = codes.filter_map(|code| u16::try_from(*code).ok()).collect();
    if proto.redirect_response_codes.is_empty() {
        statuses.push(302);
    }
    let at_predicates = at.field("predicates");
    let predicate = |(i, given): (usize, &TypedExtensionConfig)| {
        let at = at_predicates.index(i);
        let at = at.field("typed_config");
        let config = given.typed_config.clone().unwrap_or_default();
        if mesh_xds::unpack::<PreviousRoutesConfig>(&config).is_some() {
            return Ok(RedirectPredicate::PreviousRoutes);
        }
        if mesh_xds::unpack::<SafeCrossSchemeConfig>(&config).is_some() {
            return Ok(RedirectPredicate::SafeCrossScheme);
        }
        match mesh_xds::unpack::<AllowListedRoutesConfig>(&config) {
            Some(Ok(proto)) => Ok(RedirectPredicate::AllowListedRoutes(proto.allowed_route_names)),
            Some(Err(error)) => Err(at.invalid(error.to_string())),
            None => Err(extension(at, &config)),
        }
    };
    let at_copied = at.field("response_headers_to_copy");
    let copied = proto.response_headers_to_copy.iter().enumerate();
    Ok(InternalRedirect {
        most: number(proto.max_internal_redirects, 1),
        statuses,
        cross_scheme: proto.allow_cross_scheme_redirect,
        predicates: proto.predicates.iter().enumerate().map(predicate).collect::<Result<_, _>>()?,
        headers_to_copy: copied
            .map(|(i, name)| headers::name(at_copied.index(i), name))
            .collect::<Result<_, _>>()?,
    })
}
