//! `envoy.extensions.filters.http.compressor.v3` and `decompressor.v3`, with gzip, brotli and zstd.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::HeaderName;
use mesh_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use mesh_xds::pb::envoy::extensions::compression::brotli::compressor::v3::{Brotli, brotli::EncoderMode};
use mesh_xds::pb::envoy::extensions::compression::brotli::decompressor::v3::Brotli as OfBrotli;
use mesh_xds::pb::envoy::extensions::compression::gzip::compressor::v3::Gzip;
use mesh_xds::pb::envoy::extensions::compression::gzip::decompressor::v3::Gzip as OfGzip;
use mesh_xds::pb::envoy::extensions::compression::zstd::compressor::v3::Zstd;
use mesh_xds::pb::envoy::extensions::compression::zstd::decompressor::v3::Zstd as OfZstd;
use mesh_xds::pb::envoy::extensions::filters::http::compressor::v3::compressor::{
    CommonDirectionConfig, ResponseDirectionConfig,
};
use mesh_xds::pb::envoy::extensions::filters::http::compressor::v3::{
    Compressor as Proto, CompressorPerRoute, compressor_per_route,
};
use mesh_xds::pb::envoy::extensions::filters::http::decompressor::v3::{
    Decompressor as DecompressorProto, decompressor,
};
use mesh_xds::pb::google::protobuf::Any;

use super::{Place, read};
use crate::model::http_filter::{
    BrotliMode, CodingStats, Compressor, CompressorDirection, CompressorResponses, Decoder, Decompressor,
    DecompressorDirection, Encoder, Override, TrailerNames,
};
use crate::xds::common::{boolean, data, enumeration, number, runtime_flag};
use crate::xds::error::{At, XdsError};
use crate::xds::listener::extension;
use crate::xds::matcher;

/// Envoy's `min_content_length`.
const MINIMUM_BYTES: u32 = 30;
/// Envoy's `max_inflate_ratio`.
const INFLATE_RATIO: u32 = 100;

pub(super) fn convert(at: At<'_>, proto: &Proto, place: &Place<'_, '_>) -> Result<Compressor, XdsError> {
    let at_library = at.field("compressor_library");
    let encoder = library(at_library, proto.compressor_library.as_ref(), self::encoder)?;
    let name = proto.compressor_library.as_ref().map_or("", |library| &library.name);
    let prefix = format!("compressor.{name}.{}", stat_name(encoder.coding()));
    let at_response = at.field("response_direction_config");
    let (response, response_prefix) = match &proto.response_direction_config {
        Some(response) => (response.clone(), format!("{prefix}.response")),
        None => (older(proto), prefix.clone()),
    };
    let of = |at: At<'_>, proto: Option<&CommonDirectionConfig>, prefix: &str| {
        direction(at.field("common_config"), proto, stats(place, prefix, "compressed"))
    };
    Ok(Compressor {
        encoder: Arc::new(encoder),
        choose_first: proto.choose_first,
        response: CompressorResponses {
            common: of(at_response, response.common_config.as_ref(), &response_prefix)?,
            disable_on_etag: response.disable_on_etag_header,
            weaken_etag: response.weaken_etag_on_compress,
            remove_accept_encoding: response.remove_accept_encoding_header,
            uncompressible: response.uncompressible_response_codes.iter().copied().collect::<BTreeSet<_>>(),
        },
        request: match &proto.request_direction_config {
            Some(requests) => {
                let at = at.field("request_direction_config");
                Some(of(at, requests.common_config.as_ref(), &format!("{prefix}.request"))?)
            }
            None => None,
        },
    })
}

/// What the fields say that were there before directions.
#[allow(deprecated, reason = "servers still send them")]
fn older(proto: &Proto) -> ResponseDirectionConfig {
    ResponseDirectionConfig {
        common_config: Some(CommonDirectionConfig {
            enabled: proto.runtime_enabled.clone(),
            min_content_length: proto.content_length,
            content_type: proto.content_type.clone(),
            ..CommonDirectionConfig::default()
        }),
        disable_on_etag_header: proto.disable_on_etag_header,
        remove_accept_encoding_header: proto.remove_accept_encoding_header,
        ..ResponseDirectionConfig::default()
    }
}

/// What a library's message makes of it.
fn library<T>(
    at: At<'_>,
    library: Option<&TypedExtensionConfig>,
    convert: fn(At<'_>, &Any) -> Result<T, XdsError>,
) -> Result<T, XdsError> {
    let config = library.and_then(|library| library.typed_config.as_ref());
    let config = config.ok_or_else(|| at.invalid("is required"))?;
    convert(at.field("typed_config"), config)
}

fn encoder(at: At<'_>, config: &Any) -> Result<Encoder, XdsError> {
    if let Some(gzip) = read::<Gzip>(at, config)? {
        return Ok(Encoder::Gzip { level: u32::try_from(gzip.compression_level).unwrap_or(0) });
    }
    if let Some(brotli) = read::<Brotli>(at, config)? {
        return Ok(Encoder::Brotli {
            quality: number(brotli.quality, 3) as i32,
            mode: match enumeration(at.field("encoder_mode"), brotli.encoder_mode)? {
                EncoderMode::Default | EncoderMode::Generic => BrotliMode::Generic,
                EncoderMode::Text => BrotliMode::Text,
                EncoderMode::Font => BrotliMode::Font,
            },
            window_bits: number(brotli.window_bits, 18) as i32,
            block_bits: number(brotli.input_block_bits, 24) as i32,
            no_literal_context: brotli.disable_literal_context_modeling,
        });
    }
    if let Some(zstd) = read::<Zstd>(at, config)? {
        let dictionary = zstd.dictionary.as_ref().map(|source| data(at.field("dictionary"), source));
        return Ok(Encoder::Zstd {
            level: i32::try_from(number(zstd.compression_level, 3)).unwrap_or(i32::MAX),
            checksum: zstd.enable_checksum,
            strategy: u32::try_from(zstd.strategy).unwrap_or(0),
            dictionary: dictionary.transpose()?.unwrap_or_default().into(),
        });
    }
    Err(extension(at, config))
}

fn decoder(at: At<'_>, config: &Any) -> Result<Decoder, XdsError> {
    if let Some(gzip) = read::<OfGzip>(at, config)? {
        let most_times = number(gzip.max_inflate_ratio, INFLATE_RATIO) as usize;
        return Ok(Decoder::Gzip { most_times });
    }
    if read::<OfBrotli>(at, config)?.is_some() {
        return Ok(Decoder::Brotli);
    }
    if let Some(zstd) = read::<OfZstd>(at, config)? {
        let at = at.field("dictionaries");
        if zstd.dictionaries.len() > 1 {
            return Err(at.index(1).invalid("only one dictionary is supported by mesh-node; remove it"));
        }
        let dictionary = zstd.dictionaries.first().map(|source| data(at.index(0), source)).transpose()?;
        return Ok(Decoder::Zstd { dictionary: dictionary.unwrap_or_default().into() });
    }
    Err(extension(at, config))
}

/// What statistics call a coding.
fn stat_name(coding: &str) -> &str {
    if coding == "br" { "brotli" } else { coding }
}

fn stats(place: &Place<'_, '_>, prefix: &str, coded: &str) -> Arc<CodingStats> {
    let counter = |name: &str| place.counter(&format!("{prefix}.{name}"));
    Arc::new(CodingStats {
        coded: counter(coded),
        not_coded: counter(&format!("not_{coded}")),
        total_uncompressed_bytes: counter("total_uncompressed_bytes"),
        total_compressed_bytes: counter("total_compressed_bytes"),
    })
}

fn direction(
    at: At<'_>,
    proto: Option<&CommonDirectionConfig>,
    stats: Arc<CodingStats>,
) -> Result<CompressorDirection, XdsError> {
    let proto = proto.cloned().unwrap_or_default();
    let at_matcher = at.field("content_type_matcher");
    let matchers = proto.content_type_matcher.iter().enumerate();
    #[allow(deprecated, reason = "servers still send it")]
    let content_types = proto.content_type.iter().map(|kind| kind.to_ascii_lowercase()).collect();
    Ok(CompressorDirection {
        enabled: runtime_flag(proto.enabled.as_ref(), true),
        minimum_bytes: number(proto.min_content_length, MINIMUM_BYTES).into(),
        content_types,
        content_type_matchers: matchers
            .map(|(i, proto)| matcher::string(at_matcher.index(i), proto))
            .collect::<Result<_, _>>()?,
        stats,
    })
}

pub(super) fn decompressor(
    at: At<'_>,
    proto: &DecompressorProto,
    place: &Place<'_, '_>,
) -> Result<Decompressor, XdsError> {
    let at_library = at.field("decompressor_library");
    let decoder = library(at_library, proto.decompressor_library.as_ref(), self::decoder)?;
    let name = proto.decompressor_library.as_ref().map_or("", |library| &library.name);
    let prefix = format!("decompressor.{name}.{}", stat_name(decoder.coding()));
    let direction = |proto: Option<&decompressor::CommonDirectionConfig>, of: &str| DecompressorDirection {
        enabled: runtime_flag(proto.and_then(|proto| proto.enabled.as_ref()), true),
        ignore_no_transform: proto.is_some_and(|proto| proto.ignore_no_transform_header),
        stats: stats(place, &format!("{prefix}.{of}"), "decompressed"),
    };
    let request = proto.request_direction_config.as_ref();
    let response = proto.response_direction_config.as_ref();
    let trailer = |what: &str| {
        HeaderName::try_from(format!("x-envoy-decompressor-{name}-{what}-bytes").to_ascii_lowercase())
            .map_err(|_| at_library.field("name").invalid(format!("{name:?} must fit into a trailer's name")))
    };
    Ok(Decompressor {
        decoder,
        request: direction(request.and_then(|request| request.common_config.as_ref()), "request"),
        response: direction(response.and_then(|response| response.common_config.as_ref()), "response"),
        advertise: boolean(request.and_then(|request| request.advertise_accept_encoding), true),
        trailers: Arc::new(TrailerNames {
            compressed: trailer("compressed")?,
            uncompressed: trailer("uncompressed")?,
        }),
    })
}

pub(super) fn of_route(at: At<'_>, proto: &CompressorPerRoute) -> Result<Override, XdsError> {
    Ok(match &proto.r#override {
        Some(compressor_per_route::Override::Disabled(off)) => Override::Disabled(*off),
        Some(compressor_per_route::Override::Overrides(of)) => {
            let response = of.response_direction_config.as_ref();
            let at = at.field("overrides.compressor_library");
            let encoder = of.compressor_library.as_ref().map(|own| library(at, Some(own), encoder));
            Override::Compressor {
                responses: response.is_some(),
                remove_accept_encoding: response
                    .and_then(|response| response.remove_accept_encoding_header)
                    .map(|remove| remove.value),
                encoder: encoder.transpose()?.map(Arc::new),
            }
        }
        None => Override::Nothing,
    })
}
