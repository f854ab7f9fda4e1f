//! Why an upstream stream ended without a complete response, in Envoy's words.

use crate::telemetry::stream_info::ResponseFlags;
use crate::upstream::ErrorKind;

/// Envoy's `StreamResetReason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetReason {
    LocalReset,
    RemoteReset,
    RemoteRefusedStream,
    RemoteConnectionFailure,
    ConnectionTimeout,
    ConnectionTermination,
    Overflow,
    ProtocolError,
}

impl ResetReason {
    /// As in `reset reason: …`.
    pub fn text(self) -> &'static str {
        match self {
            Self::LocalReset => "local reset",
            Self::RemoteReset => "remote reset",
            Self::RemoteRefusedStream => "remote refused stream reset",
            Self::RemoteConnectionFailure => "remote connection failure",
            Self::ConnectionTimeout => "connection timeout",
            Self::ConnectionTermination => "connection termination",
            Self::Overflow => "overflow",
            Self::ProtocolError => "protocol error",
        }
    }

    pub fn response_flag(self) -> ResponseFlags {
        match self {
            Self::LocalReset => ResponseFlags::LOCAL_RESET,
            Self::RemoteReset | Self::RemoteRefusedStream => ResponseFlags::UPSTREAM_REMOTE_RESET,
            Self::RemoteConnectionFailure | Self::ConnectionTimeout => {
                ResponseFlags::UPSTREAM_CONNECTION_FAILURE
            }
            Self::ConnectionTermination => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
            Self::Overflow => ResponseFlags::UPSTREAM_OVERFLOW,
            Self::ProtocolError => ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
        }
    }
}

impl From<ErrorKind> for ResetReason {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::ConnectFailure | ErrorKind::TlsFailure => Self::RemoteConnectionFailure,
            ErrorKind::ConnectTimeout => Self::ConnectionTimeout,
            ErrorKind::Reset { .. } => Self::ConnectionTermination,
            ErrorKind::RefusedStream => Self::RemoteRefusedStream,
            ErrorKind::RemoteReset => Self::RemoteReset,
            ErrorKind::Overflow => Self::Overflow,
            ErrorKind::ProtocolError => Self::ProtocolError,
        }
    }
}

/// Response code details: `before` or `after` the response started, with the reason and, if known, what the
/// transport said. Blanks are underscores.
pub fn details(when: &str, reason: ResetReason, transport_failure: Option<&str>) -> String {
    let separator = if transport_failure.is_some() { "|" } else { "" };
    let transport_failure = transport_failure.unwrap_or_default();
    format!("upstream_reset_{when}_response_started{{{}{separator}{transport_failure}}}", reason.text())
        .replace(' ', "_")
}
