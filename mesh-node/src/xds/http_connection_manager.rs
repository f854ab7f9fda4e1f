//! `envoy.filters.network.http_connection_manager` and the router filter.

use std::sync::Arc;
use std::time::Duration;

use mesh_xds::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
    ServerHeaderTransformation, StripPortMode,
};
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager as Proto,
};
use mesh_xds::pb::google::protobuf::BoolValue;

use super::common::{boolean, cidrs, duration_or, enumeration, non_empty, number, timeout};
use super::config_source::need;
use super::error::{At, XdsError};
use super::http_filters::{self, Place};
use super::http_options::{http1, http2};
use super::{Context, access_log, local_replies, route, scoped_routes, tracing};
use crate::model::Str;
use crate::model::listener::Direction;
use crate::model::network::{
    ClientCertDetails, Codec, EscapedSlashes, ForwardClientCert, HttpConnectionManager, RouteSource,
    ServerHeader, UnderscoresAction,
};
use crate::model::source::NeedKind;

/// Envoy's defaults.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
const DELAYED_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_HEADERS: u32 = 100;
const MAX_REQUEST_HEADERS_KIB: u32 = 60;

pub(super) fn convert(
    at: At<'_>,
    proto: &Proto,
    direction: Direction,
    context: &Context<'_>,
) -> Result<HttpConnectionManager, XdsError> {
    let place = Place { context, stat_prefix: &proto.stat_prefix, direction };
    let at_common = at.field("common_http_protocol_options");
    let common = proto.common_http_protocol_options.unwrap_or_default();
    let routes = match &proto.route_specifier {
        Some(RouteSpecifier::RouteConfig(routes)) => {
            RouteSource::Inline(Arc::new(route::convert(at.field("route_config"), routes, context)?))
        }
        Some(RouteSpecifier::Rds(rds)) => {
            let at = at.field("rds");
            let source = rds.config_source.as_ref();
            if rds.route_config_name.is_empty() {
                return Err(at.field("route_config_name").invalid("is required"));
            }
            let name = &rds.route_config_name;
            let scope = format!("http.{}.rds.{name}", proto.stat_prefix);
            need(at.field("config_source"), NeedKind::Routes, name, &scope, source, context)?;
            RouteSource::Named(rds.route_config_name.as_str().into())
        }
        Some(RouteSpecifier::ScopedRoutes(scoped)) => {
            let at = at.field("scoped_routes");
            let scoped = scoped_routes::convert(at, scoped, &proto.stat_prefix, context)?;
            RouteSource::Scoped(Arc::new(scoped))
        }
        None => return Err(at.invalid("needs one of rds, route_config, scoped_routes")),
    };
    let internal = proto.internal_address_config.as_ref().map(|config| config.cidr_ranges.as_slice());
    let client_cert = proto.set_current_client_cert_details.unwrap_or_default();
    let upgrades = proto.upgrade_configs.iter().map(|u| (u.upgrade_type.as_str(), u.enabled));
    let strip_any_host_port = matches!(proto.strip_port_mode, Some(StripPortMode::StripAnyHostPort(true)));
    if strip_any_host_port && proto.strip_matching_host_port {
        let message = "cannot be given beside strip_matching_host_port; keep one";
        return Err(at.field("strip_any_host_port").invalid(message));
    }
    Ok(HttpConnectionManager {
        stat_prefix: proto.stat_prefix.as_str().into(),
        codec: match enumeration(at.field("codec_type"), proto.codec_type)? {
            CodecType::Auto => Codec::Auto,
            CodecType::Http1 => Codec::Http1,
            CodecType::Http2 => Codec::Http2,
            CodecType::Http3 => return Err(at.field("codec_type").invalid("HTTP3 is not supported")),
        },
        routes,
        http_filters: http_filters::chain(at.field("http_filters"), &proto.http_filters, &place)?,
        server_name: non_empty(&proto.server_name).unwrap_or_else(|| "envoy".into()),
        server_header: match enumeration(
            at.field("server_header_transformation"),
            proto.server_header_transformation,
        )? {
            ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
            ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
            ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
        },
        use_remote_address: boolean(proto.use_remote_address, false),
        xff_num_trusted_hops: proto.xff_num_trusted_hops,
        skip_xff_append: proto.skip_xff_append,
        internal_cidrs: cidrs(at.field("internal_address_config"), internal.unwrap_or_default())?,
        via: non_empty(&proto.via),
        generate_request_id: boolean(proto.generate_request_id, true),
        preserve_external_request_id: proto.preserve_external_request_id,
        append_x_forwarded_port: proto.append_x_forwarded_port,
        tracing: match &proto.tracing {
            Some(tracing) => Some(Arc::new(tracing::convert(at.field("tracing"), tracing, context)?)),
            None => None,
        },
        request_ids: tracing::request_ids(
            at.field("request_id_extension"),
            proto.request_id_extension.as_ref(),
        )?,
        always_set_request_id_in_response: proto.always_set_request_id_in_response,
        stream_idle_timeout: timeout(
            at.field("stream_idle_timeout"),
            proto.stream_idle_timeout,
            Some(STREAM_IDLE_TIMEOUT),
        )?,
        request_timeout: timeout(at.field("request_timeout"), proto.request_timeout, None)?,
        request_headers_timeout: timeout(
            at.field("request_headers_timeout"),
            proto.request_headers_timeout,
            None,
        )?,
        drain_timeout: duration_or(at.field("drain_timeout"), proto.drain_timeout, DRAIN_TIMEOUT)?,
        delayed_close_timeout: timeout(
            at.field("delayed_close_timeout"),
            proto.delayed_close_timeout,
            Some(DELAYED_CLOSE_TIMEOUT),
        )?,
        idle_timeout: timeout(at_common.field("idle_timeout"), common.idle_timeout, Some(IDLE_TIMEOUT))?,
        max_connection_duration: timeout(
            at_common.field("max_connection_duration"),
            common.max_connection_duration,
            None,
        )?,
        max_stream_duration: timeout(
            at_common.field("max_stream_duration"),
            common.max_stream_duration,
            None,
        )?,
        max_requests_per_connection: number(common.max_requests_per_connection, 0),
        max_headers_count: number(common.max_headers_count, MAX_HEADERS),
        underscores: match enumeration(
            at_common.field("headers_with_underscores_action"),
            common.headers_with_underscores_action,
        )? {
            HeadersWithUnderscoresAction::Allow => UnderscoresAction::Allow,
            HeadersWithUnderscoresAction::RejectRequest => UnderscoresAction::RejectRequest,
            HeadersWithUnderscoresAction::DropHeader => UnderscoresAction::DropHeader,
        },
        max_request_headers_kib: number(proto.max_request_headers_kb, MAX_REQUEST_HEADERS_KIB),
        http1: http1(at.field("http_protocol_options"), proto.http_protocol_options.as_ref())?,
        http2: http2(at.field("http2_protocol_options"), proto.http2_protocol_options.as_ref())?,
        upgrades: self::upgrades(at.field("upgrade_configs"), upgrades)?,
        normalize_path: boolean(proto.normalize_path, false),
        merge_slashes: proto.merge_slashes,
        escaped_slashes: escaped_slashes(at, proto)?,
        strip_any_host_port,
        strip_matching_host_port: proto.strip_matching_host_port,
        forward_client_cert: forward_client_cert(at, proto)?,
        set_client_cert: ClientCertDetails {
            subject: boolean(client_cert.subject, false),
            cert: client_cert.cert,
            chain: client_cert.chain,
            dns: client_cert.dns,
            uri: client_cert.uri,
        },
        proxy_100_continue: proto.proxy_100_continue,
        access_log: access_log::convert(at.field("access_log"), &proto.access_log, context)?,
        local_replies: match &proto.local_reply_config {
            Some(config) => Some(Arc::new(local_replies::convert(at.field("local_reply_config"), config)?)),
            None => None,
        },
        stats: context.stats.http(&proto.stat_prefix),
    })
}

/// Lower-case upgrade types and whether they are allowed.
pub(super) fn upgrades<'a>(
    at: At<'_>,
    configs: impl Iterator<Item = (&'a str, Option<BoolValue>)>,
) -> Result<Vec<(Str, bool)>, XdsError> {
    let mut upgrades: Vec<(Str, bool)> = Vec::new();
    for (i, (kind, enabled)) in configs.enumerate() {
        let kind: Str = kind.to_ascii_lowercase().into();
        if upgrades.iter().any(|(known, _)| *known == kind) {
            return Err(at.index(i).invalid(format!("upgrade {kind:?} is given twice; keep one")));
        }
        upgrades.push((kind, boolean(enabled, true)));
    }
    Ok(upgrades)
}

fn escaped_slashes(at: At<'_>, proto: &Proto) -> Result<EscapedSlashes, XdsError> {
    let at = at.field("path_with_escaped_slashes_action");
    Ok(match enumeration(at, proto.path_with_escaped_slashes_action)? {
        PathWithEscapedSlashesAction::ImplementationSpecificDefault
        | PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::KeepUnchanged,
        PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::RejectRequest,
        PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
        PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
    })
}

fn forward_client_cert(at: At<'_>, proto: &Proto) -> Result<ForwardClientCert, XdsError> {
    let at = at.field("forward_client_cert_details");
    Ok(match enumeration(at, proto.forward_client_cert_details)? {
        ForwardClientCertDetails::Sanitize => ForwardClientCert::Sanitize,
        ForwardClientCertDetails::ForwardOnly => ForwardClientCert::ForwardOnly,
        ForwardClientCertDetails::AppendForward => ForwardClientCert::AppendForward,
        ForwardClientCertDetails::SanitizeSet => ForwardClientCert::SanitizeSet,
        ForwardClientCertDetails::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
    })
}
