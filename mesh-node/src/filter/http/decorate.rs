//! What a route calls its requests (`decorator.operation`), told from proxy to proxy where a connection manager has
//! `tracing`: by the client's half in the request, by the server's in the response. Nothing is traced here; but the
//! header is one that applications see, and that the other half takes away (Envoy: `ActiveStream::traceRequest`).

use http::{HeaderMap, HeaderName};

use super::ConnectionManager;
use super::stream::Stream;
use crate::model::listener::Direction;
use crate::model::route::Route;

const OPERATION: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");

/// Before the filters see the request.
pub fn request(manager: &ConnectionManager, stream: &Stream, headers: &mut HeaderMap, route: Option<&Route>) {
    if !manager.hcm.tracing {
        return;
    }
    let operation = route.and_then(|route| route.decorator.clone());
    if manager.connection.direction == Direction::Outbound {
        if let Some(operation) = operation {
            headers.insert(OPERATION, operation);
        }
    } else {
        // What the client's half calls the request counts for both.
        let told = headers.remove(OPERATION).is_some_and(|told| !told.is_empty());
        stream.decorate(operation.filter(|_| !told));
    }
}

/// After everything else is done to the response.
pub fn response(manager: &ConnectionManager, stream: &Stream, headers: &mut HeaderMap) {
    if !manager.hcm.tracing {
        return;
    }
    if manager.connection.direction == Direction::Outbound {
        headers.remove(OPERATION);
    } else if let Some(operation) = stream.decoration() {
        headers.insert(OPERATION, operation);
    }
}
