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
    /// Operators without an argument, by Envoy's name.
    Plain(Plain),
    /// `DYNAMIC_METADATA(…)`, `FILTER_STATE(…)`, `CLUSTER_METADATA(…)`, `UPSTREAM_METADATA(…)`: kind and argument.
    Metadata(&'static str, String),
    /// `ENVIRONMENT(NAME)`, resolved when parsed.
    Environment(Option<String>),
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
    UpstreamLocalAddress,
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
    AccessLogType,
}
