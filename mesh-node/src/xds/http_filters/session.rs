//! `envoy.filters.http.stateful_session` with a cookie or a header.

use std::sync::Arc;

use mesh_xds::pb::envoy::extensions::filters::http::stateful_session::v3::stateful_session_per_route::Override as OverrideProto;
use mesh_xds::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession as Proto, StatefulSessionPerRoute,
};
use mesh_xds::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use mesh_xds::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;

use super::super::common::duration;
use super::super::error::{At, XdsError};
use super::super::headers;
use super::super::listener::extension;
use super::read;
use crate::model::http_filter::{Override, SessionState, StatefulSession};

/// `None`: a filter that leaves it to routes.
pub(super) fn convert(at: At<'_>, proto: &Proto) -> Result<Option<StatefulSession>, XdsError> {
    let Some(state) = &proto.session_state else { return Ok(None) };
    let at_state = at.field("session_state");
    let at_config = at_state.field("typed_config");
    let Some(config) = &state.typed_config else { return Err(at_config.invalid("is required")) };
    let state = if let Some(of) = read::<CookieBasedSessionState>(at_config, config)? {
        let at_cookie = at_config.field("cookie");
        let cookie = of.cookie.ok_or_else(|| at_cookie.invalid("is required"))?;
        let ttl = cookie.ttl.map(|ttl| duration(at_cookie.field("ttl"), ttl)).transpose()?;
        let attributes = cookie.attributes.iter().map(|a| match a.value.as_str() {
            "" => format!("; {}", a.name),
            value => format!("; {}={value}", a.name),
        });
        SessionState::Cookie {
            name: cookie.name.clone(),
            path: cookie.path.clone(),
            ttl: ttl.filter(|ttl| !ttl.is_zero()),
            attributes: attributes.collect(),
        }
    } else if let Some(of) = read::<HeaderBasedSessionState>(at_config, config)? {
        SessionState::Header(headers::name(at_config.field("name"), &of.name)?)
    } else {
        return Err(extension(at_config, config));
    };
    Ok(Some(StatefulSession { state: Some(state), strict: proto.strict }))
}

pub(super) fn of_route(at: At<'_>, proto: &StatefulSessionPerRoute) -> Result<Override, XdsError> {
    let none = || Arc::new(StatefulSession { state: None, strict: false });
    Ok(match &proto.r#override {
        Some(OverrideProto::Disabled(off)) => Override::Disabled(*off),
        Some(OverrideProto::StatefulSession(of)) => {
            let session = convert(at.field("stateful_session"), of)?;
            Override::StatefulSession(session.map_or_else(none, Arc::new))
        }
        None => Override::Nothing,
    })
}
