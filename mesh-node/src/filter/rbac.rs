//! Evaluates role based access control, for requests and for connections (Envoy: `RoleBasedAccessControlEngineImpl`).
//!
//! Pure: what is decided is told; statistics, metadata and answers are the filters' own.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::DynamicMetadata;
use crate::model::rbac::{Action, Matcher, Policy, Rules};
use crate::router::{RequestHead, header_matches};
use crate::telemetry::stream_info::{ConnectionInfo, TlsInfo};

/// What rules may look at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// `None`: a connection; header and path matchers find nothing.
    pub head: Option<RequestHead<'a>>,
    pub connection: &'a ConnectionInfo,
    /// The client, as headers tell it.
    pub remote: IpAddr,
    pub metadata: Option<&'a DynamicMetadata>,
    pub filter_state: Option<&'a BTreeMap<String, String>>,
}

/// What a set of rules says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict<'r> {
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<&'r str>,
}

impl Rules {
    /// Evaluates the rules. The first policy that matches, by name, counts.
    pub fn evaluate(&self, subject: &Subject<'_>) -> Verdict<'_> {
        let matching = self.policies.iter().find(|(_, policy)| policy.matches(subject));
        let policy = matching.map(|(name, _)| &**name);
        let allowed = match self.action {
            Action::Allow => policy.is_some(),
            Action::Deny => policy.is_none(),
            Action::Log => true,
        };
        Verdict { allowed, policy }
    }
}

impl Verdict<'_> {
    /// Response code details: Envoy writes what would break a log line as underscores.
    pub fn details(&self) -> Cow<'static, str> {
        let policy = self.policy.unwrap_or("none");
        let name: String = policy.chars().map(|c| if c.is_ascii_whitespace() { '_' } else { c }).collect();
        format!("rbac_access_denied_matched_policy[{name}]").into()
    }
}

impl Policy {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        self.permissions.iter().any(|m| m.matches(subject))
            && self.principals.iter().any(|m| m.matches(subject))
    }
}

impl Matcher {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        let connection = subject.connection;
        let path = || subject.head.map(|head| head.path.split(['?', '#']).next().unwrap_or_default());
        match self {
            Self::Any => true,
            Self::And(of) => of.iter().all(|m| m.matches(subject)),
            Self::Or(of) => of.iter().any(|m| m.matches(subject)),
            Self::Not(of) => !of.matches(subject),
            Self::Header(of) => subject.head.is_some_and(|head| header_matches(of, &head)),
            Self::UrlPath(of) => path().is_some_and(|path| of.matches(path)),
            Self::UriTemplate(of) => path().is_some_and(|path| of.is_match(path)),
            Self::DestinationIp(of) => of.contains(connection.local.ip()),
            Self::DestinationPort(port) => connection.local.port() == *port,
            Self::DestinationPortRange(start, end) => {
                let port = connection.local.port();
                port >= *start && u32::from(port) < *end
            }
            Self::RequestedServerName(of) => {
                of.matches(connection.requested_server_name.as_deref().unwrap_or_default())
            }
            Self::Metadata(of) => of.matches(subject.metadata),
            Self::Authenticated(None) => {
                connection.tls.as_deref().is_some_and(|tls| !tls.peer_chain.is_empty())
            }
            Self::Authenticated(Some(of)) => {
                connection.tls.as_deref().is_some_and(|tls| is_named(tls, |name| of.matches(name)))
            }
            Self::DirectRemoteIp(of) => of.contains(connection.peer.ip()),
            Self::RemoteIp(of) => of.contains(subject.remote),
            Self::FilterState { key, value } => {
                subject.filter_state.and_then(|state| state.get(key)).is_some_and(|text| value.matches(text))
            }
        }
    }
}

/// Is one of the peer's names such? URIs of its certificate, then DNS names, then the subject.
fn is_named(tls: &TlsInfo, such: impl Fn(&str) -> bool) -> bool {
    tls.peer_uri_sans.iter().chain(&tls.peer_dns_sans).any(|name| such(name))
        || such(tls.peer_subject.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{HeaderMap, Method};

    use super::*;
    use crate::model::listener::{Cidr, Direction};
    use crate::model::matcher::{HeaderKey, HeaderMatchKind, HeaderMatcher, StringMatcher, StringPattern};
    use crate::model::rbac::{MetadataMatcher, ValueMatcher};

    fn exact(text: &str) -> StringMatcher {
        StringMatcher { pattern: StringPattern::Exact(text.into()), ignore_case: false }
    }

    fn connection() -> ConnectionInfo {
        ConnectionInfo {
            id: 1,
            peer: "10.1.2.3:4000".parse().unwrap(),
            remote: "10.1.2.3:4000".parse().unwrap(),
            local: "10.0.0.1:9080".parse().unwrap(),
            original_dst: None,
            direction: Direction::Inbound,
            workload: None,
            tls: Some(Box::new(TlsInfo {
                peer_uri_sans: vec!["spiffe://td/ns/a/sa/b".into()],
                peer_subject: Some("CN=b".into()),
                peer_chain: vec![Vec::new()],
                ..TlsInfo::default()
            })),
            requested_server_name: Some("web.example".into()),
            filter_chain: "".into(),
            drain: Arc::default(),
            listener_log: Vec::new(),
        }
    }

    fn holds(matcher: &Matcher) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", "jane".parse().unwrap());
        let connection = connection();
        let head = RequestHead {
            method: &Method::GET,
            scheme: "http",
            authority: "web",
            path: "/api/v1?secret=/admin",
            headers: &headers,
        };
        let metadata = DynamicMetadata::from([(
            "istio_authn".to_owned(),
            serde_json::json!({"request.auth.claims": {"groups": ["dev", "ops"], "n": 3}})
                .as_object()
                .unwrap()
                .clone(),
        )]);
        let subject = Subject {
            head: Some(head),
            connection: &connection,
            remote: "192.0.2.7".parse().unwrap(),
            metadata: Some(&metadata),
            filter_state: None,
        };
        matcher.matches(&subject)
    }

    #[test]
    fn each_permission_and_principal_looks_at_what_its_name_says() {
        let cidr = |text: &str, prefix_len| Cidr { address: text.parse().unwrap(), prefix_len };
        let header = |value: &str| {
            Matcher::Header(Box::new(HeaderMatcher {
                name: HeaderKey::Name("x-user".parse().unwrap()),
                kind: HeaderMatchKind::Value(exact(value)),
                invert: false,
                treat_missing_as_empty: false,
            }))
        };
        let claim = |path: &[&str], value| {
            Matcher::Metadata(Box::new(MetadataMatcher {
                filter: "istio_authn".into(),
                path: path.iter().map(|step| (*step).to_owned()).collect(),
                value,
                invert: false,
            }))
        };
        let table = [
            (Matcher::Any, true),
            (header("jane"), true),
            (header("joe"), false),
            (Matcher::UrlPath(exact("/api/v1")), true),
            (Matcher::UrlPath(exact("/admin")), false),
            (Matcher::UriTemplate(regex::Regex::new("^/api/[^/]+$").unwrap()), true),
            (Matcher::DestinationIp(cidr("10.0.0.0", 24)), true),
            (Matcher::DestinationPort(9080), true),
            (Matcher::DestinationPortRange(9000, 9080), false),
            (Matcher::RequestedServerName(exact("web.example")), true),
            (Matcher::Authenticated(None), true),
            (Matcher::Authenticated(Some(exact("spiffe://td/ns/a/sa/b"))), true),
            (Matcher::Authenticated(Some(exact("CN=b"))), true),
            (Matcher::Authenticated(Some(exact("spiffe://td/ns/a/sa/c"))), false),
            (Matcher::DirectRemoteIp(cidr("10.1.0.0", 16)), true),
            (Matcher::DirectRemoteIp(cidr("192.0.2.0", 24)), false),
            (Matcher::RemoteIp(cidr("192.0.2.0", 24)), true),
            (
                claim(
                    &["request.auth.claims", "groups"],
                    ValueMatcher::OneOf(Box::new(ValueMatcher::String(exact("ops")))),
                ),
                true,
            ),
            (
                claim(
                    &["request.auth.claims", "n"],
                    ValueMatcher::Number { start: 3.0, end: 3.0, exact: true },
                ),
                true,
            ),
            (claim(&["request.auth.claims", "none"], ValueMatcher::Present(true)), false),
            (Matcher::Not(Box::new(header("joe"))), true),
            (Matcher::And(vec![Matcher::Any, header("joe")]), false),
            (Matcher::Or(vec![header("joe"), Matcher::Any]), true),
        ];
        for (matcher, expected) in table {
            assert_eq!(holds(&matcher), expected, "{matcher:?}");
        }
    }

    #[test]
    fn a_denied_request_names_the_policy_that_denied_it() {
        let policy = || Policy { permissions: vec![Matcher::Any], principals: vec![Matcher::Any] };
        let connection = connection();
        let remote = connection.remote.ip();
        let subject =
            Subject { head: None, connection: &connection, remote, metadata: None, filter_state: None };
        let rules = |action, policies| Rules { action, policies };
        let named = || vec![(Arc::from("ns[default]-policy[no way]-rule[0]"), policy())];
        let verdict_of = |rules: &Rules| {
            let verdict = rules.evaluate(&subject);
            (verdict.allowed, verdict.details().into_owned())
        };
        let denied = verdict_of(&rules(Action::Deny, named()));
        assert_eq!(
            denied,
            (false, "rbac_access_denied_matched_policy[ns[default]-policy[no_way]-rule[0]]".to_owned())
        );
        let nothing = verdict_of(&rules(Action::Allow, Vec::new()));
        assert_eq!(nothing, (false, "rbac_access_denied_matched_policy[none]".to_owned()));
        assert!(verdict_of(&rules(Action::Allow, named())).0);
        assert!(verdict_of(&rules(Action::Log, Vec::new())).0);
    }
}
