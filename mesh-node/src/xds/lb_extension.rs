//! `load_balancing_policy`: the policies as extensions. Of a list the first that is known counts.

use mesh_xds::pb::envoy::config::cluster::v3::LoadBalancingPolicy;
use mesh_xds::pb::envoy::extensions::load_balancing_policies::cluster_provided::v3::ClusterProvided;
use mesh_xds::pb::envoy::extensions::load_balancing_policies::common::v3::locality_lb_config::LocalityConfigSpecifier;
use mesh_xds::pb::envoy::extensions::load_balancing_policies::common::v3::locality_lb_config::zone_aware_lb_config::LocalityBasis as BasisProto;
use mesh_xds::pb::envoy::extensions::load_balancing_policies::common::v3::{
    ConsistentHashingLbConfig, LocalityLbConfig, SlowStartConfig,
};
use mesh_xds::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use mesh_xds::pb::envoy::extensions::load_balancing_policies::least_request::v3::least_request::SelectionMethod;
use mesh_xds::pb::envoy::extensions::load_balancing_policies::maglev::v3::Maglev;
use mesh_xds::pb::envoy::extensions::load_balancing_policies::random::v3::Random;
use mesh_xds::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::RingHash;
use mesh_xds::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::ring_hash::HashFunction as FunctionProto;
use mesh_xds::pb::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
use mesh_xds::pb::envoy::extensions::load_balancing_policies::subset::v3::Subset;
use mesh_xds::pb::envoy::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality;
use mesh_xds::pb::google::protobuf::Any;
use mesh_xds::prost::{Message, Name};

use super::common::{boolean, enumeration, number};
use super::error::{At, XdsError};
use super::lb_policy::{Converted, least_request, maglev, ramp, ring_hash, zone_aware};
use super::{hash_policy, subset};
use crate::model::cluster::{HashFunction, Hashing, LbPolicy, LocalityBasis, SlowStart};

/// Leaves of each list the policies that are known, so that those before them are no errors; a list without
/// any known one stays as it is.
pub(super) fn keep_known(policy: &mut LoadBalancingPolicy) {
    let known =
        |any: Option<&Any>| any.is_some_and(|any| KNOWN.iter().any(|name| any.type_url.ends_with(name)));
    let config = |p: &mesh_xds::pb::envoy::config::cluster::v3::load_balancing_policy::Policy| {
        p.typed_extension_config.as_ref().and_then(|c| c.typed_config.as_ref()).cloned()
    };
    if policy.policies.iter().any(|p| known(config(p).as_ref())) {
        policy.policies.retain(|p| known(config(p).as_ref()));
        policy.policies.truncate(1);
    }
}

const KNOWN: [&str; 8] = [
    ".cluster_provided.v3.ClusterProvided",
    ".least_request.v3.LeastRequest",
    ".maglev.v3.Maglev",
    ".random.v3.Random",
    ".ring_hash.v3.RingHash",
    ".round_robin.v3.RoundRobin",
    ".subset.v3.Subset",
    ".wrr_locality.v3.WrrLocality",
];

/// The first policy that is known.
pub(super) fn convert(at: At<'_>, proto: &LoadBalancingPolicy) -> Result<Converted, XdsError> {
    let at_policies = at.field("policies");
    for (i, policy) in proto.policies.iter().enumerate() {
        let at = at_policies.index(i);
        let at = at.field("typed_extension_config");
        let at = at.field("typed_config");
        let Some(any) = policy.typed_extension_config.as_ref().and_then(|c| c.typed_config.as_ref()) else {
            return Err(at.invalid("is required"));
        };
        if let Some(converted) = self::policy(at, any)? {
            return Ok(converted);
        }
    }
    Err(at_policies.invalid("has no policy that mesh-node knows"))
}

fn policy(at: At<'_>, any: &Any) -> Result<Option<Converted>, XdsError> {
    if let Some(config) = unpack::<RoundRobin>(at, any)? {
        let mut converted = Converted::new(LbPolicy::RoundRobin);
        converted.balancing.slow_start = slow_start(at, config.slow_start_config.as_ref())?;
        locality(at, config.locality_lb_config.as_ref(), &mut converted)?;
        return Ok(Some(converted));
    }
    if let Some(config) = unpack::<LeastRequest>(at, any)? {
        let method: SelectionMethod = enumeration(at.field("selection_method"), config.selection_method)?;
        let full_scan = method == SelectionMethod::FullScan || boolean(config.enable_full_scan, false);
        let bias = config.active_request_bias.as_ref();
        let mut converted = Converted::new(least_request(config.choice_count, bias, full_scan));
        converted.balancing.slow_start = slow_start(at, config.slow_start_config.as_ref())?;
        locality(at, config.locality_lb_config.as_ref(), &mut converted)?;
        return Ok(Some(converted));
    }
    if let Some(config) = unpack::<Random>(at, any)? {
        let mut converted = Converted::new(LbPolicy::Random);
        locality(at, config.locality_lb_config.as_ref(), &mut converted)?;
        return Ok(Some(converted));
    }
    if let Some(config) = unpack::<RingHash>(at, any)? {
        return of_ring_hash(at, &config).map(Some);
    }
    if let Some(config) = unpack::<Maglev>(at, any)? {
        let mut converted = Converted::new(maglev(at, config.table_size)?);
        converted.balancing.hashing = hashing(at, config.consistent_hashing_lb_config.as_ref())?;
        converted.locality_weighted = config.locality_weighted_lb_config.is_some();
        return Ok(Some(converted));
    }
    if let Some(config) = unpack::<Subset>(at, any)? {
        let at_inner = at.field("subset_lb_policy");
        let inner = config.subset_lb_policy.as_ref().ok_or_else(|| at_inner.invalid("is required"))?;
        let mut converted = convert(at_inner, inner)?;
        converted.balancing.subsets = Some(subset::of_extension(at, &config)?);
        return Ok(Some(converted));
    }
    if let Some(config) = unpack::<WrrLocality>(at, any)? {
        let at = at.field("endpoint_picking_policy");
        let Some(inner) = &config.endpoint_picking_policy else { return Err(at.invalid("is required")) };
        let mut converted = convert(at, inner)?;
        converted.locality_weighted = true;
        return Ok(Some(converted));
    }
    Ok(unpack::<ClusterProvided>(at, any)?.map(|_| Converted::new(LbPolicy::ClusterProvided)))
}

fn unpack<T: Message + Name + Default>(at: At<'_>, any: &Any) -> Result<Option<T>, XdsError> {
    mesh_xds::unpack::<T>(any).transpose().map_err(|error| at.invalid(error.to_string()))
}

fn of_ring_hash(at: At<'_>, config: &RingHash) -> Result<Converted, XdsError> {
    let function = match enumeration(at.field("hash_function"), config.hash_function)? {
        FunctionProto::DefaultHash | FunctionProto::XxHash => HashFunction::XxHash,
        FunctionProto::MurmurHash2 => HashFunction::Murmur2,
    };
    let lb = ring_hash(at, config.minimum_ring_size, config.maximum_ring_size, function)?;
    let mut converted = Converted::new(lb);
    converted.balancing.hashing = match &config.consistent_hashing_lb_config {
        // The deprecated fields count only without it.
        None => Hashing {
            use_hostname: config.use_hostname_for_hashing,
            balance_factor: number(config.hash_balance_factor, 0),
            policies: Vec::new(),
        },
        some => hashing(at, some.as_ref())?,
    };
    converted.locality_weighted = config.locality_weighted_lb_config.is_some();
    Ok(converted)
}

fn hashing(at: At<'_>, config: Option<&ConsistentHashingLbConfig>) -> Result<Hashing, XdsError> {
    let Some(config) = config else { return Ok(Hashing::default()) };
    let at = at.field("consistent_hashing_lb_config");
    Ok(Hashing {
        use_hostname: config.use_hostname_for_hashing,
        balance_factor: number(config.hash_balance_factor, 0),
        policies: hash_policy::convert(at.field("hash_policy"), &config.hash_policy)?,
    })
}

fn slow_start(at: At<'_>, config: Option<&SlowStartConfig>) -> Result<Option<SlowStart>, XdsError> {
    let at = at.field("slow_start_config");
    match config {
        Some(c) => ramp(at, c.slow_start_window, c.aggression.as_ref(), c.min_weight_percent),
        None => Ok(None),
    }
}

fn locality(
    at: At<'_>,
    config: Option<&LocalityLbConfig>,
    converted: &mut Converted,
) -> Result<(), XdsError> {
    match config.and_then(|config| config.locality_config_specifier.as_ref()) {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => converted.locality_weighted = true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(config)) => {
            let at = at.field("locality_lb_config.zone_aware_lb_config");
            converted.balancing.fail_on_panic = config.fail_traffic_on_panic;
            let basis = match enumeration(at.field("locality_basis"), config.locality_basis)? {
                BasisProto::HealthyHostsNum => LocalityBasis::HealthyHosts,
                BasisProto::HealthyHostsWeight => LocalityBasis::HealthyWeight,
            };
            // As Envoy: the older flag counts for one host.
            let force = match &config.force_local_zone {
                Some(force) => number(force.min_size, 1),
                #[allow(deprecated, reason = "servers still send it")]
                None => u32::from(config.force_locality_direct_routing),
            };
            let (enabled, size) = (config.routing_enabled, config.min_cluster_size);
            converted.balancing.zones = Some(zone_aware(at, enabled, size, (u64::from(force), basis))?);
        }
        None => {}
    }
    Ok(())
}
