//! Access loggers: files, standard output and error, gRPC servers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mesh_xds::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use mesh_xds::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use mesh_xds::pb::envoy::config::accesslog::v3::comparison_filter::Op as OpProto;
use mesh_xds::pb::envoy::config::accesslog::v3::extension_filter;
use mesh_xds::pb::envoy::config::accesslog::v3::{
    AccessLog as Proto, AccessLogFilter, ComparisonFilter, GrpcStatusFilter,
};
use mesh_xds::pb::envoy::config::core::v3::SubstitutionFormatString;
use mesh_xds::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use mesh_xds::pb::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
use mesh_xds::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use mesh_xds::pb::envoy::extensions::access_loggers::grpc::v3::{
    CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
};
use mesh_xds::pb::envoy::extensions::access_loggers::stream::v3::{
    StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log,
};

use super::common::{boolean, enumeration, fraction};
use super::error::{At, XdsError};
use super::listener::extension;
use super::{Context, config_source, format, grpc_service, matcher, rbac};
use crate::model::cel;
use crate::model::source::GrpcTarget;
use crate::runtime::Setting;
use crate::telemetry::access_log::{AccessLog, JsonFormat, Layout, LogFormat, Output};
use crate::telemetry::log_filter::{Comparison, LogFilter, Op};
use crate::telemetry::remote_log::Target;
use crate::telemetry::stream_info::ResponseFlags;

/// Envoy's default format.
const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// All access logs of a list. Their files are opened.
pub(super) fn convert(
    at: At<'_>,
    protos: &[Proto],
    context: &Context<'_>,
) -> Result<Vec<Arc<AccessLog>>, XdsError> {
    protos.iter().enumerate().map(|(i, proto)| one(at.index(i), proto, context).map(Arc::new)).collect()
}

fn one(at: At<'_>, proto: &Proto, context: &Context<'_>) -> Result<AccessLog, XdsError> {
    let filter = proto.filter.as_ref().map(|filter| self::filter(at.field("filter"), filter)).transpose()?;
    let Some(ConfigType::TypedConfig(config)) = &proto.config_type else {
        return Err(at.field("typed_config").invalid("is required"));
    };
    let at = at.field("typed_config");
    let broken = |e: mesh_xds::prost::DecodeError| at.invalid(e.to_string());
    let (path, format) = if let Some(log) = mesh_xds::unpack::<FileAccessLog>(config) {
        let log = log.map_err(broken)?;
        let format = file_format(at, log.access_log_format.as_ref())?;
        (log.path, format)
    } else if let Some(log) = mesh_xds::unpack::<StdoutAccessLog>(config) {
        let format = log.map_err(broken)?.access_log_format;
        let format = format.map(|stdout_access_log::AccessLogFormat::LogFormat(format)| format);
        ("/dev/stdout".to_owned(), stream_format(at, format.as_ref())?)
    } else if let Some(log) = mesh_xds::unpack::<StderrAccessLog>(config) {
        let format = log.map_err(broken)?.access_log_format;
        let format = format.map(|stderr_access_log::AccessLogFormat::LogFormat(format)| format);
        ("/dev/stderr".to_owned(), stream_format(at, format.as_ref())?)
    } else if let Some(log) = mesh_xds::unpack::<HttpGrpcAccessLogConfig>(config) {
        return remote(at, log.map_err(broken)?.common_config.as_ref(), (false, filter), context);
    } else if let Some(log) = mesh_xds::unpack::<TcpGrpcAccessLogConfig>(config) {
        return remote(at, log.map_err(broken)?.common_config.as_ref(), (true, filter), context);
    } else {
        return Err(extension(at, config));
    };
    let file = context.log_files.open(Path::new(&path));
    let file = file.map_err(|e| at.field("path").invalid(e.to_string()))?;
    Ok(AccessLog { output: Output::File(file, format), filter })
}

pub(super) fn filter(at: At<'_>, proto: &AccessLogFilter) -> Result<LogFilter, XdsError> {
    let several = |name: &str, filters: &[AccessLogFilter]| {
        let at = at.field(name);
        let at = at.field("filters");
        if filters.len() < 2 {
            return Err(at.invalid("needs at least two filters"));
        }
        filters.iter().enumerate().map(|(i, proto)| filter(at.index(i), proto)).collect::<Result<Vec<_>, _>>()
    };
    let compared = |name: &str, proto: Option<&ComparisonFilter>| {
        let at = at.field(name);
        comparison(at.field("comparison"), proto)
    };
    Ok(match &proto.filter_specifier {
        Some(FilterSpecifier::StatusCodeFilter(of)) => {
            LogFilter::StatusCode(compared("status_code_filter", of.comparison.as_ref())?)
        }
        Some(FilterSpecifier::DurationFilter(of)) => {
            LogFilter::Duration(compared("duration_filter", of.comparison.as_ref())?)
        }
        Some(FilterSpecifier::NotHealthCheckFilter(_)) => LogFilter::NotHealthCheck,
        Some(FilterSpecifier::RuntimeFilter(of)) => {
            let share = of.percent_sampled.as_ref().map_or((0, 100), fraction);
            LogFilter::Sampled(Setting::new(share, &of.runtime_key))
        }
        Some(FilterSpecifier::AndFilter(of)) => LogFilter::All(several("and_filter", &of.filters)?),
        Some(FilterSpecifier::OrFilter(of)) => LogFilter::Any(several("or_filter", &of.filters)?),
        Some(FilterSpecifier::ResponseFlagFilter(of)) => {
            let at = at.field("response_flag_filter");
            let at = at.field("flags");
            let mut flags = ResponseFlags::default();
            for (i, name) in of.flags.iter().enumerate() {
                let unknown = || at.index(i).invalid(format!("{name:?} is not a response flag"));
                flags.set(ResponseFlags::named(name).ok_or_else(unknown)?);
            }
            LogFilter::Flags(flags)
        }
        Some(FilterSpecifier::GrpcStatusFilter(of)) => grpc_status(of),
        Some(FilterSpecifier::ExtensionFilter(of)) => {
            let at = at.field("extension_filter");
            let at = at.field("typed_config");
            let Some(extension_filter::ConfigType::TypedConfig(config)) = &of.config_type else {
                return Err(at.invalid("is required"));
            };
            let Some(filter) = mesh_xds::unpack::<ExpressionFilter>(config) else {
                return Err(extension(at, config));
            };
            let filter = filter.map_err(|e| at.invalid(e.to_string()))?;
            let expr = cel::parse(&filter.expression).map_err(|e| at.field("expression").invalid(e))?;
            LogFilter::Expression(Box::new(expr))
        }
        Some(FilterSpecifier::HeaderFilter(of)) => {
            let at = at.field("header_filter");
            let at = at.field("header");
            let header = of.header.as_ref().ok_or_else(|| at.invalid("is required"))?;
            LogFilter::Header(Box::new(matcher::header(at, header)?))
        }
        Some(FilterSpecifier::MetadataFilter(of)) => {
            let at = at.field("metadata_filter");
            let at = at.field("matcher");
            let matcher = of.matcher.as_ref().ok_or_else(|| at.invalid("is required"))?;
            LogFilter::Metadata {
                matcher: Box::new(rbac::metadata_matcher(at, matcher)?),
                unless_found: boolean(of.match_if_key_not_found, true),
            }
        }
        Some(FilterSpecifier::LogTypeFilter(of)) => {
            LogFilter::LogTypes { types: of.types.clone(), exclude: of.exclude }
        }
        Some(FilterSpecifier::TraceableFilter(_)) => return Err(at.field("traceable_filter").unsupported()),
        None => return Err(at.invalid("needs a filter")),
    })
}

fn grpc_status(proto: &GrpcStatusFilter) -> LogFilter {
    LogFilter::GrpcStatus {
        codes: proto.statuses.iter().copied().map(i64::from).collect(),
        exclude: proto.exclude,
    }
}

fn comparison(at: At<'_>, proto: Option<&ComparisonFilter>) -> Result<Comparison, XdsError> {
    let proto = proto.ok_or_else(|| at.invalid("is required"))?;
    let op = match enumeration(at.field("op"), proto.op)? {
        OpProto::Eq => Op::Equal,
        OpProto::Ge => Op::AtLeast,
        OpProto::Le => Op::AtMost,
        OpProto::Ne => Op::NotEqual,
    };
    let value = proto.value.as_ref();
    let value =
        value.map_or(Setting::fixed(0), |value| Setting::new(value.default_value.into(), &value.runtime_key));
    Ok(Comparison { op, value })
}

fn remote(
    at: At<'_>,
    proto: Option<&CommonGrpcAccessLogConfig>,
    (tcp, filter): (bool, Option<LogFilter>),
    context: &Context<'_>,
) -> Result<AccessLog, XdsError> {
    let at = at.field("common_config");
    let proto = proto.ok_or_else(|| at.invalid("is required"))?;
    config_source::version(at.field("transport_api_version"), proto.transport_api_version)?;
    let at = at.field("grpc_service");
    let service = proto.grpc_service.as_ref().ok_or_else(|| at.invalid("is required"))?;
    let server = grpc_service::server(at, service)?;
    if let GrpcTarget::Cluster(name) = &server.target {
        context.known_cluster(at, name)?;
    }
    let target = Target { server, name: proto.log_name.as_str().into(), tcp };
    let log = context.log_files.remote().open(&target, context.log_files.stats());
    Ok(AccessLog { output: Output::Server(log), filter })
}

fn stream_format(at: At<'_>, format: Option<&SubstitutionFormatString>) -> Result<LogFormat, XdsError> {
    match format {
        Some(format) => format::log_format(at.field("log_format"), format),
        None => text(at, DEFAULT),
    }
}

fn file_format(at: At<'_>, format: Option<&AccessLogFormat>) -> Result<LogFormat, XdsError> {
    match format {
        Some(AccessLogFormat::LogFormat(format)) => format::log_format(at.field("log_format"), format),
        Some(AccessLogFormat::Format(format)) if !format.is_empty() => text(at.field("format"), format),
        Some(AccessLogFormat::JsonFormat(fields)) => {
            Ok(json(format::object(at.field("json_format"), fields)?))
        }
        Some(AccessLogFormat::TypedJsonFormat(fields)) => {
            Ok(json(format::object(at.field("typed_json_format"), fields)?))
        }
        Some(AccessLogFormat::Format(_)) | None => text(at, DEFAULT),
    }
}

fn text(at: At<'_>, format: &str) -> Result<LogFormat, XdsError> {
    let format = format::parse(format).map_err(|message| at.invalid(message))?;
    Ok(LogFormat { layout: Layout::Text(format), omit_empty: false })
}

fn json(fields: BTreeMap<String, JsonFormat>) -> LogFormat {
    LogFormat { layout: Layout::Json(fields), omit_empty: false }
}
