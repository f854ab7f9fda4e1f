//! Access logs: which streams are logged, in what format, to where.

use crate::model::format::Format;

/// One configured access log.
#[derive(Debug)]
pub struct AccessLog {
    /// File path (`/dev/stdout` and `/dev/stderr` included).
    pub path: String,
    pub format: Format,
}
