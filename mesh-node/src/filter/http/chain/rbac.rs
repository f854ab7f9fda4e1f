//! Role based access control of requests (`envoy.filters.http.rbac`).

use http::StatusCode;

use super::super::local_reply::LocalReply;
use super::super::request::Request;
use super::Decoding;
use crate::filter::rbac::Subject;
use crate::model::http_filter::{HttpFilter, Override};
use crate::model::rbac::{Action, HttpRbac, RbacStats};

/// Where the shadow rules' verdict is told, for access logs and Istio's dry run.
const NAMESPACE: &str = "envoy.filters.http.rbac";

pub(super) fn decode(
    decoding: &Decoding<'_>,
    filter: &HttpFilter,
    (own, stats): (&HttpRbac, &RbacStats),
    request: &Request,
) -> Option<LocalReply> {
    let rbac = match decoding.override_of(filter) {
        Some(Override::Rbac(None)) => return None,
        Some(Override::Rbac(Some(of_route))) => of_route,
        _ => own,
    };
    let stream = decoding.stream;
    let mut info = stream.info.borrow_mut();
    if let Some(shadow) = &rbac.shadow {
        let subject = Subject {
            head: Some(request.head()),
            connection: &stream.manager.connection,
            remote: info.remote.ip(),
            metadata: info.metadata.as_deref(),
            filter_state: info.filter_state.as_deref(),
        };
        let verdict = shadow.evaluate(&subject);
        let (counter, result) = match verdict.allowed {
            true => (&stats.shadow_allowed, "allowed"),
            false => (&stats.shadow_denied, "denied"),
        };
        counter.inc();
        let policy = verdict.policy.map(str::to_owned);
        let told = info.metadata_mut().entry(NAMESPACE.to_owned()).or_default();
        if let Some(policy) = policy {
            told.insert(format!("{}shadow_effective_policy_id", rbac.shadow_prefix), policy.into());
        }
        told.insert(format!("{}shadow_engine_result", rbac.shadow_prefix), result.into());
    }
    let rules = rbac.rules.as_ref()?;
    let subject = Subject {
        head: Some(request.head()),
        connection: &stream.manager.connection,
        remote: info.remote.ip(),
        metadata: info.metadata.as_deref(),
        filter_state: info.filter_state.as_deref(),
    };
    let verdict = rules.evaluate(&subject);
    if rules.action == Action::Log {
        let logged = verdict.policy.is_some();
        if logged { &stats.logged } else { &stats.not_logged }.inc();
        let told = info.metadata_mut().entry("envoy.common".to_owned()).or_default();
        told.insert("access_log_hint".to_owned(), logged.into());
        return None;
    }
    if verdict.allowed {
        stats.allowed.inc();
        return None;
    }
    stats.denied.inc();
    Some(LocalReply::new(StatusCode::FORBIDDEN, "RBAC: access denied", verdict.details()))
}
