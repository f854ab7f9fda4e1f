//! Envoy's response flags: why a stream ended as it did, in the words operators search logs for.

/// A set of response flags. The bits are in the order in which Envoy writes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResponseFlags(pub u32);

impl ResponseFlags {
    pub const FAILED_LOCAL_HEALTH_CHECK: Self = Self(1 << 0);
    pub const NO_HEALTHY_UPSTREAM: Self = Self(1 << 1);
    pub const UPSTREAM_REQUEST_TIMEOUT: Self = Self(1 << 2);
    pub const LOCAL_RESET: Self = Self(1 << 3);
    pub const UPSTREAM_REMOTE_RESET: Self = Self(1 << 4);
    pub const UPSTREAM_CONNECTION_FAILURE: Self = Self(1 << 5);
    pub const UPSTREAM_CONNECTION_TERMINATION: Self = Self(1 << 6);
    pub const UPSTREAM_OVERFLOW: Self = Self(1 << 7);
    pub const NO_ROUTE_FOUND: Self = Self(1 << 8);
    pub const DELAY_INJECTED: Self = Self(1 << 9);
    pub const FAULT_INJECTED: Self = Self(1 << 10);
    pub const RATE_LIMITED: Self = Self(1 << 11);
    pub const UNAUTHORIZED_EXTERNAL_SERVICE: Self = Self(1 << 12);
    pub const RATELIMIT_SERVICE_ERROR: Self = Self(1 << 13);
    pub const DOWNSTREAM_CONNECTION_TERMINATION: Self = Self(1 << 14);
    pub const UPSTREAM_RETRY_LIMIT_EXCEEDED: Self = Self(1 << 15);
    pub const STREAM_IDLE_TIMEOUT: Self = Self(1 << 16);
    pub const INVALID_ENVOY_REQUEST_HEADERS: Self = Self(1 << 17);
    pub const DOWNSTREAM_PROTOCOL_ERROR: Self = Self(1 << 18);
    pub const UPSTREAM_MAX_STREAM_DURATION_REACHED: Self = Self(1 << 19);
    pub const RESPONSE_FROM_CACHE_FILTER: Self = Self(1 << 20);
    pub const NO_FILTER_CONFIG_FOUND: Self = Self(1 << 21);
    pub const DURATION_TIMEOUT: Self = Self(1 << 22);
    pub const UPSTREAM_PROTOCOL_ERROR: Self = Self(1 << 23);
    pub const NO_CLUSTER_FOUND: Self = Self(1 << 24);
    pub const OVERLOAD_MANAGER: Self = Self(1 << 25);
    pub const DNS_RESOLUTION_FAILED: Self = Self(1 << 26);
    pub const DROP_OVERLOAD: Self = Self(1 << 27);
    pub const DOWNSTREAM_REMOTE_RESET: Self = Self(1 << 28);

    /// Adds the flags of another set.
    pub fn set(&mut self, flag: Self) {
        self.0 |= flag.0;
    }

    pub fn contains(self, flag: Self) -> bool {
        self.0 & flag.0 == flag.0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The flag of this short name, such as `NR`.
    pub fn named(short: &str) -> Option<Self> {
        NAMES.iter().position(|(name, _)| *name == short).map(|bit| Self(1 << bit))
    }

    /// `URX,UF`; `-` for the empty set (`%RESPONSE_FLAGS%`).
    pub fn short(self) -> String {
        self.joined(|(short, _)| short)
    }

    /// `UpstreamRetryLimitExceeded,UpstreamConnectionFailure`; `-` for the empty set
    /// (`%RESPONSE_FLAGS_LONG%`).
    pub fn long(self) -> String {
        self.joined(|(_, long)| long)
    }

    fn joined(self, name: impl Fn((&'static str, &'static str)) -> &'static str) -> String {
        if self.is_empty() {
            return "-".to_owned();
        }
        // Envoy writes flags as they were set. The end of retries is noted before what the last try ended with.
        let first = Self::UPSTREAM_RETRY_LIMIT_EXCEEDED;
        let bits = NAMES.iter().enumerate().filter(|(bit, _)| self.0 >> bit & 1 == 1);
        let (mut set, rest): (Vec<_>, Vec<_>) = bits.partition(|(bit, _)| 1 << bit == first.0);
        set.extend(rest);
        set.iter().map(|(_, n)| name(**n)).collect::<Vec<_>>().join(",")
    }
}

/// Short and long name of each bit.
const NAMES: [(&str, &str); 29] = [
    ("LH", "FailedLocalHealthCheck"),
    ("UH", "NoHealthyUpstream"),
    ("UT", "UpstreamRequestTimeout"),
    ("LR", "LocalReset"),
    ("UR", "UpstreamRemoteReset"),
    ("UF", "UpstreamConnectionFailure"),
    ("UC", "UpstreamConnectionTermination"),
    ("UO", "UpstreamOverflow"),
    ("NR", "NoRouteFound"),
    ("DI", "DelayInjected"),
    ("FI", "FaultInjected"),
    ("RL", "RateLimited"),
    ("UAEX", "UnauthorizedExternalService"),
    ("RLSE", "RateLimitServiceError"),
    ("DC", "DownstreamConnectionTermination"),
    ("URX", "UpstreamRetryLimitExceeded"),
    ("SI", "StreamIdleTimeout"),
    ("IH", "InvalidEnvoyRequestHeaders"),
    ("DPE", "DownstreamProtocolError"),
    ("UMSDR", "UpstreamMaxStreamDurationReached"),
    ("RFCF", "ResponseFromCacheFilter"),
    ("NFCF", "NoFilterConfigFound"),
    ("DT", "DurationTimeout"),
    ("UPE", "UpstreamProtocolError"),
    ("NC", "NoClusterFound"),
    ("OM", "OverloadManagerTerminated"),
    ("DF", "DnsResolutionFailed"),
    ("DO", "DropOverload"),
    ("DR", "DownstreamRemoteReset"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_written_in_envoys_order_with_envoys_names() {
        let mut flags = ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
        flags.set(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
        assert_eq!(flags.short(), "URX,UF");
        assert_eq!(flags.long(), "UpstreamRetryLimitExceeded,UpstreamConnectionFailure");
        assert_eq!(ResponseFlags::default().short(), "-");
        assert_eq!(ResponseFlags::DOWNSTREAM_REMOTE_RESET.short(), "DR");
        assert_eq!(ResponseFlags::NO_CLUSTER_FOUND.short(), "NC");
    }
}
