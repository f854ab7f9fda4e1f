//! Access loggers: files, standard output and error, gRPC servers.

use std::path::Path;
use std::sync::Arc;

use mesh_xds::pb::envoy::config::accesslog::v3::AccessLog as Proto;
use mesh_xds::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use mesh_xds::pb::envoy::config::core::v3::SubstitutionFormatString;
use mesh_xds::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use mesh_xds::pb::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
use mesh_xds::pb::envoy::extensions::access_loggers::grpc::v3::{
    CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
};
use mesh_xds::pb::envoy::extensions::access_loggers::stream::v3::{
    StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log,
};

use super::error::{At, XdsError};
use super::listener::extension;
use super::{Context, config_source, format};
use crate::telemetry::access_log::{AccessLog, LogFormat, Output};
use crate::telemetry::remote_log::Target;

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
        return remote(at, log.map_err(broken)?.common_config.as_ref(), false, context);
    } else if let Some(log) = mesh_xds::unpack::<TcpGrpcAccessLogConfig>(config) {
        return remote(at, log.map_err(broken)?.common_config.as_ref(), true, context);
    } else {
        return Err(extension(at, config));
    };
    let file = context.log_files.open(Path::new(&path));
    let file = file.map_err(|e| at.field("path").invalid(e.to_string()))?;
    Ok(AccessLog { output: Output::File(file, format) })
}

fn remote(
    at: At<'_>,
    proto: Option<&CommonGrpcAccessLogConfig>,
    tcp: bool,
    context: &Context<'_>,
) -> Result<AccessLog, XdsError> {
    let at = at.field("common_config");
    let proto = proto.ok_or_else(|| at.invalid("is required"))?;
    let at = at.field("grpc_service");
    let service = proto.grpc_service.as_ref().ok_or_else(|| at.invalid("is required"))?;
    let server = config_source::server(at, service)?;
    context.known_cluster(at, &server.cluster)?;
    let target = Target { server, name: proto.log_name.as_str().into(), tcp };
    let log = context.log_files.remote().open(&target, context.log_files.stats());
    Ok(AccessLog { output: Output::Server(log) })
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
            Ok(LogFormat::Json(format::object(at.field("json_format"), fields)?))
        }
        Some(AccessLogFormat::TypedJsonFormat(fields)) => {
            Ok(LogFormat::Json(format::object(at.field("typed_json_format"), fields)?))
        }
        Some(AccessLogFormat::Format(_)) | None => text(at, DEFAULT),
    }
}

fn text(at: At<'_>, format: &str) -> Result<LogFormat, XdsError> {
    format::parse(format).map(LogFormat::Text).map_err(|message| at.invalid(message))
}
