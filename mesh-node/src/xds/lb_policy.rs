//! How a cluster balances: `lb_policy` with `common_lb_config` and the policy's own message, or
//! `load_balancing_policy` with its extensions. Both come to the same.

use std::sync::Arc;
use std::time::Duration;

use mesh_xds::pb::envoy::config::cluster::v3::Cluster as Proto;
use mesh_xds::pb::envoy::config::cluster::v3::cluster::common_lb_config::{
    LocalityConfigSpecifier, ZoneAwareLbConfig,
};
use mesh_xds::pb::envoy::config::cluster::v3::cluster::ring_hash_lb_config::HashFunction as FunctionProto;
use mesh_xds::pb::envoy::config::cluster::v3::cluster::{
    CommonLbConfig, LbConfig, LbPolicy as PolicyProto, SlowStartConfig,
};
use mesh_xds::pb::envoy::config::core::v3::RuntimeDouble;
use mesh_xds::pb::envoy::r#type::v3::Percent;
use mesh_xds::pb::google::protobuf;

use super::common::{duration, enumeration, number, percent, runtime_double};
use super::error::{At, XdsError};
use super::{Context, endpoint, lb_extension, subset};
use crate::model::cluster::{
    Balancing, HashFunction, Hashing, LbPolicy, LocalityBasis, SlowStart, ZoneAware,
};

/// Envoy's defaults and bounds of ring and table sizes.
const MINIMUM_RING: u64 = 1024;
const MAXIMUM_RING: u64 = 8 << 20;
const MAGLEV_TABLE: u64 = 65_537;
const LARGEST_MAGLEV_TABLE: u64 = 5_000_011;

/// What a cluster's messages say of balancing.
pub(super) struct Converted {
    pub(super) lb: LbPolicy,
    pub(super) balancing: Balancing,
    /// Localities share the load by their weights.
    pub(super) locality_weighted: bool,
}

impl Converted {
    pub(super) fn new(lb: LbPolicy) -> Self {
        Self { lb, balancing: Balancing::default(), locality_weighted: false }
    }
}

/// The balancing of a cluster. `original_dst`: its type is ORIGINAL_DST. `stat_name` is the cluster's.
pub(super) fn convert(
    at: At<'_>,
    proto: &Proto,
    original_dst: bool,
    stat_name: &str,
    context: &Context<'_>,
) -> Result<Converted, XdsError> {
    let mut converted = match &proto.load_balancing_policy {
        Some(policy) => {
            exclusive(at, proto)?;
            lb_extension::convert(at.field("load_balancing_policy"), policy)?
        }
        None => of_enum(at, proto)?,
    };
    if let Some(set) = proto.common_lb_config.as_ref().and_then(|c| c.override_host_status.as_ref()) {
        let at = at.field("common_lb_config.override_host_status.statuses");
        let statuses = set.statuses.iter().enumerate().map(|(i, s)| endpoint::health(at.index(i), *s));
        converted.balancing.override_statuses = statuses.collect::<Result<_, _>>()?;
    }
    // Envoy's own rule, both ways.
    if original_dst != matches!(converted.lb, LbPolicy::ClusterProvided) {
        let message = if original_dst {
            "must be CLUSTER_PROVIDED with type ORIGINAL_DST"
        } else {
            "CLUSTER_PROVIDED is only for type ORIGINAL_DST"
        };
        return Err(at.field("lb_policy").invalid(message));
    }
    if let Some(subsets) = &mut converted.balancing.subsets {
        subsets.stats = context.stats.subsets(stat_name);
    }
    match converted.lb {
        LbPolicy::RingHash { .. } => {
            converted.balancing.ring_hash_stats = Some(context.stats.ring_hash(stat_name));
        }
        LbPolicy::Maglev { .. } => converted.balancing.maglev_stats = Some(context.stats.maglev(stat_name)),
        _ => {}
    }
    Ok(converted)
}

/// Envoy: "load_balancing_policy cannot be combined with" what the policies have in messages of their own.
fn exclusive(at: At<'_>, proto: &Proto) -> Result<(), XdsError> {
    let message = "cannot be given beside load_balancing_policy; move it into the policy";
    if proto.lb_subset_config.is_some() {
        return Err(at.field("lb_subset_config").invalid(message));
    }
    let common = proto.common_lb_config.as_ref();
    if common.is_some_and(|common| common.locality_config_specifier.is_some()) {
        return Err(at.field("common_lb_config").invalid(format!("locality settings: {message}")));
    }
    if common.is_some_and(|common| common.consistent_hashing_lb_config.is_some()) {
        return Err(at.field("common_lb_config").invalid(format!("consistent_hashing_lb_config: {message}")));
    }
    Ok(())
}

fn of_enum(at: At<'_>, proto: &Proto) -> Result<Converted, XdsError> {
    let at_policy = at.field("lb_policy");
    let lb = match enumeration(at_policy, proto.lb_policy)? {
        PolicyProto::RoundRobin => LbPolicy::RoundRobin,
        PolicyProto::LeastRequest => {
            let config = match &proto.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => Some(config),
                _ => None,
            };
            let bias = config.and_then(|config| config.active_request_bias.as_ref());
            least_request(config.and_then(|config| config.choice_count), bias, false)
        }
        PolicyProto::Random => LbPolicy::Random,
        PolicyProto::RingHash => {
            let at = at.field("ring_hash_lb_config");
            match &proto.lb_config {
                Some(LbConfig::RingHashLbConfig(config)) => {
                    let function = match enumeration(at.field("hash_function"), config.hash_function)? {
                        FunctionProto::XxHash => HashFunction::XxHash,
                        FunctionProto::MurmurHash2 => HashFunction::Murmur2,
                    };
                    ring_hash(at, config.minimum_ring_size, config.maximum_ring_size, function)?
                }
                _ => ring_hash(at, None, None, HashFunction::XxHash)?,
            }
        }
        PolicyProto::Maglev => {
            let size = match &proto.lb_config {
                Some(LbConfig::MaglevLbConfig(config)) => config.table_size,
                _ => None,
            };
            maglev(at.field("maglev_lb_config"), size)?
        }
        PolicyProto::ClusterProvided => LbPolicy::ClusterProvided,
        PolicyProto::LoadBalancingPolicyConfig => {
            return Err(at.field("load_balancing_policy").invalid("is required by lb_policy"));
        }
    };
    let mut converted = Converted::new(lb);
    converted.balancing.slow_start = match &proto.lb_config {
        Some(LbConfig::RoundRobinLbConfig(config)) => slow_start(at, config.slow_start_config.as_ref())?,
        Some(LbConfig::LeastRequestLbConfig(config)) => slow_start(at, config.slow_start_config.as_ref())?,
        _ => None,
    };
    if let Some(subsets) = &proto.lb_subset_config {
        converted.balancing.subsets = Some(subset::convert(at.field("lb_subset_config"), subsets)?);
    }
    if let Some(common) = &proto.common_lb_config {
        of_common(at.field("common_lb_config"), common, &mut converted)?;
    }
    Ok(converted)
}

fn of_common(at: At<'_>, common: &CommonLbConfig, converted: &mut Converted) -> Result<(), XdsError> {
    let balancing = &mut converted.balancing;
    match &common.locality_config_specifier {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => converted.locality_weighted = true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(config)) => {
            let ZoneAwareLbConfig { routing_enabled, min_cluster_size, fail_traffic_on_panic } = *config;
            balancing.fail_on_panic = fail_traffic_on_panic;
            let at = at.field("zone_aware_lb_config");
            let (size, basis) = (min_cluster_size, LocalityBasis::HealthyHosts);
            balancing.zones = Some(zone_aware(at, routing_enabled, size, (0, basis))?);
        }
        None => {}
    }
    if let Some(config) = &common.consistent_hashing_lb_config {
        balancing.hashing = Hashing {
            use_hostname: config.use_hostname_for_hashing,
            balance_factor: number(config.hash_balance_factor, 0),
            policies: Vec::new(),
        };
    }
    Ok(())
}

/// `ZoneAwareLbConfig`, which there are two of.
pub(super) fn zone_aware(
    at: At<'_>,
    routing_enabled: Option<Percent>,
    min_cluster_size: Option<protobuf::UInt64Value>,
    (force_local, basis): (u64, LocalityBasis),
) -> Result<Arc<ZoneAware>, XdsError> {
    let enabled = percent(at.field("routing_enabled"), routing_enabled, 100.0)?.round() as u32;
    Ok(Arc::new(ZoneAware::new(enabled, min_cluster_size.map_or(6, |v| v.value), force_local, basis)))
}

pub(super) fn least_request(
    choices: Option<protobuf::UInt32Value>,
    bias: Option<&RuntimeDouble>,
    full_scan: bool,
) -> LbPolicy {
    LbPolicy::LeastRequest {
        choices: number(choices, 2).max(2),
        active_request_bias: runtime_double(bias, 1.0),
        full_scan,
    }
}

pub(super) fn ring_hash(
    at: At<'_>,
    minimum: Option<protobuf::UInt64Value>,
    maximum: Option<protobuf::UInt64Value>,
    function: HashFunction,
) -> Result<LbPolicy, XdsError> {
    let minimum = minimum.map_or(MINIMUM_RING, |v| v.value);
    let maximum = maximum.map_or(MAXIMUM_RING, |v| v.value);
    for (field, value) in [("minimum_ring_size", minimum), ("maximum_ring_size", maximum)] {
        if value > MAXIMUM_RING {
            return Err(at.field(field).invalid(format!("must be at most {MAXIMUM_RING}, not {value}")));
        }
    }
    if minimum > maximum {
        let message = format!("must not be above maximum_ring_size ({minimum} > {maximum})");
        return Err(at.field("minimum_ring_size").invalid(message));
    }
    Ok(LbPolicy::RingHash { minimum, maximum, function })
}

pub(super) fn maglev(at: At<'_>, size: Option<protobuf::UInt64Value>) -> Result<LbPolicy, XdsError> {
    let table_size = size.map_or(MAGLEV_TABLE, |v| v.value);
    if table_size > LARGEST_MAGLEV_TABLE || !is_prime(table_size) {
        let message = format!("must be a prime of at most {LARGEST_MAGLEV_TABLE}, not {table_size}");
        return Err(at.field("table_size").invalid(message));
    }
    Ok(LbPolicy::Maglev { table_size })
}

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

fn slow_start(at: At<'_>, config: Option<&SlowStartConfig>) -> Result<Option<SlowStart>, XdsError> {
    let at = at.field("slow_start_config");
    match config {
        Some(c) => self::ramp(at, c.slow_start_window, c.aggression.as_ref(), c.min_weight_percent),
        None => Ok(None),
    }
}

/// `SlowStartConfig`, which there are two of; `None` without a window.
pub(super) fn ramp(
    at: At<'_>,
    window: Option<protobuf::Duration>,
    aggression: Option<&RuntimeDouble>,
    least: Option<Percent>,
) -> Result<Option<SlowStart>, XdsError> {
    let window = window.map(|window| duration(at.field("slow_start_window"), window)).transpose()?;
    let aggression = runtime_double(aggression, 1.0);
    if aggression.default.is_nan() || aggression.default <= 0.0 {
        let message = format!("must be above 0, not {}", aggression.default);
        return Err(at.field("aggression").invalid(message));
    }
    let least = percent(at.field("min_weight_percent"), least, 10.0)? / 100.0;
    Ok(window.filter(|w| *w >= Duration::from_millis(1)).map(|window| SlowStart {
        window,
        aggression,
        least,
    }))
}
