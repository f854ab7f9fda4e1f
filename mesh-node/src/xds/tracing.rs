//! `HttpConnectionManager.Tracing`, `route.v3.Tracing`, and the tracers of `envoy.config.trace.v3`.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use mesh_xds::pb::envoy::config::core::v3::{HeaderValueOption, HttpService, TypedExtensionConfig};
use mesh_xds::pb::envoy::config::route::v3::Tracing as RouteProto;
use mesh_xds::pb::envoy::config::trace::v3::tracing::Http;
use mesh_xds::pb::envoy::config::trace::v3::tracing::http::ConfigType;
use mesh_xds::pb::envoy::config::trace::v3::zipkin_config::{CollectorEndpointVersion, TraceContextOption};
use mesh_xds::pb::envoy::config::trace::v3::{
    DatadogConfig, OpenTelemetryConfig, SkyWalkingConfig, ZipkinConfig,
};
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::RequestIdExtension;
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing as Proto;
use mesh_xds::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use mesh_xds::pb::envoy::extensions::tracers::opentelemetry::resource_detectors::v3::{
    EnvironmentResourceDetectorConfig, StaticConfigResourceDetectorConfig,
};
use mesh_xds::pb::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
use mesh_xds::pb::envoy::r#type::metadata::v3::metadata_kind::Kind;
use mesh_xds::pb::envoy::r#type::tracing::v3::CustomTag as TagProto;
use mesh_xds::pb::envoy::r#type::tracing::v3::custom_tag::{Metadata as MetadataProto, Type};
use mesh_xds::pb::envoy::r#type::v3::{FractionalPercent, Percent};

use super::common::{boolean, enumeration, fraction, number, timeout};
use super::error::{At, XdsError};
use super::listener::extension;
use super::{Context, format, grpc_service, headers};
use crate::model::format::{Format, MetadataOf, Part};
use crate::model::source::GrpcTarget;
use crate::model::tracing::{
    Collector, CustomTag, OpenTelemetryStats, Provider, ProviderKind, RequestIds, RouteTracing, Sampling,
    SpanRules, TagValue, Tracing, Zipkin, ZipkinStats,
};
use crate::runtime::Fraction;
use crate::telemetry::stats::{Counter, Tags};
use crate::telemetry::trace::otlp;

/// Envoy's defaults.
const MAX_PATH_BYTES: u32 = 256;
const OTLP_PATH: &str = "/v1/traces";
/// What resource attributes come from the environment (OpenTelemetry's SDK specification).
const RESOURCE_ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";

pub(super) fn convert(at: At<'_>, proto: &Proto, context: &Context<'_>) -> Result<Tracing, XdsError> {
    // Envoy reads two of the three as whole percents.
    let whole = |percent: &Option<Percent>| (percent.map_or(100, |percent| percent.value as u32), 100);
    let random = proto.random_sampling.map_or(10_000, |percent| (percent.value * 100.0).round() as u32);
    Ok(Tracing {
        sampling: Sampling {
            client: whole(&proto.client_sampling),
            random: (random, 10_000),
            overall: whole(&proto.overall_sampling),
        },
        spans: rules(at, (&proto.custom_tags, &proto.operation, &proto.upstream_operation))?,
        verbose: proto.verbose,
        max_path_bytes: number(proto.max_path_tag_length, MAX_PATH_BYTES) as usize,
        spawn_upstream_span: boolean(proto.spawn_upstream_span, false),
        propagate: !proto.no_context_propagation,
        provider: match &proto.provider {
            Some(http) => provider(at.field("provider"), http, context)?.map(Arc::new),
            None => None,
        },
    })
}

pub(super) fn of_route(at: At<'_>, proto: &RouteProto) -> Result<RouteTracing, XdsError> {
    let share = |of: &Option<FractionalPercent>| -> Fraction { of.as_ref().map_or((100, 100), fraction) };
    Ok(RouteTracing {
        sampling: Sampling {
            client: share(&proto.client_sampling),
            random: share(&proto.random_sampling),
            overall: share(&proto.overall_sampling),
        },
        spans: rules(at, (&proto.custom_tags, &proto.operation, &proto.upstream_operation))?,
    })
}

/// `request_id_extension`; the table has refused all but Envoy's own kind.
pub(super) fn request_ids(at: At<'_>, proto: Option<&RequestIdExtension>) -> Result<RequestIds, XdsError> {
    let Some(config) = proto.and_then(|proto| proto.typed_config.as_ref()) else {
        return Ok(RequestIds::default());
    };
    let at = at.field("typed_config");
    let Some(config) = mesh_xds::unpack::<UuidRequestIdConfig>(config) else {
        return Err(extension(at, config));
    };
    let config = config.map_err(|error| at.invalid(error.to_string()))?;
    Ok(RequestIds {
        pack_trace_reason: boolean(config.pack_trace_reason, true),
        sample_by_id: boolean(config.use_request_id_for_trace_sampling, true),
    })
}

fn rules(
    at: At<'_>,
    (protos, operation, upstream_operation): (&[TagProto], &str, &str),
) -> Result<SpanRules, XdsError> {
    let at_tags = at.field("custom_tags");
    let optional = |name: &str, text: &str| -> Result<Option<Format>, XdsError> {
        if text.is_empty() { Ok(None) } else { parsed(at.field(name), text).map(Some) }
    };
    Ok(SpanRules {
        tags: protos
            .iter()
            .enumerate()
            .map(|(i, proto)| tag(at_tags.index(i), proto))
            .collect::<Result<_, _>>()?,
        operation: optional("operation", operation)?,
        upstream_operation: optional("upstream_operation", upstream_operation)?,
    })
}

fn parsed(at: At<'_>, text: &str) -> Result<Format, XdsError> {
    format::parse(text).map_err(|message| at.invalid(message))
}

fn tag(at: At<'_>, proto: &TagProto) -> Result<CustomTag, XdsError> {
    let value = match &proto.r#type {
        Some(Type::Literal(literal)) => TagValue::Literal(literal.value.clone()),
        Some(Type::Environment(of)) => {
            TagValue::Literal(std::env::var(&of.name).unwrap_or_else(|_| of.default_value.clone()))
        }
        Some(Type::RequestHeader(of)) => TagValue::Header {
            name: headers::name(at.field("request_header"), &of.name)?,
            default: of.default_value.clone(),
        },
        Some(Type::Metadata(of)) => metadata(at.field("metadata"), of)?,
        Some(Type::Value(text)) => TagValue::Format(parsed(at.field("value"), text)?),
        None => return Err(at.invalid("needs one of literal, environment, request_header, metadata, value")),
    };
    Ok(CustomTag { name: proto.tag.as_str().into(), value })
}

fn metadata(at: At<'_>, proto: &MetadataProto) -> Result<TagValue, XdsError> {
    let of = match proto.kind.as_ref().and_then(|kind| kind.kind.as_ref()) {
        Some(Kind::Request(_)) | None => MetadataOf::Stream,
        Some(Kind::Cluster(_)) => MetadataOf::Cluster,
        Some(Kind::Host(_)) => MetadataOf::Endpoint,
        Some(Kind::Route(_)) => return Err(at.field("kind").field("route").unsupported()),
    };
    let at_key = at.field("metadata_key");
    let key = proto.metadata_key.as_ref().ok_or_else(|| at_key.invalid("is required"))?;
    let at_path = at_key.field("path");
    let path = key.path.iter().enumerate().map(|(i, segment)| match &segment.segment {
        Some(Segment::Key(key)) => Ok(key.clone()),
        _ => Err(at_path.index(i).invalid("needs a key")),
    });
    Ok(TagValue::Metadata {
        of,
        namespace: key.key.clone(),
        path: path.collect::<Result<_, XdsError>>()?,
        default: proto.default_value.clone(),
    })
}

/// `None`: a tracer of a kind that is not built, whose requests are served untraced.
fn provider(at: At<'_>, proto: &Http, context: &Context<'_>) -> Result<Option<Provider>, XdsError> {
    let Some(ConfigType::TypedConfig(config)) = &proto.config_type else {
        return Err(at.field("typed_config").invalid("is required"));
    };
    let at = at.field("typed_config");
    let broken = |error: mesh_xds::prost::DecodeError| at.invalid(error.to_string());
    if let Some(config) = mesh_xds::unpack::<OpenTelemetryConfig>(config) {
        return opentelemetry(at, &config.map_err(broken)?, context).map(Some);
    }
    if let Some(config) = mesh_xds::unpack::<ZipkinConfig>(config) {
        return zipkin(at, &config.map_err(broken)?, context).map(Some);
    }
    if mesh_xds::unpack::<DatadogConfig>(config).is_some()
        || mesh_xds::unpack::<SkyWalkingConfig>(config).is_some()
    {
        return Ok(None);
    }
    Err(extension(at, config))
}

fn counter(context: &Context<'_>, tracer: &str, name: &str) -> Arc<Counter> {
    let name = format!("tracing.{tracer}.{name}");
    context.stats.custom().counter(&name, || Tags { name: name.clone(), labels: Vec::new() })
}

fn opentelemetry(
    at: At<'_>,
    proto: &OpenTelemetryConfig,
    context: &Context<'_>,
) -> Result<Provider, XdsError> {
    let collector = match (&proto.grpc_service, &proto.http_service) {
        (Some(service), None) => {
            let at = at.field("grpc_service");
            let server = grpc_service::server(at, service)?;
            let GrpcTarget::Cluster(cluster) = server.target else {
                return Err(at
                    .field("google_grpc")
                    .invalid("cannot take spans; name a cluster in envoy_grpc"));
            };
            context.known_cluster(at, &cluster)?;
            let at_metadata = at.field("initial_metadata");
            let mut headers = Vec::new();
            for (i, (name, value)) in server.metadata.iter().enumerate() {
                let at = at_metadata.index(i);
                headers.push((headers::name(at.field("key"), name)?, value_of(at.field("value"), value)?));
            }
            Collector {
                cluster,
                authority: value_of(at.field("envoy_grpc").field("authority"), &server.authority)?,
                path: String::new(),
                headers,
                timeout: timeout(at.field("timeout"), service.timeout, None)?,
                grpc: true,
            }
        }
        (None, Some(service)) => over_http(at.field("http_service"), service, context, OTLP_PATH)?,
        (Some(_), Some(_)) => return Err(at.invalid("has both of grpc_service, http_service; keep one")),
        (None, None) => return Err(at.invalid("needs one of grpc_service, http_service")),
    };
    let name = if proto.service_name.is_empty() { "unknown_service:mesh-node" } else { &proto.service_name };
    let mut resource = vec![("service.name".to_owned(), name.to_owned())];
    resource.extend(otlp::sdk_attributes());
    let at_detectors = at.field("resource_detectors");
    for (i, detector) in proto.resource_detectors.iter().enumerate() {
        for (key, value) in detected(at_detectors.index(i), detector)? {
            match resource.iter_mut().find(|(known, _)| *known == key) {
                Some((_, known)) => *known = value,
                None => resource.push((key, value)),
            }
        }
    }
    let count = |name| counter(context, "opentelemetry", name);
    let stats = OpenTelemetryStats {
        spans_sent: count("spans_sent"),
        spans_dropped: count("spans_dropped"),
        timer_flushed: count("timer_flushed"),
    };
    Ok(Provider { kind: ProviderKind::OpenTelemetry { resource, stats }, collector })
}

/// What a resource detector finds out.
fn detected(at: At<'_>, proto: &TypedExtensionConfig) -> Result<Vec<(String, String)>, XdsError> {
    let at = at.field("typed_config");
    let Some(config) = &proto.typed_config else { return Err(at.invalid("is required")) };
    if mesh_xds::unpack::<EnvironmentResourceDetectorConfig>(config).is_some() {
        // `KEY=VALUE,…`; what is not in form is left out.
        let all = std::env::var(RESOURCE_ATTRIBUTES).unwrap_or_default();
        let pairs = all.split(',').filter_map(|pair| pair.split_once('='));
        return Ok(pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect());
    }
    match mesh_xds::unpack::<StaticConfigResourceDetectorConfig>(config) {
        Some(config) => {
            let config = config.map_err(|error| at.invalid(error.to_string()))?;
            let mut all: Vec<_> = config.attributes.into_iter().collect();
            all.sort();
            Ok(all)
        }
        None => Err(extension(at, config)),
    }
}

fn zipkin(at: At<'_>, proto: &ZipkinConfig, context: &Context<'_>) -> Result<Provider, XdsError> {
    let at_version = at.field("collector_endpoint_version");
    if enumeration::<CollectorEndpointVersion>(at_version, proto.collector_endpoint_version)?
        != CollectorEndpointVersion::HttpJson
    {
        return Err(at_version.invalid("only HTTP_JSON is built"));
    }
    let collector = match &proto.collector_service {
        Some(service) => over_http(at.field("collector_service"), service, context, "/")?,
        None => {
            let at_cluster = at.field("collector_cluster");
            if proto.collector_cluster.is_empty() || proto.collector_endpoint.is_empty() {
                return Err(
                    at.invalid("needs collector_service, or collector_cluster and collector_endpoint")
                );
            }
            context.known_cluster(at_cluster, &proto.collector_cluster)?;
            let host = if proto.collector_hostname.is_empty() {
                &proto.collector_cluster
            } else {
                &proto.collector_hostname
            };
            Collector {
                cluster: proto.collector_cluster.as_str().into(),
                authority: value_of(at.field("collector_hostname"), host)?,
                path: proto.collector_endpoint.clone(),
                headers: Vec::new(),
                timeout: None,
                grpc: false,
            }
        }
    };
    let count = |name| counter(context, "zipkin", name);
    Ok(Provider {
        kind: ProviderKind::Zipkin(Zipkin {
            trace_id_128bit: proto.trace_id_128bit,
            shared_span_context: boolean(proto.shared_span_context, true),
            w3c: enumeration::<TraceContextOption>(
                at.field("trace_context_option"),
                proto.trace_context_option,
            )? == TraceContextOption::UseB3WithW3cPropagation,
            stats: ZipkinStats {
                spans_sent: count("spans_sent"),
                timer_flushed: count("timer_flushed"),
                reports_skipped_no_cluster: count("reports_skipped_no_cluster"),
                reports_sent: count("reports_sent"),
                reports_dropped: count("reports_dropped"),
                reports_failed: count("reports_failed"),
            },
        }),
        collector,
    })
}

fn over_http(
    at: At<'_>,
    proto: &HttpService,
    context: &Context<'_>,
    default_path: &str,
) -> Result<Collector, XdsError> {
    let at_uri = at.field("http_uri");
    let uri = proto.http_uri.as_ref().ok_or_else(|| at_uri.invalid("is required"))?;
    use mesh_xds::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
    let Some(HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else {
        return Err(at_uri.field("cluster").invalid("is required"));
    };
    context.known_cluster(at_uri.field("cluster"), cluster)?;
    let rest = uri.uri.split_once("://").map_or(uri.uri.as_str(), |(_, rest)| rest);
    let (host, path) = rest.find('/').map_or((rest, default_path), |at| rest.split_at(at));
    let host = if host.is_empty() { cluster } else { host };
    let at_headers = at.field("request_headers_to_add");
    let headers = proto.request_headers_to_add.iter().enumerate();
    Ok(Collector {
        cluster: cluster.as_str().into(),
        authority: value_of(at_uri.field("uri"), host)?,
        path: path.to_owned(),
        headers: headers.map(|(i, option)| header(at_headers.index(i), option)).collect::<Result<_, _>>()?,
        timeout: timeout(at_uri.field("timeout"), uri.timeout, None)?,
        grpc: false,
    })
}

/// A header that is the same in every report.
fn header(at: At<'_>, option: &HeaderValueOption) -> Result<(HeaderName, HeaderValue), XdsError> {
    let at = at.field("header");
    let header = option.header.as_ref().ok_or_else(|| at.invalid("is required"))?;
    let at_value = at.field("value");
    let mut text = String::new();
    for part in parsed(at_value, &header.value)?.parts {
        match part {
            Part::Text(fixed) => text.push_str(&fixed),
            Part::Operator { .. } => {
                return Err(at_value.invalid("a report has no stream that it could tell of"));
            }
        }
    }
    Ok((headers::name(at.field("key"), &header.key)?, value_of(at_value, &text)?))
}

fn value_of(at: At<'_>, text: &str) -> Result<HeaderValue, XdsError> {
    HeaderValue::from_str(text).map_err(|_| at.invalid(format!("{text:?} cannot be the value of a header")))
}
