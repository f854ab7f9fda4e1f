//! What the connection manager does to the headers of every response (Envoy: `ActiveStream::encodeHeaders` and
//! `ConnectionManagerUtility::mutateResponseHeaders`).

use std::time::Instant;

use http::header::{CONNECTION, DATE, SERVER, TRANSFER_ENCODING, UPGRADE, VIA};
use http::{HeaderName, HeaderValue, Response, StatusCode, Version};

use super::ConnectionManager;
use super::header_list;
use super::request_headers::X_REQUEST_ID;
use super::stream::Stream;
use crate::http::body::Body;
use crate::model::network::ServerHeader;
use crate::turn;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// `date`, `server` and `via`.
pub fn base(manager: &ConnectionManager, response: &mut Response<Body>, now: Instant) {
    let hcm = &manager.hcm;
    let headers = response.headers_mut();
    if !headers.contains_key(DATE) {
        headers.insert(DATE, manager.ctx.date.now(now));
    }
    let set_server = match hcm.server_header {
        ServerHeader::Overwrite => true,
        ServerHeader::AppendIfAbsent => !headers.contains_key(SERVER),
        ServerHeader::PassThrough => false,
    };
    if set_server {
        headers.insert(SERVER, manager.server_name.clone());
    }
    if let Some(via) = &hcm.via {
        header_list::append(headers, VIA, via, ", ");
    }
}

/// Makes a response ready to be sent to the client of this stream.
pub fn mutate(
    manager: &ConnectionManager,
    stream: &Stream,
    response: &mut Response<Body>,
    from_upstream: bool,
) {
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    if !switches {
        headers.remove(CONNECTION);
        headers.remove(UPGRADE);
    }
    for name in [TRANSFER_ENCODING, KEEP_ALIVE, PROXY_CONNECTION] {
        headers.remove(name);
    }
    base(manager, response, turn::now());
    if manager.hcm.always_set_request_id_in_response
        && let Some(id) = stream.request_id()
    {
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    // A tunnel ends with its bytes.
    let tunnel = stream.upgrade && (switches || (response.status().is_success() && stream.connect));
    if tunnel {
        return;
    }
    let unread = stream.request_complete().is_none();
    let bad = !from_upstream && response.status() == StatusCode::BAD_REQUEST;
    // An HTTP/1 client that sent garbage, or is still sending, cannot be trusted to frame its next request.
    // HTTP/2 has GOAWAY in place of the header; its codec knows.
    if manager.is_closing() || (stream.version < Version::HTTP_2 && (unread || bad)) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}
