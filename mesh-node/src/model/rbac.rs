//! Role based access control (`envoy.config.rbac.v3`) as configured: policies of permissions and principals.
//! The same for HTTP and network filters; `filter/rbac.rs` evaluates it.

use std::sync::Arc;

use super::listener::Cidr;
use super::matcher::{HeaderMatcher, StringMatcher};
use crate::telemetry::stats::Counter;

/// `RBAC`: what one set of rules says.
#[derive(Debug)]
pub struct Rules {
    pub action: Action,
    /// By name, sorted, as Envoy evaluates them.
    pub policies: Vec<(Arc<str>, Policy)>,
}

/// `RBAC.Action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
    /// Decides nothing; tells access logs.
    Log,
}

/// A policy matches when one permission and one principal match.
#[derive(Debug)]
pub struct Policy {
    pub permissions: Vec<Matcher>,
    pub principals: Vec<Matcher>,
}

/// A permission or a principal. Both kinds are one tree: what they look at differs, how they nest does not.
#[derive(Debug, Clone)]
pub enum Matcher {
    Any,
    And(Vec<Matcher>),
    Or(Vec<Matcher>),
    Not(Box<Matcher>),
    Header(Box<HeaderMatcher>),
    /// The path without its query.
    UrlPath(StringMatcher),
    /// A path template (`envoy.path.match.uri_template`), compiled to an expression.
    UriTemplate(regex::Regex),
    DestinationIp(Cidr),
    DestinationPort(u16),
    /// Half open.
    DestinationPortRange(u16, u32),
    RequestedServerName(StringMatcher),
    Metadata(Box<MetadataMatcher>),
    /// An authenticated peer, whose principal name matches, if a name is asked for.
    Authenticated(Option<StringMatcher>),
    /// The peer's address, as the connection has it.
    DirectRemoteIp(Cidr),
    /// The client's address, as headers or the PROXY protocol tell it.
    RemoteIp(Cidr),
    FilterState {
        key: String,
        value: StringMatcher,
    },
}

/// `type.matcher.v3.MetadataMatcher` on dynamic metadata.
#[derive(Debug, Clone)]
pub struct MetadataMatcher {
    pub filter: String,
    pub path: Vec<String>,
    pub value: ValueMatcher,
    pub invert: bool,
}

/// `type.matcher.v3.ValueMatcher`.
#[derive(Debug, Clone)]
pub enum ValueMatcher {
    Null,
    Present(bool),
    Bool(bool),
    Number {
        start: f64,
        end: f64,
        exact: bool,
    },
    String(StringMatcher),
    /// A list of which one element matches.
    OneOf(Box<ValueMatcher>),
    Or(Vec<ValueMatcher>),
}

impl MetadataMatcher {
    /// Does the metadata of a stream match? `metadata` is by filter name.
    pub fn matches(&self, metadata: Option<&super::DynamicMetadata>) -> bool {
        self.value.matches(self.find(metadata)) != self.invert
    }

    /// Is there a value where it looks?
    pub fn finds(&self, metadata: Option<&super::DynamicMetadata>) -> bool {
        self.find(metadata).is_some()
    }

    fn find<'a>(&self, metadata: Option<&'a super::DynamicMetadata>) -> Option<Json<'a>> {
        let mut value = metadata.and_then(|m| m.get(self.filter.as_str())).map(Json::Object);
        for step in &self.path {
            value = value.and_then(|value| value.get(step));
        }
        value
    }
}

/// A value, or the map at the root.
#[derive(Clone, Copy)]
enum Json<'a> {
    Object(&'a serde_json::Map<String, serde_json::Value>),
    Value(&'a serde_json::Value),
}

impl<'a> Json<'a> {
    fn get(self, key: &str) -> Option<Self> {
        match self {
            Self::Object(map) => map.get(key).map(Self::Value),
            Self::Value(value) => value.get(key).map(Self::Value),
        }
    }
}

impl ValueMatcher {
    fn matches(&self, value: Option<Json<'_>>) -> bool {
        let plain = match value {
            Some(Json::Value(value)) => Some(value),
            Some(Json::Object(_)) | None => None,
        };
        match self {
            Self::Present(present) => value.is_some() == *present,
            Self::Or(of) => of.iter().any(|m| m.matches(value)),
            Self::Null => plain.is_some_and(serde_json::Value::is_null),
            Self::Bool(wanted) => plain.and_then(serde_json::Value::as_bool) == Some(*wanted),
            Self::Number { start, end, exact } => {
                plain.and_then(serde_json::Value::as_f64).is_some_and(|number| {
                    if *exact { number == *start } else { (*start..*end).contains(&number) }
                })
            }
            Self::String(matcher) => {
                plain.and_then(serde_json::Value::as_str).is_some_and(|text| matcher.matches(text))
            }
            Self::OneOf(matcher) => plain
                .and_then(serde_json::Value::as_array)
                .is_some_and(|items| items.iter().any(|item| matcher.matches(Some(Json::Value(item))))),
        }
    }
}

/// `envoy.extensions.filters.{http,network}.rbac.v3.RBAC`.
#[derive(Debug)]
pub struct HttpRbac {
    /// Without rules everything passes.
    pub rules: Option<Rules>,
    pub shadow: Option<Rules>,
    /// Before the keys of the shadow rules' metadata (`shadow_rules_stat_prefix`).
    pub shadow_prefix: String,
}

/// `http.PREFIX.rbac.*`, `PREFIX.rbac.*`
#[derive(Debug, Clone)]
pub struct RbacStats {
    pub allowed: Arc<Counter>,
    pub denied: Arc<Counter>,
    pub shadow_allowed: Arc<Counter>,
    pub shadow_denied: Arc<Counter>,
    pub logged: Arc<Counter>,
    pub not_logged: Arc<Counter>,
}

impl RbacStats {
    /// Handles by `counter`, which adds what comes before the name.
    pub fn new(rules: &str, shadow: &str, counter: impl Fn(&str) -> Arc<Counter>) -> Self {
        Self {
            allowed: counter(&format!("{rules}allowed")),
            denied: counter(&format!("{rules}denied")),
            shadow_allowed: counter(&format!("{shadow}shadow_allowed")),
            shadow_denied: counter(&format!("{shadow}shadow_denied")),
            logged: counter(&format!("{rules}logged")),
            not_logged: counter(&format!("{rules}not_logged")),
        }
    }
}
