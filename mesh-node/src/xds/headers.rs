//! Header changes (`request_headers_to_add` and its kin).

use std::sync::Arc;

use http::HeaderName;
use mesh_xds::pb::envoy::config::core::v3::HeaderValueOption;
use mesh_xds::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;

use super::common::enumeration;
use super::error::{At, XdsError};
use crate::model::headers::{AppendAction, HeaderAdd, HeaderMutations, HeaderTarget};

/// The four lists of one configuration level.
pub(super) struct Lists<'a> {
    pub(super) request_add: &'a [HeaderValueOption],
    pub(super) request_remove: &'a [String],
    pub(super) response_add: &'a [HeaderValueOption],
    pub(super) response_remove: &'a [String],
}

/// The lists of a message that has them.
macro_rules! lists {
    ($message:expr) => {
        $crate::xds::headers::Lists {
            request_add: &$message.request_headers_to_add,
            request_remove: &$message.request_headers_to_remove,
            response_add: &$message.response_headers_to_add,
            response_remove: &$message.response_headers_to_remove,
        }
    };
}
pub(super) use lists;

/// The changes of one configuration level.
pub(super) fn mutations(at: At<'_>, lists: Lists<'_>) -> Result<HeaderMutations, XdsError> {
    Ok(HeaderMutations {
        request_add: adds(at.field("request_headers_to_add"), lists.request_add)?,
        request_remove: removes(at.field("request_headers_to_remove"), lists.request_remove)?,
        response_add: adds(at.field("response_headers_to_add"), lists.response_add)?,
        response_remove: removes(at.field("response_headers_to_remove"), lists.response_remove)?,
    })
}

pub(super) fn adds(at: At<'_>, options: &[HeaderValueOption]) -> Result<Vec<HeaderAdd>, XdsError> {
    options.iter().enumerate().map(|(i, option)| add(at.index(i), option)).collect()
}

pub(super) fn add(at: At<'_>, option: &HeaderValueOption) -> Result<HeaderAdd, XdsError> {
    let at_header = at.field("header");
    let header = option.header.as_ref().ok_or_else(|| at_header.invalid("is required"))?;
    let at_key = at_header.field("key");
    let at_action = at.field("append_action");
    if option.append.is_some() && option.append_action != 0 {
        return Err(at_action.invalid("cannot be given beside append; keep one"));
    }
    let action = match enumeration(at_action, option.append_action)? {
        // The deprecated `append: false` means the same as overwriting.
        HeaderAppendAction::AppendIfExistsOrAdd if option.append.is_some_and(|append| !append.value) => {
            AppendAction::OverwriteIfExistsOrAdd
        }
        HeaderAppendAction::AppendIfExistsOrAdd => AppendAction::AppendIfExistsOrAdd,
        HeaderAppendAction::AddIfAbsent => AppendAction::AddIfAbsent,
        HeaderAppendAction::OverwriteIfExistsOrAdd => AppendAction::OverwriteIfExistsOrAdd,
        HeaderAppendAction::OverwriteIfExists => AppendAction::OverwriteIfExists,
    };
    if is_routing(&header.key) {
        let message = format!("{:?} cannot be changed; use a rewrite of the route", header.key);
        return Err(at_key.invalid(message));
    }
    let name = HeaderTarget::Name(name(at_key, &header.key)?);
    let value =
        super::format::parse(&header.value).map_err(|message| at_header.field("value").invalid(message))?;
    Ok(HeaderAdd { name, value: Arc::new(value), action, keep_empty_value: option.keep_empty_value })
}

fn removes(at: At<'_>, names: &[String]) -> Result<Vec<HeaderName>, XdsError> {
    let one = |(i, text): (usize, &String)| {
        if is_routing(text) {
            return Err(at.index(i).invalid(format!("{text:?} cannot be removed")));
        }
        name(at.index(i), text)
    };
    names.iter().enumerate().map(one).collect()
}

/// Envoy: ":-prefixed or host headers may not be modified" (or removed): routing has already looked at them.
fn is_routing(name: &str) -> bool {
    name.starts_with(':') || name.eq_ignore_ascii_case("host")
}

/// A header name, lower case.
pub(super) fn name(at: At<'_>, text: &str) -> Result<HeaderName, XdsError> {
    HeaderName::try_from(text).map_err(|_| at.invalid(format!("{text:?} is not a header name")))
}
