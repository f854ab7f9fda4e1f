//! Compresses bodies with gzip (`envoy.filters.http.compressor`).

use std::io::Write;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, VARY,
};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as _, Frame};

use super::super::request::Request;
use super::super::request_body::counted;
use super::super::stream::Stream;
use super::{Decoding, Step};
use crate::http::body::{Body, BodyError};
use crate::model::http_filter::{Compressor, CompressorDirection, HttpFilter, Override};

const GZIP: &str = "gzip";

/// What is compressed where the configuration names no types.
const CONTENT_TYPES: [&str; 18] = [
    "text/html",
    "text/plain",
    "text/css",
    "application/javascript",
    "application/x-javascript",
    "text/javascript",
    "text/x-javascript",
    "text/ecmascript",
    "text/js",
    "text/jscript",
    "text/x-js",
    "application/ecmascript",
    "application/x-json",
    "application/xml",
    "application/json",
    "image/svg+xml",
    "text/xml",
    "application/xhtml+xml",
];

/// What remains to be decided with the response.
#[derive(Debug)]
pub(super) struct Responding {
    own: Arc<Compressor>,
    enabled: bool,
    accepts: bool,
}

pub(super) fn decode(
    decoding: &Decoding<'_>,
    filter: &HttpFilter,
    own: &Arc<Compressor>,
    stream: &Rc<Stream>,
    request: &mut Request,
) {
    let (enabled, remove) = match decoding.override_of(filter) {
        Some(Override::Compressor { responses, remove_accept_encoding }) => (
            *responses || own.response.common.enabled.now(),
            remove_accept_encoding.unwrap_or(own.response.remove_accept_encoding),
        ),
        _ => (own.response.common.enabled.now(), own.response.remove_accept_encoding),
    };
    let headers = &mut request.parts.headers;
    let accepts = headers.get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).is_some_and(accepts_gzip);
    if enabled && remove {
        headers.remove(ACCEPT_ENCODING);
    }
    stream.chain.push(Step::Compress(Responding { own: own.clone(), enabled, accepts }));
    if let Some(direction) = &own.request
        && direction.enabled.now()
        && !stream.upgrade
        && !request.body.is_end_stream()
        && is_worth_it(direction, headers)
        && !headers.contains_key(CONTENT_ENCODING)
    {
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(GZIP));
        let sent = counted(std::mem::take(&mut request.body), stream);
        request.body = compressed(own.level, sent);
    }
}

pub(super) fn encode(stream: &Stream, responding: &Responding, response: &mut Response<Body>) {
    let own = &responding.own.response;
    let status = u32::from(response.status().as_u16());
    let empty = response.body().is_end_stream();
    let headers = response.headers_mut();
    let has_etag = headers.contains_key(ETAG);
    let compressible = responding.enabled
        && is_worth_it(&own.common, headers)
        && !stream.upgrade
        && !says(headers, CACHE_CONTROL, "no-transform")
        && !(own.disable_on_etag && !own.weaken_etag && has_etag)
        && !headers.contains_key(CONTENT_ENCODING)
        && !own.uncompressible.contains(&status);
    if !compressible {
        return;
    }
    if !empty && responding.accepts {
        weaken_etag(headers, own.weaken_etag);
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(GZIP));
    }
    vary(headers);
    if !empty && responding.accepts {
        let inner = std::mem::take(response.body_mut());
        *response.body_mut() = compressed(responding.own.level, inner);
    }
}

/// Is the body long enough, and of a type that is compressed?
fn is_worth_it(direction: &CompressorDirection, headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length < direction.minimum_bytes) {
        return false;
    }
    let Some(kind) = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()) else { return true };
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if !direction.content_type_matchers.is_empty() {
        return direction.content_type_matchers.iter().any(|matcher| matcher.matches(&kind));
    }
    match direction.content_types.is_empty() {
        true => CONTENT_TYPES.contains(&&*kind),
        false => direction.content_types.contains(&kind),
    }
}

/// Does a header with a list of words have this one?
fn says(headers: &HeaderMap, name: http::HeaderName, word: &str) -> bool {
    let lines = headers.get_all(name);
    lines.iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).any(|token| {
        let token = token.split(';').next().unwrap_or_default();
        token.trim().eq_ignore_ascii_case(word)
    })
}

/// The name with the highest weight decides; of equal ones the first.
fn accepts_gzip(header: &str) -> bool {
    let mut best = ("identity", 0.0);
    for part in header.split(',') {
        let mut fields = part.split(';').map(str::trim);
        let name = fields.next().unwrap_or_default();
        let weight = fields.find_map(|field| field.strip_prefix("q=")).map_or(Ok(1.0), str::parse::<f32>);
        let known = [GZIP, "identity", "*"].iter().any(|known| name.eq_ignore_ascii_case(known));
        if let Ok(weight) = weight
            && known
            && weight > best.1
        {
            best = (name, weight);
        }
    }
    best.1 > 0.0 && !best.0.eq_ignore_ascii_case("identity")
}

/// A strong validator speaks of the bytes as they were.
fn weaken_etag(headers: &mut HeaderMap, keep: bool) {
    let Some(etag) = headers.get(ETAG) else { return };
    if etag.as_bytes().starts_with(b"W/") || etag.as_bytes().starts_with(b"w/") {
        return;
    }
    let weak = HeaderValue::from_bytes(&[b"W/", etag.as_bytes()].concat()).ok().filter(|_| keep);
    match weak {
        Some(weak) => drop(headers.insert(ETAG, weak)),
        None => drop(headers.remove(ETAG)),
    }
}

/// Others would get other bytes.
fn vary(headers: &mut HeaderMap) {
    if says(headers, VARY, "accept-encoding") {
        return;
    }
    let value = match headers.get(VARY) {
        Some(given) => HeaderValue::from_bytes(&[given.as_bytes(), b", Accept-Encoding"].concat()),
        None => Ok(HeaderValue::from_static("Accept-Encoding")),
    };
    if let Ok(value) = value {
        headers.insert(VARY, value);
    }
}

fn compressed(level: u32, inner: Body) -> Body {
    let level = if level == 0 { Compression::default() } else { Compression::new(level) };
    Body::boxed(Compressed { inner, encoder: Some(GzEncoder::new(Vec::new(), level)), last: None })
}

/// Compresses what comes; every piece can be read as soon as it is there.
struct Compressed {
    inner: Body,
    /// Until the end.
    encoder: Option<GzEncoder<Vec<u8>>>,
    /// Trailers, after the end of the data.
    last: Option<Frame<Bytes>>,
}

impl Compressed {
    fn finish(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        let encoder = self.encoder.take()?;
        Some(encoder.finish().map(|rest| Frame::data(rest.into())).map_err(BodyError::from))
    }
}

impl http_body::Body for Compressed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(last) = this.last.take() {
            return Poll::Ready(Some(Ok(last)));
        }
        if this.encoder.is_none() {
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(this.finish()),
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => {
                this.last = Some(trailers);
                return Poll::Ready(this.finish());
            }
        };
        let Some(encoder) = &mut this.encoder else { return Poll::Ready(None) };
        let written = encoder.write_all(&data).and_then(|()| encoder.flush());
        Poll::Ready(Some(match written {
            Ok(()) => Ok(Frame::data(std::mem::take(encoder.get_mut()).into())),
            Err(error) => Err(error.into()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_with_the_highest_weight_is_chosen() {
        for (header, expected) in [
            ("gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("identity, gzip", false),
            ("identity;q=0.5, gzip", true),
            ("*", true),
            ("br", false),
            ("gzip;q=x", false),
        ] {
            assert_eq!(accepts_gzip(header), expected, "{header}");
        }
    }
}
