//! Local rate limits (`envoy.extensions.filters.{http,network}.local_ratelimit.v3`): token buckets that all
//! workers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::headers::HeaderAdd;
use super::matcher::{HeaderMatcher, QueryMatcher};
use crate::runtime::{Fraction, Setting};
use crate::telemetry::stats::Counter;

/// A token bucket that refills in steps.
#[derive(Debug)]
pub struct TokenBucket {
    max: u64,
    per_fill: u64,
    interval: Duration,
    begin: Instant,
    /// Fills that happened, above; tokens left, in the lower 32 bits.
    state: AtomicU64,
}

impl TokenBucket {
    /// A full bucket. At most 2^32-1 tokens are kept.
    pub fn new(max: u32, per_fill: u32, interval: Duration) -> Self {
        let (max, per_fill) = (u64::from(max), u64::from(per_fill.max(1)));
        let interval = interval.max(Duration::from_millis(1));
        Self { max, per_fill, interval, begin: Instant::now(), state: AtomicU64::new(max) }
    }

    /// Takes a token, if there is one.
    pub fn take(&self, now: Instant) -> bool {
        self.update(now, |tokens| tokens.checked_sub(1)).is_ok()
    }

    /// Tokens left.
    pub fn remaining(&self, now: Instant) -> u64 {
        self.update(now, Some).unwrap_or_default()
    }

    /// Tokens at most.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Tokens a second that come in.
    pub fn fill_rate(&self) -> f64 {
        self.per_fill as f64 / self.interval.as_secs_f64()
    }

    /// Time to the next fill.
    pub fn until_fill(&self, now: Instant) -> Duration {
        let since = now.saturating_duration_since(self.begin).as_nanos();
        let interval = self.interval.as_nanos();
        Duration::from_nanos(u64::try_from(interval - since % interval).unwrap_or(u64::MAX))
    }

    fn update(&self, now: Instant, change: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
        let since = now.saturating_duration_since(self.begin).as_nanos();
        let fills = u64::try_from(since / self.interval.as_nanos()).unwrap_or(u64::MAX) & 0xffff_ffff;
        let tokens_now = |state: u64| {
            let passed = fills.saturating_sub(state >> 32);
            (state & 0xffff_ffff).saturating_add(passed.saturating_mul(self.per_fill)).min(self.max)
        };
        self.state
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |state| {
                let fills = fills.max(state >> 32);
                change(tokens_now(state)).map(|left| fills << 32 | left)
            })
            .map(tokens_now)
    }
}

/// `envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit`.
#[derive(Debug)]
pub struct LocalRateLimit {
    pub bucket: Option<TokenBucket>,
    /// In configuration order.
    pub descriptors: Vec<DescriptorBucket>,
    /// What requests are described by (`rate_limits`); empty: the route's.
    pub rate_limits: Vec<Vec<DescriptorAction>>,
    /// Of the route's, those of this stage count.
    pub stage: u32,
    pub always_consume_default: bool,
    pub enabled: Setting<Fraction>,
    pub enforced: Setting<Fraction>,
    pub status: u16,
    pub response_headers: Vec<HeaderAdd>,
    pub request_headers_when_not_enforced: Vec<HeaderAdd>,
    /// `x-ratelimit-limit` and its kin (`DRAFT_VERSION_03`).
    pub rate_limit_headers: bool,
    /// gRPC clients get RESOURCE_EXHAUSTED instead of UNAVAILABLE.
    pub resource_exhausted: bool,
    pub stats: LocalRateLimitStats,
}

/// A bucket for requests with this descriptor.
#[derive(Debug)]
pub struct DescriptorBucket {
    /// Keys and values; an empty value matches any.
    pub entries: Vec<(String, String)>,
    pub bucket: TokenBucket,
}

/// `PREFIX.http_local_rate_limit.*`
#[derive(Debug)]
pub struct LocalRateLimitStats {
    pub enabled: Arc<Counter>,
    pub enforced: Arc<Counter>,
    pub ok: Arc<Counter>,
    pub rate_limited: Arc<Counter>,
}

/// `config.route.v3.RateLimit.Action`. One that has nothing to say drops the descriptor.
#[derive(Debug, Clone)]
pub enum DescriptorAction {
    GenericKey { key: String, value: String },
    RequestHeader { name: super::matcher::HeaderKey, key: String, skip_if_absent: bool },
    RemoteAddress,
    DestinationCluster,
    HeaderValueMatch { key: String, value: String, expect: bool, headers: Vec<HeaderMatcher> },
    QueryParameterValueMatch { key: String, value: String, expect: bool, parameters: Vec<QueryMatcher> },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_what_it_has_and_refills_in_steps_up_to_its_size() {
        let bucket = TokenBucket::new(3, 2, Duration::from_secs(1));
        let at = |ms| bucket.begin + Duration::from_millis(ms);
        let taken = |ms| (0..10).filter(|_| bucket.take(at(ms))).count();
        assert_eq!(taken(0), 3);
        assert_eq!(taken(999), 0);
        assert_eq!(taken(1000), 2);
        assert_eq!(taken(9000), 3);
        assert_eq!(bucket.remaining(at(9000)), 0);
        assert_eq!(bucket.until_fill(at(9250)), Duration::from_millis(750));
    }
}
