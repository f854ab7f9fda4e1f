//! `stats_config` of the bootstrap: which statistics there are, what labels they carry, how histograms are shown.
//!
//! Nothing of it is seen where statistics are counted: it counts when they are shown.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use regex::Regex;

use super::store::Tags;
use crate::model::matcher::StringMatcher;

/// `envoy.config.metrics.v3.StatsConfig`.
#[derive(Debug)]
pub struct StatsShape {
    pub matcher: NamesShown,
    /// `use_all_default_tags`
    pub default_tags: bool,
    pub tags: Vec<TagRule>,
    /// `histogram_bucket_settings`: of the first that matches.
    pub buckets: Vec<(StringMatcher, Arc<[f64]>)>,
}

/// `stats_matcher`
#[derive(Debug)]
pub enum NamesShown {
    All,
    None,
    /// `inclusion_list`
    Only(Vec<StringMatcher>),
    /// `exclusion_list`
    Without(Vec<StringMatcher>),
}

/// One of `stats_tags`.
#[derive(Debug)]
pub struct TagRule {
    pub label: String,
    pub value: TagValue,
}

/// Where the value of a tag comes from.
#[derive(Debug)]
pub enum TagValue {
    /// `fixed_value`
    Fixed(String),
    /// `regex`: its first group leaves the name; the second, or else the first, is the value.
    Of(Regex),
    /// The default tag of that name.
    Default,
}

impl TagRule {
    /// Envoy asks expressions that begin with a plain token only about names that do, and after the others.
    fn is_general(&self) -> bool {
        let TagValue::Of(regex) = &self.value else { return false };
        let Some(rest) = regex.as_str().strip_prefix('^') else { return true };
        let token = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        token == 0 || !(rest.len() == token || rest[token..].starts_with("\\."))
    }
}

impl StatsShape {
    pub(super) fn shows(&self, name: &str) -> bool {
        let any = |matchers: &[StringMatcher]| matchers.iter().any(|matcher| matcher.matches(name));
        match &self.matcher {
            NamesShown::All => true,
            NamesShown::None => false,
            NamesShown::Only(matchers) => any(matchers),
            NamesShown::Without(matchers) => !any(matchers),
        }
    }

    /// The bounds of a histogram's buckets; `None`: Envoy's defaults.
    pub(super) fn bounds(&self, name: &str) -> Option<Arc<[f64]>> {
        self.buckets.iter().find(|(matcher, _)| matcher.matches(name)).map(|(_, bounds)| bounds.clone())
    }

    /// The name and labels of a statistic, given those that it has by default.
    pub(super) fn tags(&self, full: &str, given: Tags) -> Tags {
        let wanted = |label: &str| {
            let named = |rule: &TagRule| matches!(rule.value, TagValue::Default) && rule.label == label;
            self.default_tags || self.tags.iter().any(named)
        };
        let (codes, places): (Vec<_>, Vec<_>) =
            given.labels.iter().cloned().partition(|(label, _)| is_response_code(label));
        let (mut by_default, mut taken, mut from) = (Vec::new(), Vec::new(), 0);
        for (label, value) in places.iter().chain(&codes) {
            let range = match &**label {
                "envoy_response_code_class" => {
                    full.rfind(&format!("{value}xx")).map(|at| at..at + value.len())
                }
                "envoy_response_code" => full.rfind(&format!("_{value}")).map(|at| at..at + 1 + value.len()),
                _ => full.get(from..).and_then(|rest| rest.find(&format!(".{value}"))).map(|at| {
                    let begin = from + at + 1;
                    let end = begin + value.len();
                    // With the dot behind it, or else before it.
                    if full[end..].starts_with('.') { begin..end + 1 } else { begin - 1..end }
                }),
            };
            let Some(range) = range else { continue };
            if !is_response_code(label) {
                // What follows may begin with the dot behind this one.
                from = range.end - 1;
            }
            if wanted(label) {
                taken.push(range.clone());
            }
            by_default.push(range);
        }
        let exact = without(full, &by_default) == given.name;
        let (mut general, mut others) = (Vec::new(), Vec::new());
        let mut name = given.name.clone();
        for rule in &self.tags {
            let TagValue::Of(regex) = &rule.value else { continue };
            let Some(found) = regex.captures(full) else { continue };
            let Some(removed) = found.get(1) else { continue };
            let value = found.get(2).unwrap_or(removed).as_str().to_owned();
            taken.push(removed.range());
            name = name.replacen(removed.as_str(), "", 1);
            let list = if rule.is_general() { &mut general } else { &mut others };
            list.push((Cow::Owned(rule.label.clone()), value));
        }
        let fixed = self.tags.iter().filter_map(|rule| match &rule.value {
            TagValue::Fixed(value) => Some((Cow::Owned(rule.label.clone()), value.clone())),
            _ => None,
        });
        // Where the default name is no part of the full one, what is taken out of it is sought in it.
        if exact {
            name = without(full, &taken);
        }
        let places = places.into_iter().filter(|(label, _)| wanted(label));
        let codes = codes.into_iter().filter(|(label, _)| wanted(label));
        let labels = codes.chain(fixed).chain(general).chain(places).chain(others).collect();
        Tags { name, labels }
    }
}

/// These stand before all others.
fn is_response_code(label: &str) -> bool {
    label.starts_with("envoy_response_code")
}

fn without(full: &str, ranges: &[Range<usize>]) -> String {
    let kept = full.char_indices().filter(|(at, _)| !ranges.iter().any(|range| range.contains(at)));
    kept.map(|(_, c)| c).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regex(label: &str, pattern: &str) -> TagRule {
        TagRule { label: label.to_owned(), value: TagValue::Of(Regex::new(pattern).unwrap()) }
    }

    fn shape(default_tags: bool, tags: Vec<TagRule>) -> StatsShape {
        StatsShape { matcher: NamesShown::All, default_tags, tags, buckets: Vec::new() }
    }

    fn shown(shape: &StatsShape, full: &str, name: &str, labels: &[(&'static str, &str)]) -> String {
        let labels =
            labels.iter().map(|(label, value)| (Cow::Borrowed(*label), (*value).to_owned())).collect();
        let tags = shape.tags(full, Tags { name: name.to_owned(), labels });
        let labels: Vec<_> = tags.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
        format!("{} {}", tags.name, labels.join(","))
    }

    #[test]
    fn labels_stand_in_envoys_order_and_what_they_hold_leaves_the_name() {
        let own = || {
            vec![
                TagRule { label: "fixed".to_owned(), value: TagValue::Fixed("v1".to_owned()) },
                regex("cluster_name", "^cluster\\.((.+?)\\.)"),
                regex("dir", "^http(\\.(.*?)\\.)"),
            ]
        };
        let default = shape(true, own());
        let of_cluster = ("cluster.a.lb_x", "cluster.lb_x", [("envoy_cluster_name", "a")]);
        assert_eq!(
            shown(&default, of_cluster.0, of_cluster.1, &of_cluster.2),
            "cluster.lb_x fixed=v1,envoy_cluster_name=a,cluster_name=a"
        );
        assert_eq!(
            shown(&default, "http.in.rq_total", "http.rq_total", &[("envoy_http_conn_manager_prefix", "in")]),
            "httprq_total fixed=v1,dir=in,envoy_http_conn_manager_prefix=in"
        );
        assert_eq!(
            shown(
                &default,
                "http.in.rq_5xx",
                "http.rq_xx",
                &[("envoy_response_code_class", "5"), ("envoy_http_conn_manager_prefix", "in")]
            ),
            "httprq_xx envoy_response_code_class=5,fixed=v1,dir=in,envoy_http_conn_manager_prefix=in"
        );
        let only_own = shape(false, own());
        assert_eq!(
            shown(&only_own, of_cluster.0, of_cluster.1, &of_cluster.2),
            "cluster.lb_x fixed=v1,cluster_name=a"
        );
        assert_eq!(
            shown(
                &shape(false, Vec::new()),
                "http.in.rq_5xx",
                "http.rq_xx",
                &[("envoy_response_code_class", "5"), ("envoy_http_conn_manager_prefix", "in")]
            ),
            "http.in.rq_5xx "
        );
        let named = TagRule { label: "envoy_cluster_name".to_owned(), value: TagValue::Default };
        assert_eq!(
            shown(&shape(false, vec![named]), of_cluster.0, of_cluster.1, &of_cluster.2),
            "cluster.lb_x envoy_cluster_name=a"
        );
        assert_eq!(
            shown(&shape(false, Vec::new()), of_cluster.0, of_cluster.1, &of_cluster.2),
            "cluster.a.lb_x "
        );
    }
}
