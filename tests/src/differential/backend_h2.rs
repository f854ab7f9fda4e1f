//! The HTTP/2 backend: the same orders, by streams.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};

use super::backend::{Orders, Record, Recorder, shown, sorted};
use super::io::BoxStream;
use super::wire::Headers;

/// A reason by the name that `rst=` has.
pub fn reason(name: &str) -> Reason {
    match name {
        "refused" => Reason::REFUSED_STREAM,
        "cancel" => Reason::CANCEL,
        "no-error" => Reason::NO_ERROR,
        _ => Reason::INTERNAL_ERROR,
    }
}

/// A header map as pairs, sorted by name.
pub fn pairs(headers: &HeaderMap) -> Headers {
    sorted(
        headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
    )
}

pub async fn serve(stream: BoxStream, name: &str, recorder: &std::sync::Arc<Recorder>) {
    let handshake = h2::server::Builder::new().enable_connect_protocol().handshake(stream);
    let Ok(mut connection) = handshake.await else { return };
    let mut streams = tokio::task::JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (name, recorder) = (name.to_owned(), recorder.clone());
        streams.spawn(async move {
            // A stream that the proxy reset is an ordinary end.
            answer(request, respond, &name, &recorder).await.ok();
        });
    }
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    name: &str,
    recorder: &Recorder,
) -> Result<(), h2::Error> {
    let (parts, mut body) = request.into_parts();
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let case = header("x-case").unwrap_or_default().to_owned();
    let attempt = recorder.arrive(&case);
    let orders = Orders::parse(header("x-do"), attempt, name);
    if orders.upgrade {
        recorder.record(&case, record(&parts, name));
        return tunnel(body, respond).await;
    }
    let mut bytes = Vec::new();
    let mut complete = true;
    // What follows CONNECT is no body: it waits for the answer.
    while parts.method != http::Method::CONNECT
        && let Some(data) = body.data().await
    {
        let Ok(data) = data else {
            complete = false;
            break;
        };
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    let trailers = match parts.method {
        http::Method::CONNECT => HeaderMap::new(),
        _ => body.trailers().await.ok().flatten().unwrap_or_default(),
    };
    recorder.record(
        &case,
        Record { body: shown(&bytes), trailers: pairs(&trailers), complete, ..record(&parts, name) },
    );
    for status in &orders.interim {
        if let Ok(interim) = Response::builder().status(*status).header("x-interim", "1").body(()) {
            respond.send_informational(interim)?;
        }
    }
    tokio::time::sleep(orders.delay).await;
    if let Some(rst) = &orders.rst {
        respond.send_reset(reason(rst));
        return Ok(());
    }
    if orders.hang || orders.reset {
        // Until the proxy gives up.
        std::future::poll_fn(|cx| respond.poll_reset(cx)).await.ok();
        return Ok(());
    }
    let mut response = Response::builder().status(orders.status).header("x-backend", name);
    for (name, value) in &orders.headers {
        response = response.header(name, value);
    }
    let Ok(response) = response.body(()) else { return Ok(()) };
    let only_head =
        parts.method == http::Method::HEAD || orders.body.is_empty() && orders.trailers.is_empty();
    let mut stream = respond.send_response(response, only_head)?;
    if only_head {
        return Ok(());
    }
    let mut left = Bytes::from(orders.body);
    while !left.is_empty() {
        stream.reserve_capacity(left.len().min(16_384));
        let Some(Ok(capacity)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else {
            return Ok(());
        };
        let chunk = left.split_to(capacity.min(left.len()));
        let last = left.is_empty() && orders.trailers.is_empty();
        stream.send_data(chunk, last)?;
    }
    if let Some(half) = orders.half {
        tokio::time::sleep(Duration::from_millis(half as u64)).await;
        stream.send_reset(Reason::INTERNAL_ERROR);
        return Ok(());
    }
    if !orders.trailers.is_empty() {
        stream.send_trailers(header_map(&orders.trailers))?;
    }
    Ok(())
}

/// What came, without its body.
fn record(parts: &http::request::Parts, name: &str) -> Record {
    let mut headers = pairs(&parts.headers);
    if let Some(protocol) = parts.extensions.get::<h2::ext::Protocol>() {
        headers.insert(0, (":protocol".to_owned(), protocol.as_str().to_owned()));
    }
    Record {
        backend: name.to_owned(),
        method: parts.method.to_string(),
        target: parts.uri.to_string(),
        version: "HTTP/2".to_owned(),
        headers,
        body: String::new(),
        trailers: Vec::new(),
        complete: true,
    }
}

/// Accepts an upgrade and sends back what comes, until the proxy ends its side.
async fn tunnel(mut body: h2::RecvStream, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(Response::new(()), false)?;
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        stream.send_data(data, false)?;
    }
    stream.send_data(Bytes::new(), true)
}

/// The inverse of [`pairs`]; what is no header is left out.
pub fn header_map(headers: &Headers) -> HeaderMap {
    headers
        .iter()
        .filter_map(|(name, value)| {
            Some((HeaderName::try_from(name.as_str()).ok()?, HeaderValue::try_from(value.as_str()).ok()?))
        })
        .collect()
}
