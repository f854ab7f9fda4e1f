//! Decompresses bodies (`envoy.filters.http.decompressor`), and tells upstreams that it does.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Body as _;

use super::super::request::Request;
use super::super::request_body::counted;
use super::super::stream::Stream;
use super::Step;
use super::coding::decoded;
use super::compressor::says;
use crate::http::body::Body;
use crate::model::http_filter::{Decompressor, DecompressorDirection};

pub(super) fn decode(own: &Arc<Decompressor>, stream: &Rc<Stream>, request: &mut Request) {
    let headers = &mut request.parts.headers;
    if own.response.enabled.now() && own.advertise {
        let given = headers.get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if let Ok(value) = HeaderValue::try_from(advertised(given, own.decoder.coding())) {
            headers.insert(ACCEPT_ENCODING, value);
        }
    }
    stream.chain.push(Step::Decompress(own.clone()));
    if request.body.is_end_stream() || !begins(own, &own.request, headers) {
        return;
    }
    let sent = counted(std::mem::take(&mut request.body), stream);
    request.body = decoded(&own.decoder, sent, &own.request.stats, &own.trailers);
}

pub(super) fn encode(own: &Decompressor, response: &mut Response<Body>) {
    if response.body().is_end_stream() || !begins(own, &own.response, response.headers_mut()) {
        return;
    }
    let inner = std::mem::take(response.body_mut());
    *response.body_mut() = decoded(&own.decoder, inner, &own.response.stats, &own.trailers);
}

/// Is this message to be decompressed? Its head says then what it will be.
fn begins(own: &Decompressor, direction: &DecompressorDirection, headers: &mut HeaderMap) -> bool {
    let codings = headers.get(CONTENT_ENCODING).and_then(|v| v.to_str().ok());
    let (first, rest) = codings.map_or(("", None), |codings| match codings.split_once(',') {
        Some((first, rest)) => (first.trim(), Some(rest.trim().to_owned())),
        None => (codings.trim(), None),
    });
    let begins = direction.enabled.now()
        && (direction.ignore_no_transform || !says(headers, CACHE_CONTROL, "no-transform"))
        && first.eq_ignore_ascii_case(own.decoder.coding());
    if !begins {
        direction.stats.not_coded.inc();
        return false;
    }
    direction.stats.coded.inc();
    headers.remove(CONTENT_LENGTH);
    match rest.and_then(|rest| HeaderValue::try_from(rest).ok()) {
        Some(rest) => drop(headers.insert(CONTENT_ENCODING, rest)),
        None => drop(headers.remove(CONTENT_ENCODING)),
    }
    true
}

/// The list with this coding at its end, once and without a weight.
fn advertised(given: &str, coding: &str) -> String {
    let others = given.split(',').map(str::trim).filter(|part| !part.is_empty());
    let name = |part: &str| part.split(';').next().unwrap_or_default().trim().to_owned();
    let mut all: Vec<&str> = others.filter(|part| name(part) != coding).collect();
    all.push(coding);
    all.join(",")
}

#[cfg(test)]
mod tests {
    use super::advertised;

    #[test]
    fn upstreams_are_told_of_the_coding_once() {
        for (given, expected) in
            [("", "gzip"), ("br", "br,gzip"), ("gzip;q=0.5, br;q=0.2", "br;q=0.2,gzip"), ("gzip,*", "*,gzip")]
        {
            assert_eq!(advertised(given, "gzip"), expected, "{given}");
        }
    }
}
