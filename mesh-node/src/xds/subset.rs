//! `envoy.config.cluster.v3.Cluster.LbSubsetConfig`, and its form as an extension. The statistics are the
//! caller's to give.

use std::sync::Arc;

use mesh_xds::pb::envoy::config::cluster::v3::cluster::LbSubsetConfig as Proto;
use mesh_xds::pb::envoy::config::cluster::v3::cluster::lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy;
use mesh_xds::pb::envoy::config::cluster::v3::cluster::lb_subset_config::{
    LbSubsetFallbackPolicy, LbSubsetSelector,
};
use mesh_xds::pb::envoy::extensions::load_balancing_policies::subset::v3::Subset as Extension;

use super::common::enumeration;
use super::error::{At, XdsError};
use super::metadata;
use crate::model::Str;
use crate::model::cluster::{Fallback, SelectorFallback, SubsetSelector, Subsets};

/// The same of `extensions.load_balancing_policies.subset.v3.Subset`.
pub(super) fn of_extension(at: At<'_>, extension: &Extension) -> Result<Subsets, XdsError> {
    let selectors = extension.subset_selectors.iter().map(|selector| LbSubsetSelector {
        keys: selector.keys.clone(),
        single_host_per_subset: selector.single_host_per_subset,
        fallback_policy: selector.fallback_policy,
        fallback_keys_subset: selector.fallback_keys_subset.clone(),
    });
    let proto = Proto {
        fallback_policy: extension.fallback_policy,
        default_subset: extension.default_subset.clone(),
        subset_selectors: selectors.collect(),
        locality_weight_aware: extension.locality_weight_aware,
        panic_mode_any: extension.panic_mode_any,
        list_as_any: extension.list_as_any,
        ..Proto::default()
    };
    Ok(Subsets { allow_redundant_keys: extension.allow_redundant_keys, ..convert(at, &proto)? })
}

pub(super) fn convert(at: At<'_>, proto: &Proto) -> Result<Subsets, XdsError> {
    let at_selectors = at.field("subset_selectors");
    let selectors = proto.subset_selectors.iter().enumerate();
    Ok(Subsets {
        fallback: match enumeration(at.field("fallback_policy"), proto.fallback_policy)? {
            LbSubsetFallbackPolicy::NoFallback => Fallback::None,
            LbSubsetFallbackPolicy::AnyEndpoint => Fallback::Any,
            LbSubsetFallbackPolicy::DefaultSubset => Fallback::Default,
        },
        default_subset: proto.default_subset.as_ref().map_or_else(|| Vec::new().into(), metadata::fields),
        selectors: selectors.map(|(i, s)| selector(at_selectors.index(i), s)).collect::<Result<_, _>>()?,
        locality_weight_aware: proto.locality_weight_aware,
        panic_mode_any: proto.panic_mode_any,
        list_as_any: proto.list_as_any,
        allow_redundant_keys: false,
        stats: Arc::default(),
    })
}

fn selector(at: At<'_>, proto: &LbSubsetSelector) -> Result<SubsetSelector, XdsError> {
    let keys = sorted(&proto.keys);
    let at_fallback = at.field("fallback_keys_subset");
    let fallback = match enumeration(at.field("fallback_policy"), proto.fallback_policy)? {
        LbSubsetSelectorFallbackPolicy::NotDefined => SelectorFallback::NotDefined,
        LbSubsetSelectorFallbackPolicy::NoFallback => SelectorFallback::None,
        LbSubsetSelectorFallbackPolicy::AnyEndpoint => SelectorFallback::Any,
        LbSubsetSelectorFallbackPolicy::DefaultSubset => SelectorFallback::Default,
        LbSubsetSelectorFallbackPolicy::KeysSubset => {
            let fewer = sorted(&proto.fallback_keys_subset);
            // Envoy's rules: some, known, and not all.
            if fewer.is_empty() || fewer.len() >= keys.len() || fewer.iter().any(|key| !keys.contains(key)) {
                return Err(at_fallback.invalid("must be some of the selector's keys, and not all"));
            }
            SelectorFallback::Keys(fewer)
        }
    };
    Ok(SubsetSelector { keys, fallback })
}

fn sorted(keys: &[String]) -> Vec<Str> {
    let mut keys: Vec<Str> = keys.iter().map(|key| key.as_str().into()).collect();
    keys.sort();
    keys.dedup();
    keys
}
