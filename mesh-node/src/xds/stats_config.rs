//! `stats_config` of the bootstrap.

use std::sync::Arc;

use mesh_xds::pb::envoy::config::metrics::v3::StatsConfig;
use mesh_xds::pb::envoy::config::metrics::v3::stats_matcher::StatsMatcher;
use mesh_xds::pb::envoy::config::metrics::v3::tag_specifier::TagValue as ValueProto;
use mesh_xds::pb::envoy::r#type::matcher::v3::ListStringMatcher;
use regex::Regex;

use super::common::boolean;
use super::error::{At, XdsError};
use super::matcher;
use crate::model::matcher::StringMatcher;
use crate::telemetry::stats::{NamesShown, StatsShape, TagRule, TagValue};

pub(super) fn convert(proto: &StatsConfig) -> Result<StatsShape, XdsError> {
    let at = At::root("stats_config");
    let at_tags = at.field("stats_tags");
    let tags = proto.stats_tags.iter().enumerate().map(|(i, tag)| {
        let at = at_tags.index(i);
        let value = match &tag.tag_value {
            Some(ValueProto::FixedValue(value)) => TagValue::Fixed(value.clone()),
            Some(ValueProto::Regex(pattern)) if !pattern.is_empty() => {
                let at = at.field("regex");
                let regex = Regex::new(pattern).map_err(|error| at.invalid(error.to_string()))?;
                if regex.captures_len() < 2 {
                    return Err(at.invalid("needs a group: what leaves the name"));
                }
                TagValue::Of(regex)
            }
            _ => TagValue::Default,
        };
        // A default tag is known here by its label.
        let label = match value {
            TagValue::Default => tag.tag_name.replace('.', "_"),
            _ => tag.tag_name.clone(),
        };
        Ok(TagRule { label, value })
    });
    let at_matcher = at.field("stats_matcher");
    let matcher = match proto.stats_matcher.as_ref().and_then(|matcher| matcher.stats_matcher.as_ref()) {
        Some(StatsMatcher::RejectAll(true)) => NamesShown::None,
        Some(StatsMatcher::RejectAll(false)) | None => NamesShown::All,
        Some(StatsMatcher::InclusionList(list)) => {
            NamesShown::Only(patterns(at_matcher.field("inclusion_list"), list)?)
        }
        Some(StatsMatcher::ExclusionList(list)) => {
            NamesShown::Without(patterns(at_matcher.field("exclusion_list"), list)?)
        }
    };
    let at_buckets = at.field("histogram_bucket_settings");
    let buckets = proto.histogram_bucket_settings.iter().enumerate().map(|(i, setting)| {
        let at = at_buckets.index(i);
        let of = setting.r#match.as_ref().ok_or_else(|| at.field("match").invalid("is required"))?;
        let rising = setting.buckets.windows(2).all(|pair| pair[0] < pair[1]);
        if setting.buckets.is_empty() || !rising || setting.buckets[0] <= 0.0 {
            return Err(at.field("buckets").invalid("must be rising numbers above 0"));
        }
        Ok((matcher::string(at.field("match"), of)?, Arc::from(setting.buckets.as_slice())))
    });
    Ok(StatsShape {
        matcher,
        default_tags: boolean(proto.use_all_default_tags, true),
        tags: tags.collect::<Result<_, _>>()?,
        buckets: buckets.collect::<Result<_, _>>()?,
    })
}

fn patterns(at: At<'_>, list: &ListStringMatcher) -> Result<Vec<StringMatcher>, XdsError> {
    let at = at.field("patterns");
    list.patterns.iter().enumerate().map(|(i, proto)| matcher::string(at.index(i), proto)).collect()
}
