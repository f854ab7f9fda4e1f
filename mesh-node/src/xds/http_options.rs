//! HTTP/1 and HTTP/2 settings, which listeners and clusters share.

use std::time::Duration;

use mesh_xds::pb::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;
use mesh_xds::pb::envoy::config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions};

use super::common::{boolean, duration, duration_or, non_empty, number};
use super::error::{At, XdsError};
use crate::model::network::{Http1Options, Http2Options};

/// `Http1ProtocolOptions`, with Envoy's defaults where it is absent.
pub(super) fn http1(proto: Option<&Http1ProtocolOptions>) -> Http1Options {
    let Some(proto) = proto else { return Http1Options { allow_absolute_url: true, ..Default::default() } };
    let key_format = proto.header_key_format.as_ref().and_then(|format| format.header_format.as_ref());
    Http1Options {
        accept_http_10: proto.accept_http_10,
        default_host_for_http_10: non_empty(&proto.default_host_for_http_10),
        allow_absolute_url: boolean(proto.allow_absolute_url, true),
        proper_case: matches!(key_format, Some(HeaderFormat::ProperCaseWords(_))),
        enable_trailers: proto.enable_trailers,
        allow_chunked_length: proto.allow_chunked_length,
    }
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
