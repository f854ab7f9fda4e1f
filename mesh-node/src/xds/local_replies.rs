//! `LocalReplyConfig`: what becomes of the answers that the proxy gives itself.

use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    LocalReplyConfig, ResponseMapper,
};

use super::error::{At, XdsError};
use super::{access_log, common, format, headers};
use crate::model::network::{BodyFormat, LocalReplies, ReplyMapper};

pub(super) fn convert(at: At<'_>, proto: &LocalReplyConfig) -> Result<LocalReplies, XdsError> {
    let at_mappers = at.field("mappers");
    let mappers = proto.mappers.iter().enumerate().map(|(i, proto)| mapper(at_mappers.index(i), proto));
    Ok(LocalReplies {
        mappers: mappers.collect::<Result<_, _>>()?,
        body_format: body_format(at.field("body_format"), proto.body_format.as_ref())?,
    })
}

fn mapper(at: At<'_>, proto: &ResponseMapper) -> Result<ReplyMapper, XdsError> {
    let at_filter = at.field("filter");
    let filter = proto.filter.as_ref().ok_or_else(|| at_filter.invalid("is required"))?;
    let at_status = at.field("status_code");
    let status = match proto.status_code.map(|status| status.value) {
        None => None,
        Some(status) => match u16::try_from(status) {
            Ok(status @ 200..600) => Some(status),
            _ => return Err(at_status.invalid(format!("must be from 200 to 599, not {status}"))),
        },
    };
    Ok(ReplyMapper {
        filter: access_log::filter(at_filter, filter)?,
        status,
        body: proto.body.as_ref().map(|body| common::text(at.field("body"), body)).transpose()?,
        body_format: body_format(at.field("body_format_override"), proto.body_format_override.as_ref())?,
        headers: headers::adds(at.field("headers_to_add"), &proto.headers_to_add)?,
    })
}

fn body_format(
    at: At<'_>,
    proto: Option<&mesh_xds::pb::envoy::config::core::v3::SubstitutionFormatString>,
) -> Result<Option<BodyFormat>, XdsError> {
    proto.map(|format| format::body(at, format)).transpose()
}
