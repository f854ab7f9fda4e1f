//! Envoy's substitution formats (`%REQ(X)%` and the like), parsed once.
//!
//! Parsing and the values are here; `telemetry/` evaluates them against a stream.

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
    /// `DOWNSTREAM_PEER_CERT_V_START(format)`, or the end of validity.
    PeerCertificateTime {
        end: bool,
        format: Option<String>,
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
    /// `DYNAMIC_METADATA(…)`, `FILTER_STATE(…)`, `CLUSTER_METADATA(…)`, `UPSTREAM_METADATA(…)`: kind and argument.
    Metadata(&'static str, String),
    /// `ENVIRONMENT(NAME)`, resolved when parsed.
    Environment(Option<String>),
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
    DownstreamPeerUriSan,
    DownstreamPeerDnsSan,
    DownstreamPeerIpSan,
    DownstreamPeerEmailSan,
    DownstreamPeerSerial,
    DownstreamPeerFingerprint256,
    DownstreamPeerCert,
    DownstreamLocalUriSan,
    DownstreamPeerSubject,
    DownstreamLocalSubject,
    DownstreamPeerIssuer,
    DownstreamTlsVersion,
    DownstreamTlsCipher,
    RequestedServerName,
    ConnectionId,
    StreamId,
    Hostname,
    RequestHeadersBytes,
    ResponseHeadersBytes,
    ResponseTrailersBytes,
    AccessLogType,
}
