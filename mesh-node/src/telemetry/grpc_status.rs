//! The status of a gRPC call as logs name it: from trailers, else from headers, else after the HTTP status
//! (Envoy: `Grpc::Common::getGrpcStatus`).

use std::borrow::Cow;

use http::HeaderMap;
use http::header::CONTENT_TYPE;

use crate::model::format::GrpcStatusForm;

/// The codes of gRPC, in the two spellings of Envoy's `%GRPC_STATUS%`.
const NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

/// The gRPC status for an HTTP status (Envoy: `Grpc::Utility::httpToGrpcStatus`).
pub fn of_http(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The status of a call; `None` where the request was no gRPC call, or has no answer.
pub(super) fn code(
    request: &HeaderMap,
    response: Option<&HeaderMap>,
    trailers: Option<&HeaderMap>,
    http_status: Option<u16>,
) -> Option<i64> {
    let kind = request.get(CONTENT_TYPE)?.as_bytes().strip_prefix(b"application/grpc")?;
    if !matches!(kind.first(), None | Some(b'+')) {
        return None;
    }
    let told = [trailers, response].into_iter().flatten().find_map(|headers| headers.get("grpc-status"));
    match told {
        // A status that is no number is one that nobody knows.
        Some(status) => {
            Some(status.to_str().ok().and_then(|text| text.parse::<u32>().ok()).map_or(-1, i64::from))
        }
        None => http_status.map(|status| i64::from(of_http(status))),
    }
}

/// A status in the form that a format asks for, where that is not a number.
pub(super) fn text(code: i64, form: GrpcStatusForm) -> Cow<'static, str> {
    let names = usize::try_from(code).ok().and_then(|code| NAMES.get(code));
    match (names, form) {
        (Some((camel, _)), GrpcStatusForm::CamelCase) => Cow::Borrowed(camel),
        (Some((_, snake)), GrpcStatusForm::SnakeCase) => Cow::Borrowed(snake),
        _ => Cow::Owned(code.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_status_of_trailers_counts_before_that_of_headers_and_of_http() {
        let call = headers(&[("content-type", "application/grpc+proto")]);
        let (in_trailers, in_headers) = (headers(&[("grpc-status", "5")]), headers(&[("grpc-status", "1")]));
        assert_eq!(code(&call, Some(&in_headers), Some(&in_trailers), Some(200)), Some(5));
        assert_eq!(code(&call, Some(&in_headers), None, Some(200)), Some(1));
        assert_eq!(code(&call, Some(&call), None, Some(503)), Some(14));
        assert_eq!(code(&call, None, None, None), None);
        assert_eq!(code(&headers(&[]), Some(&in_headers), None, Some(200)), None, "not a gRPC call");
    }

    #[test]
    fn statuses_have_the_names_that_envoy_gives_them() {
        assert_eq!(text(1, GrpcStatusForm::CamelCase), "Canceled");
        assert_eq!(text(1, GrpcStatusForm::SnakeCase), "CANCELLED");
        assert_eq!(text(99, GrpcStatusForm::CamelCase), "99");
    }
}
