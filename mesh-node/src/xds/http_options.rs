//! HTTP/1 and HTTP/2 settings, which listeners and clusters share.

use std::time::Duration;

use mesh_xds::pb::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;
use mesh_xds::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, TypedExtensionConfig,
};
use mesh_xds::pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use mesh_xds::pb::envoy::extensions::http::header_formatters::preserve_case::v3::preserve_case_formatter_config::FormatterTypeOnEnvoyHeaders;

use super::common::{boolean, duration, duration_or, enumeration, non_empty, number};
use super::error::{At, XdsError};
use super::listener::extension;
use crate::model::network::{Http1Options, Http2Options, KeepCase};

/// `Http1ProtocolOptions`, with Envoy's defaults where it is absent.
pub(super) fn http1(at: At<'_>, proto: Option<&Http1ProtocolOptions>) -> Result<Http1Options, XdsError> {
    let Some(proto) = proto else {
        return Ok(Http1Options { allow_absolute_url: true, ..Default::default() });
    };
    let key_format = proto.header_key_format.as_ref().and_then(|format| format.header_format.as_ref());
    let at = at.field("header_key_format.stateful_formatter");
    let keep_case = match key_format {
        Some(HeaderFormat::StatefulFormatter(formatter)) => Some(keep_case(at, formatter)?),
        _ => None,
    };
    Ok(Http1Options {
        accept_http_10: proto.accept_http_10,
        default_host_for_http_10: non_empty(&proto.default_host_for_http_10),
        allow_absolute_url: boolean(proto.allow_absolute_url, true),
        proper_case: matches!(key_format, Some(HeaderFormat::ProperCaseWords(_))),
        keep_case,
        enable_trailers: proto.enable_trailers,
        allow_chunked_length: proto.allow_chunked_length,
    })
}

fn keep_case(at: At<'_>, formatter: &TypedExtensionConfig) -> Result<KeepCase, XdsError> {
    let at = at.field("typed_config");
    let config = formatter.typed_config.as_ref().ok_or_else(|| at.invalid("is required"))?;
    let config = match mesh_xds::unpack::<PreserveCaseFormatterConfig>(config) {
        Some(config) => config.map_err(|e| at.invalid(e.to_string()))?,
        None => return Err(extension(at, config)),
    };
    let rest =
        enumeration(at.field("formatter_type_on_envoy_headers"), config.formatter_type_on_envoy_headers)?;
    Ok(KeepCase { proper_rest: matches!(rest, FormatterTypeOnEnvoyHeaders::ProperCase) })
}

/// `Http2ProtocolOptions`, with Envoy's defaults where it is absent.
pub(super) fn http2(at: At<'_>, proto: Option<&Http2ProtocolOptions>) -> Result<Http2Options, XdsError> {
    let default = Http2Options::default();
    let Some(proto) = proto else { return Ok(default) };
    let at_keepalive = at.field("connection_keepalive");
    let keepalive = match &proto.connection_keepalive {
        Some(settings) => match settings.interval {
            Some(interval) => {
                let interval = duration(at_keepalive.field("interval"), interval)?;
                let timeout =
                    duration_or(at_keepalive.field("timeout"), settings.timeout, Duration::from_secs(10))?;
                Some((interval, timeout))
            }
            None => None,
        },
        None => None,
    };
    Ok(Http2Options {
        max_concurrent_streams: number(proto.max_concurrent_streams, default.max_concurrent_streams),
        initial_stream_window_bytes: number(
            proto.initial_stream_window_size,
            default.initial_stream_window_bytes,
        ),
        initial_connection_window_bytes: number(
            proto.initial_connection_window_size,
            default.initial_connection_window_bytes,
        ),
        keepalive,
        allow_connect: proto.allow_connect,
    })
}
