//! Filters that write dynamic metadata and filter state.

use mesh_xds::pb::envoy::extensions::filters::common::set_filter_state::v3::FilterStateValue;
use mesh_xds::pb::envoy::extensions::filters::common::set_filter_state::v3::filter_state_value::{
    Key, Value,
};
use mesh_xds::pb::envoy::extensions::filters::http::header_to_metadata::v3::Config as HeaderProto;
use mesh_xds::pb::envoy::extensions::filters::http::header_to_metadata::v3::config::{
    KeyValuePair, Rule, ValueEncode, ValueType,
};
use mesh_xds::pb::envoy::extensions::filters::http::set_metadata::v3::Config as SetProto;
use mesh_xds::pb::google::protobuf::Struct;

use super::super::common::enumeration;
use super::super::error::{At, XdsError};
use super::super::{format, headers, matcher};
use crate::model::http_filter::{
    HeaderRule, HeaderSource, HeaderToMetadata, MetadataKind, MetadataTarget, SetFilterState, SetMetadata,
};

/// Envoy's namespace of what headers say.
const HEADER_NAMESPACE: &str = "envoy.filters.http.header_to_metadata";

pub(super) fn from_headers(at: At<'_>, proto: &HeaderProto) -> Result<HeaderToMetadata, XdsError> {
    let rules = |at: At<'_>, protos: &[Rule]| -> Result<Vec<HeaderRule>, XdsError> {
        protos.iter().enumerate().map(|(i, proto)| rule(at.index(i), proto)).collect()
    };
    Ok(HeaderToMetadata {
        request: rules(at.field("request_rules"), &proto.request_rules)?,
        response: rules(at.field("response_rules"), &proto.response_rules)?,
    })
}

fn rule(at: At<'_>, proto: &Rule) -> Result<HeaderRule, XdsError> {
    let from = match (proto.header.as_str(), proto.cookie.as_str()) {
        ("", "") => return Err(at.invalid("needs one of header, cookie")),
        (header, "") => HeaderSource::Header(headers::name(at.field("header"), header)?),
        (_, cookie) => HeaderSource::Cookie(cookie.to_owned()),
    };
    let target = |name: &str, proto: Option<&KeyValuePair>| -> Result<_, XdsError> {
        proto.map(|proto| target(at.field(name), proto)).transpose()
    };
    Ok(HeaderRule {
        from,
        present: target("on_header_present", proto.on_header_present.as_ref())?,
        missing: target("on_header_missing", proto.on_header_missing.as_ref())?,
        remove: proto.remove,
    })
}

fn target(at: At<'_>, proto: &KeyValuePair) -> Result<MetadataTarget, XdsError> {
    let rewrite = proto.regex_value_rewrite.as_ref();
    let namespace = &proto.metadata_namespace;
    Ok(MetadataTarget {
        namespace: if namespace.is_empty() { HEADER_NAMESPACE.to_owned() } else { namespace.clone() },
        key: proto.key.clone(),
        value: proto.value.clone(),
        rewrite: rewrite.map(|of| matcher::rewrite(at.field("regex_value_rewrite"), of)).transpose()?,
        kind: match enumeration(at.field("type"), proto.r#type)? {
            ValueType::String => MetadataKind::String,
            ValueType::Number => MetadataKind::Number,
            ValueType::ProtobufValue => MetadataKind::Struct,
        },
        base64: matches!(enumeration(at.field("encode"), proto.encode)?, ValueEncode::Base64),
    })
}

pub(super) fn set(proto: &SetProto) -> Vec<SetMetadata> {
    let map = |value: &Struct| match mesh_xds::to_json(value) {
        Some(serde_json::Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    let deprecated = proto.value.as_ref().map(|value| SetMetadata {
        namespace: proto.metadata_namespace.clone(),
        value: map(value),
        allow_overwrite: true,
    });
    let entries = proto.metadata.iter().map(|of| SetMetadata {
        namespace: of.metadata_namespace.clone(),
        value: of.value.as_ref().map(map).unwrap_or_default(),
        allow_overwrite: of.allow_overwrite,
    });
    deprecated.into_iter().chain(entries).collect()
}

pub(super) fn filter_state(at: At<'_>, protos: &[FilterStateValue]) -> Result<Vec<SetFilterState>, XdsError> {
    let one = |(i, proto): (usize, &FilterStateValue)| {
        let at = at.index(i);
        let Some(Key::ObjectKey(key)) = &proto.key else {
            return Err(at.field("object_key").invalid("is required"));
        };
        let Some(Value::FormatString(value)) = &proto.value else {
            return Err(at.field("format_string").invalid("is required"));
        };
        Ok(SetFilterState {
            key: key.clone(),
            value: format::text(at.field("format_string"), value)?,
            read_only: proto.read_only,
            skip_if_empty: proto.skip_if_empty,
        })
    };
    protos.iter().enumerate().map(one).collect()
}
