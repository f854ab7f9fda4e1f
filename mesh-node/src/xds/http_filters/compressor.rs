//! `envoy.extensions.filters.http.compressor.v3`, with gzip.

use std::collections::BTreeSet;

use mesh_xds::pb::envoy::extensions::compression::gzip::compressor::v3::Gzip;
use mesh_xds::pb::envoy::extensions::filters::http::compressor::v3::compressor::CommonDirectionConfig;
use mesh_xds::pb::envoy::extensions::filters::http::compressor::v3::{
    Compressor as Proto, CompressorPerRoute, compressor_per_route,
};

use super::read;
use crate::model::http_filter::{Compressor, CompressorDirection, CompressorResponses, Override};
use crate::xds::common::{number, runtime_flag};
use crate::xds::error::{At, XdsError};
use crate::xds::listener::extension;
use crate::xds::matcher;

/// Envoy's `min_content_length`.
const MINIMUM_BYTES: u32 = 30;

pub(super) fn convert(at: At<'_>, proto: &Proto) -> Result<Compressor, XdsError> {
    let at_library = at.field("compressor_library");
    let library = proto.compressor_library.as_ref().and_then(|library| library.typed_config.as_ref());
    let library = library.ok_or_else(|| at_library.invalid("is required"))?;
    let at_config = at_library.field("typed_config");
    let gzip = read::<Gzip>(at_config, library)?.ok_or_else(|| extension(at_config, library))?;
    let at_response = at.field("response_direction_config");
    let response = proto.response_direction_config.clone().unwrap_or_default();
    let requests = proto.request_direction_config.as_ref();
    let at_request = at.field("request_direction_config");
    Ok(Compressor {
        level: u32::try_from(gzip.compression_level).unwrap_or(0),
        response: CompressorResponses {
            common: direction(at_response.field("common_config"), response.common_config.as_ref())?,
            disable_on_etag: response.disable_on_etag_header,
            weaken_etag: response.weaken_etag_on_compress,
            remove_accept_encoding: response.remove_accept_encoding_header,
            uncompressible: response.uncompressible_response_codes.iter().copied().collect::<BTreeSet<_>>(),
        },
        request: match requests {
            Some(requests) => {
                Some(direction(at_request.field("common_config"), requests.common_config.as_ref())?)
            }
            None => None,
        },
    })
}

fn direction(at: At<'_>, proto: Option<&CommonDirectionConfig>) -> Result<CompressorDirection, XdsError> {
    let proto = proto.cloned().unwrap_or_default();
    let at_matcher = at.field("content_type_matcher");
    let matchers = proto.content_type_matcher.iter().enumerate();
    Ok(CompressorDirection {
        enabled: runtime_flag(proto.enabled.as_ref(), true),
        minimum_bytes: number(proto.min_content_length, MINIMUM_BYTES).into(),
        content_types: proto.content_type.iter().map(|kind| kind.to_ascii_lowercase()).collect(),
        content_type_matchers: matchers
            .map(|(i, proto)| matcher::string(at_matcher.index(i), proto))
            .collect::<Result<_, _>>()?,
    })
}

pub(super) fn of_route(proto: &CompressorPerRoute) -> Override {
    match &proto.r#override {
        Some(compressor_per_route::Override::Disabled(off)) => Override::Disabled(*off),
        Some(compressor_per_route::Override::Overrides(of)) => {
            let response = of.response_direction_config.as_ref();
            Override::Compressor {
                responses: response.is_some(),
                remove_accept_encoding: response
                    .and_then(|response| response.remove_accept_encoding_header)
                    .map(|remove| remove.value),
            }
        }
        None => Override::Nothing,
    }
}
