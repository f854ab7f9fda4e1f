//! Compresses bodies (`envoy.filters.http.compressor`). Of several in a chain the client's preferences choose one.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, VARY,
};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Body as _;

use super::super::request::Request;
use super::super::request_body::counted;
use super::super::stream::Stream;
use super::coding::encoded;
use super::{Decoding, Step};
use crate::http::body::Body;
use crate::model::http_filter::{Compressor, CompressorDirection, Encoder, HttpFilter, Override};

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
    /// The route's.
    encoder: Option<Arc<Encoder>>,
    enabled: bool,
    accept: Option<String>,
}

/// The compressors that a stream has met, and the coding that was chosen, once one was.
#[derive(Debug, Default)]
pub(super) struct Met {
    all: Vec<Arc<Compressor>>,
    chosen: Option<Option<&'static str>>,
}

pub(super) fn decode(
    decoding: &Decoding<'_>,
    filter: &HttpFilter,
    own: &Arc<Compressor>,
    stream: &Rc<Stream>,
    request: &mut Request,
) {
    let common = &own.response.common;
    let (enabled, remove, encoder) = match decoding.override_of(filter) {
        Some(Override::Compressor { responses, remove_accept_encoding, encoder }) => (
            *responses || common.enabled.now(),
            remove_accept_encoding.unwrap_or(own.response.remove_accept_encoding),
            encoder.clone(),
        ),
        _ => (common.enabled.now(), own.response.remove_accept_encoding, None),
    };
    let headers = &mut request.parts.headers;
    let accept = headers.get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).map(str::to_owned);
    if enabled && remove {
        headers.remove(ACCEPT_ENCODING);
    }
    stream.chain.compressors.borrow_mut().all.push(own.clone());
    let how = encoder.clone().unwrap_or_else(|| own.encoder.clone());
    stream.chain.push(Step::Compress(Responding { own: own.clone(), encoder, enabled, accept }));
    let Some(direction) = &own.request else { return };
    if direction.enabled.now()
        && !stream.upgrade
        && !request.body.is_end_stream()
        && is_worth_it(direction, headers)
        && !headers.contains_key(CONTENT_ENCODING)
    {
        direction.stats.coded.inc();
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(how.coding()));
        let sent = counted(std::mem::take(&mut request.body), stream);
        request.body = encoded(&how, sent, &direction.stats);
    } else {
        direction.stats.not_coded.inc();
    }
}

pub(super) fn encode(stream: &Stream, responding: &Responding, response: &mut Response<Body>) {
    let own = &responding.own.response;
    let encoder = responding.encoder.as_ref().unwrap_or(&responding.own.encoder);
    let status = u32::from(response.status().as_u16());
    let empty = response.body().is_end_stream();
    let headers = response.headers_mut();
    let has_etag = headers.contains_key(ETAG);
    let big_enough = responding.enabled && is_long(&own.common, headers);
    let compressible = big_enough
        && is_of_type(&own.common, headers)
        && !stream.upgrade
        && !says(headers, CACHE_CONTROL, "no-transform")
        && !(own.disable_on_etag && !own.weaken_etag && has_etag)
        && !headers.contains_key(CONTENT_ENCODING)
        && !own.uncompressible.contains(&status);
    let chosen = !empty
        && big_enough
        && responding.accept.as_deref().is_some_and(|accept| {
            let met = &mut *stream.chain.compressors.borrow_mut();
            let chosen = *met.chosen.get_or_insert_with(|| choose(accept, &met.all, headers));
            chosen == Some(encoder.coding())
        });
    if !(compressible && chosen) {
        own.common.stats.not_coded.inc();
    }
    if !compressible {
        return;
    }
    if chosen {
        own.common.stats.coded.inc();
        weaken_etag(headers, own.weaken_etag);
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoder.coding()));
    }
    vary(headers);
    if chosen {
        let inner = std::mem::take(response.body_mut());
        *response.body_mut() = encoded(encoder, inner, &own.common.stats);
    }
}

fn is_worth_it(direction: &CompressorDirection, headers: &HeaderMap) -> bool {
    is_long(direction, headers) && is_of_type(direction, headers)
}

fn is_long(direction: &CompressorDirection, headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    length.is_none_or(|length| length >= direction.minimum_bytes)
}

/// Is the body of a type that is compressed?
fn is_of_type(direction: &CompressorDirection, headers: &HeaderMap) -> bool {
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
pub(super) fn says(headers: &HeaderMap, name: http::HeaderName, word: &str) -> bool {
    let lines = headers.get_all(name);
    lines.iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).any(|token| {
        let token = token.split(';').next().unwrap_or_default();
        token.trim().eq_ignore_ascii_case(word)
    })
}

/// The coding that the client likes best, of those that the chain has for this type (Envoy: `chooseEncoding`); of
/// equal ones the first, but that a compressor says otherwise. `None`: the body stays as it is.
fn choose(accept: &str, compressors: &[Arc<Compressor>], headers: &HeaderMap) -> Option<&'static str> {
    let mut here: Vec<(&'static str, bool)> = Vec::new();
    for compressor in compressors.iter().filter(|c| is_of_type(&c.response.common, headers)) {
        let coding = compressor.encoder.coding();
        if !here.iter().any(|(known, _)| *known == coding) {
            here.push((coding, compressor.choose_first));
        }
    }
    let mut asked = Vec::new();
    for part in accept.split(',') {
        let mut fields = part.split(';').map(str::trim);
        let name = fields.next().unwrap_or_default();
        let weight = fields.next().and_then(|field| {
            let (key, value) = field.split_once('=')?;
            key.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>())
        });
        match weight {
            None => asked.push((name, 1.0)),
            Some(Ok(weight)) => asked.push((name, weight)),
            Some(Err(_)) => {}
        }
    }
    // What is refused is not there for "*" either.
    here.retain(|(coding, _)| {
        !asked.iter().any(|(name, weight)| *weight == 0.0 && name.eq_ignore_ascii_case(coding))
    });
    let first = here.first()?.0;
    let mut best = ("identity", 0.0);
    for (name, weight) in asked {
        let own = here.iter().find(|(coding, _)| name.eq_ignore_ascii_case(coding));
        let (name, preferred) = match own {
            Some((coding, preferred)) => (*coding, *preferred),
            None if name.eq_ignore_ascii_case("identity") => ("identity", false),
            None if name == "*" => (first, false),
            None => continue,
        };
        if weight > best.1 || (weight == best.1 && weight > 0.0 && preferred) {
            best = (name, weight);
        }
    }
    Some(best.0).filter(|name| *name != "identity")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::http_filter::CompressorResponses;
    use crate::runtime::Setting;

    fn compressor(encoder: Encoder, choose_first: bool, types: &[&str]) -> Arc<Compressor> {
        let common = CompressorDirection {
            enabled: Setting::fixed(true),
            minimum_bytes: 30,
            content_types: types.iter().map(|kind| (*kind).to_owned()).collect(),
            content_type_matchers: Vec::new(),
            stats: Arc::default(),
        };
        let response = CompressorResponses {
            common,
            disable_on_etag: false,
            weaken_etag: false,
            remove_accept_encoding: false,
            uncompressible: Default::default(),
        };
        Arc::new(Compressor { encoder: Arc::new(encoder), choose_first, response, request: None })
    }

    fn zstd() -> Encoder {
        Encoder::Zstd { level: 3, checksum: false, strategy: 0, dictionary: Default::default() }
    }

    #[test]
    fn the_encoding_with_the_highest_weight_is_chosen() {
        let gzip = [compressor(Encoder::Gzip { level: 0 }, false, &[])];
        for (header, expected) in [
            ("gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip;q=0, *", false),
            ("identity, gzip", false),
            ("identity;q=0.5, gzip", true),
            ("*", true),
            ("br", false),
            ("gzip;q=x", false),
            ("", false),
        ] {
            let chosen = choose(header, &gzip, &HeaderMap::new());
            assert_eq!(chosen, expected.then_some("gzip"), "{header}");
        }
    }

    #[test]
    fn of_several_compressors_the_client_chooses_and_then_the_configuration() {
        let gzip = |types: &[&str]| compressor(Encoder::Gzip { level: 0 }, false, types);
        let both = [gzip(&["text/html"]), compressor(zstd(), true, &["text/html", "text/css"])];
        let mut headers = HeaderMap::new();
        let mut chosen = |kind: &'static str, accept: &str| {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            choose(accept, &both, &headers)
        };
        assert_eq!(chosen("text/html", "gzip, zstd"), Some("zstd"));
        assert_eq!(chosen("text/html", "gzip, zstd;q=0.9"), Some("gzip"));
        assert_eq!(chosen("text/html", "*"), Some("gzip"));
        assert_eq!(chosen("text/css", "gzip, zstd;q=0.1"), Some("zstd"));
        assert_eq!(chosen("text/plain", "gzip, zstd"), None);
    }
}
