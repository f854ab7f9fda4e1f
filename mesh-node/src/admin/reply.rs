//! Answers of the administration interface, with the headers that Envoy sends.

use http::StatusCode;
use http_body_util::Full;
use hyper::body::Bytes;

/// Status, content type and text.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: String,
}

impl Reply {
    pub fn text(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, content_type: "text/plain; charset=UTF-8", body: body.into() }
    }

    pub fn html(body: impl Into<String>) -> Self {
        Self { content_type: "text/html; charset=UTF-8", ..Self::text(body) }
    }

    /// Indented by one space, as Envoy prints messages.
    pub fn json(value: &serde_json::Value) -> Self {
        let mut body = Vec::new();
        let indent = serde_json::ser::PrettyFormatter::with_indent(b" ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut body, indent);
        // Values of `serde_json` always have a text.
        let _ = serde::Serialize::serialize(value, &mut serializer);
        let mut body = String::from_utf8(body).unwrap_or_default();
        body.push('\n');
        Self { content_type: "application/json", ..Self::text(body) }
    }

    pub fn status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub fn bad_request(body: impl Into<String>) -> Self {
        Self::text(body).status(StatusCode::BAD_REQUEST)
    }

    /// There is no such pod, or it has no configuration of its own.
    pub fn no_workload(name: Option<&str>) -> Self {
        let name = name.unwrap_or_default();
        Self::text(format!("no sidecar of {name:?}; /workloads lists the pods\n"))
            .status(StatusCode::NOT_FOUND)
    }

    pub fn ok() -> Self {
        Self::text("OK\n")
    }
}

impl From<Reply> for http::Response<Full<Bytes>> {
    fn from(reply: Reply) -> Self {
        let mut response = http::Response::new(Full::from(reply.body));
        *response.status_mut() = reply.status;
        let headers = [
            (http::header::CONTENT_TYPE, reply.content_type),
            (http::header::CACHE_CONTROL, "no-cache, max-age=0"),
            (http::header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (http::header::SERVER, "envoy"),
        ];
        for (name, value) in headers {
            response.headers_mut().insert(name, http::HeaderValue::from_static(value));
        }
        response
    }
}
