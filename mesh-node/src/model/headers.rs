//! Header changes that configuration asks for (`request_headers_to_add` and its kin).

use std::sync::Arc;

use super::format::Format;

/// The header changes of one configuration level, requests and responses.
#[derive(Debug, Default, Clone)]
pub struct HeaderMutations {
    pub request_add: Vec<HeaderAdd>,
    pub request_remove: Vec<http::HeaderName>,
    pub response_add: Vec<HeaderAdd>,
    pub response_remove: Vec<http::HeaderName>,
}

impl HeaderMutations {
    /// True when the level changes nothing.
    pub fn is_empty(&self) -> bool {
        self.request_add.is_empty()
            && self.request_remove.is_empty()
            && self.response_add.is_empty()
            && self.response_remove.is_empty()
    }
}

/// `core.v3.HeaderValueOption`.
#[derive(Debug, Clone)]
pub struct HeaderAdd {
    pub name: HeaderTarget,
    pub value: Arc<Format>,
    pub action: AppendAction,
    pub keep_empty_value: bool,
}

/// What a header change writes to. `Host` (or `:authority`) and `:path` are set on the request line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderTarget {
    Name(http::HeaderName),
    Authority,
    Path,
    Method,
    Scheme,
    Status,
}

/// `HeaderValueOption.HeaderAppendAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AppendAction {
    #[default]
    AppendIfExistsOrAdd,
    AddIfAbsent,
    OverwriteIfExistsOrAdd,
    OverwriteIfExists,
}
