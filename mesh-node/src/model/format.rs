//! Envoy's substitution formats (`%REQ(X)%` and the like), parsed once.
//!
//! Parsing and the values are here; `telemetry/` evaluates them against a stream.

use super::cel::Expr;

/// A parsed format string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Format {
    pub parts: Vec<Part>,
}

impl Format {
    /// The text, if the format has no operator.
    pub fn literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }
}

/// A piece of a format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Text(String),
    /// `%NAME(argument):max_length%`.
    Operator {
        operator: Operator,
        max_length: Option<usize>,
    },
}

/// A command operator of Envoy's access log and header formats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// `REQ(X?Y)`: header X, else Y. Names lower case, may be pseudo headers (`:path`).
    Req(String, Option<String>),
    Resp(String, Option<String>),
    Trailer(String, Option<String>),
    /// `START_TIME(format)`, `None` is ISO 8601 with milliseconds.
    StartTime(Option<String>),
    /// `EMIT_TIME(format)`: when the line is written.
    EmitTime(Option<String>),
    /// `DOWNSTREAM_PEER_CERT_V_START(format)` and its kin, or the end of validity.
    CertificateTime {
        upstream: bool,
        end: bool,
        format: Option<String>,
    },
    /// `DOWNSTREAM_PEER_SUBJECT` and its kin.
    Certificate {
        upstream: bool,
        /// Our own, not the peer's.
        own: bool,
        part: CertificatePart,
    },
    /// `GRPC_STATUS(form)`; `GRPC_STATUS_NUMBER`.
    GrpcStatus(GrpcStatusForm),
    /// `QUERY_PARAM(name)` of the path that the client asked for.
    QueryParameter(String),
    /// `PATH(query:source)`.
    Path {
        query: bool,
        source: PathSource,
    },
    /// `COMMON_DURATION(from:to:unit)`.
    CommonDuration {
        from: TimePoint,
        to: TimePoint,
        unit: DurationUnit,
    },
    /// Operators without an argument, by Envoy's name.
    Plain(Plain),
    /// `DYNAMIC_METADATA(NAMESPACE:KEY:…)` and its kin.
    Metadata {
        of: MetadataOf,
        namespace: String,
        path: Vec<String>,
    },
    /// `FILTER_STATE(KEY:PLAIN)`, or as JSON.
    FilterState {
        key: String,
        plain: bool,
    },
    /// `REQ_WITHOUT_QUERY(X?Y)`
    ReqWithoutQuery(String, Option<String>),
    /// `QUERY_PARAMS(ORIG)`: all parameters as they came.
    QueryParameters,
    /// `REQUESTED_SERVER_NAME(X:Y)`: the name of TLS, of the request, or one before the other.
    ServerName {
        from: ServerNameFrom,
        host: PathSource,
    },
    /// `CEL(expression)`
    Cel(Box<Expr>),
    /// `COALESCE({"operators": […]})`: the first that has a value.
    Coalesce(Vec<Part>),
    /// `ENVIRONMENT(NAME)`, resolved when parsed.
    Environment(Option<String>),
}

/// Whose metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataOf {
    Stream,
    Cluster,
    Endpoint,
}

/// What `REQUESTED_SERVER_NAME` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerNameFrom {
    Sni,
    SniFirst,
    HostFirst,
}

/// What of a certificate is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CertificatePart {
    UriSan,
    DnsSan,
    IpSan,
    EmailSan,
    Subject,
    Issuer,
    Serial,
    Sha256,
    Sha1,
    /// Of all certificates that the peer sent.
    ChainSerials,
    ChainSha256,
    ChainSha1,
    /// URL-encoded PEM.
    Pem,
}

/// How a gRPC status is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrpcStatusForm {
    CamelCase,
    SnakeCase,
    Number,
}

/// Which path `PATH` shows: `x-envoy-original-path`, `:path`, or the first of them that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathSource {
    Original,
    Current,
    OriginalOrCurrent,
}

/// Points in the life of a stream, by Envoy's names: `DS` is the client, `US` the upstream, `RX` received and
/// `TX` sent, first byte and last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimePoint {
    DownstreamRxBegin,
    DownstreamRxEnd,
    UpstreamTxBegin,
    UpstreamTxEnd,
    UpstreamRxBegin,
    UpstreamRxEnd,
    DownstreamTxBegin,
    DownstreamTxEnd,
}

/// The unit of `COMMON_DURATION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DurationUnit {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

/// Operators without an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Plain {
    BytesReceived,
    BytesSent,
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    ResponseFlags,
    ResponseFlagsLong,
    UpstreamTransportFailureReason,
    DownstreamTransportFailureReason,
    RouteName,
    VirtualHostName,
    Duration,
    RequestDuration,
    RequestTxDuration,
    ResponseDuration,
    ResponseTxDuration,
    UpstreamHost,
    UpstreamCluster,
    UpstreamClusterRaw,
    UpstreamLocalAddress,
    UpstreamLocalAddressWithoutPort,
    UpstreamLocalPort,
    UpstreamRemotePort,
    UpstreamRemoteAddress,
    UpstreamRemoteAddressWithoutPort,
    UpstreamRequestAttemptCount,
    DownstreamLocalAddress,
    DownstreamLocalAddressWithoutPort,
    DownstreamLocalPort,
    DownstreamRemoteAddress,
    DownstreamRemoteAddressWithoutPort,
    DownstreamRemotePort,
    DownstreamDirectRemoteAddress,
    DownstreamDirectRemoteAddressWithoutPort,
    DownstreamDirectRemotePort,
    DownstreamTlsVersion,
    DownstreamTlsCipher,
    UpstreamTlsVersion,
    UpstreamTlsCipher,
    UpstreamConnectionId,
    UpstreamPoolReadyDuration,
    UpstreamHostName,
    UpstreamHostNameWithoutPort,
    UpstreamHostsAttempted,
    UpstreamHostsAttemptedWithoutPort,
    FilterChainName,
    VirtualClusterName,
    UniqueId,
    LocalReplyBody,
    /// What HTTP/3 alone counts.
    Zero,
    TraceId,
    SpanId,
    /// What is never known here: no fingerprints are taken.
    Unknown,
    ConnectionId,
    StreamId,
    Hostname,
    RequestHeadersBytes,
    ResponseHeadersBytes,
    ResponseTrailersBytes,
    AccessLogType,
}
