//! The message that a script works on, taken out of the stream while the script runs: headers with Envoy's names for
//! what is no header here, the body whole or in chunks, trailers.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;

use super::super::super::local_reply::LocalReply;
use super::super::super::request::Request;
use super::super::super::stream::Stream;
use crate::http::body::Body;
use crate::model::headers::HeaderTarget;
use crate::model::lua::LuaContext;
use crate::model::metadata::Metadata;

/// Where nothing else bounds what is kept of a body.
const LIMIT: usize = 1 << 20;

/// A body, or a piece of one, that a script may replace.
pub(super) type Buffer = Rc<RefCell<Bytes>>;
/// Headers that a script may change.
pub(super) type Headers = Rc<RefCell<Fields>>;

/// Headers, and `:path` and its kin.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) pseudo: Vec<(&'static str, String)>,
    pub(super) map: HeaderMap,
    pub(super) changed: bool,
    /// They have gone on; nothing can be changed any more.
    pub(super) sent: bool,
}

/// A request or a response under a script.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) stream: Rc<Stream>,
    pub(super) is_response: bool,
    pub(super) headers: Headers,
    pub(super) trailers: RefCell<Option<Headers>>,
    pub(super) inner: RefCell<Body>,
    pub(super) whole: RefCell<Option<Buffer>>,
    pub(super) chunks: Chunks,
    pub(super) reply: RefCell<Option<LocalReply>>,
    pub(super) reroute: Cell<bool>,
    pub(super) told: Told,
}

/// What the configuration has to say to a script.
#[derive(Debug, Clone)]
pub(super) struct Told {
    /// Of the route.
    pub(super) metadata: Option<Metadata>,
    pub(super) context: LuaContext,
}

/// A body that passes by piece by piece (`bodyChunks`).
#[derive(Debug, Default)]
pub(super) struct Chunks {
    /// The script waits for the next piece.
    pub(super) wanted: Cell<bool>,
    /// What it gets: `None` is the end.
    pub(super) given: RefCell<Option<Option<Buffer>>>,
}

impl Fields {
    pub(super) fn of(map: HeaderMap) -> Headers {
        Rc::new(RefCell::new(Self { map, ..Self::default() }))
    }
}

impl Exchange {
    pub(super) fn of_request(stream: &Rc<Stream>, request: &mut Request, told: Told) -> Rc<Self> {
        let pseudo = vec![
            (":authority", request.authority().to_owned()),
            (":path", request.path().to_owned()),
            (":method", request.parts.method.to_string()),
            (":scheme", request.scheme.to_owned()),
        ];
        let mut map = std::mem::take(&mut request.parts.headers);
        map.remove(HOST);
        Self::new(stream, false, (pseudo, map), std::mem::take(&mut request.body), told)
    }

    pub(super) fn of_response(stream: &Rc<Stream>, response: &mut Response<Body>, told: Told) -> Rc<Self> {
        let pseudo = vec![(":status", response.status().as_str().to_owned())];
        let map = std::mem::take(response.headers_mut());
        Self::new(stream, true, (pseudo, map), std::mem::take(response.body_mut()), told)
    }

    fn new(
        stream: &Rc<Stream>,
        is_response: bool,
        (pseudo, map): (Vec<(&'static str, String)>, HeaderMap),
        body: Body,
        told: Told,
    ) -> Rc<Self> {
        Rc::new(Self {
            stream: stream.clone(),
            is_response,
            headers: Rc::new(RefCell::new(Fields { pseudo, map, ..Fields::default() })),
            trailers: RefCell::default(),
            inner: RefCell::new(body),
            whole: RefCell::default(),
            chunks: Chunks::default(),
            reply: RefCell::default(),
            reroute: Cell::new(false),
            told,
        })
    }

    /// Waits for the whole body; `None`: there is none.
    pub(super) async fn body(&self, even_empty: bool) -> mlua::Result<Option<Buffer>> {
        if let Some(whole) = &*self.whole.borrow() {
            return Ok(Some(whole.clone()));
        }
        let mut body = self.inner.take();
        if body.is_end_stream() && !even_empty {
            return Ok(None);
        }
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            self.stream.touch();
            let frame = frame.map_err(mlua::Error::external)?;
            match frame.into_data() {
                Ok(data) if read.len() + data.len() > LIMIT => {
                    self.refuse_size();
                    return std::future::pending().await;
                }
                Ok(data) => read.extend_from_slice(&data),
                Err(frame) => *self.trailers.borrow_mut() = frame.into_trailers().ok().map(Fields::of),
            }
        }
        let whole = Rc::new(RefCell::new(read.freeze()));
        *self.whole.borrow_mut() = Some(whole.clone());
        Ok(Some(whole))
    }

    /// More than is kept (Envoy: 413 to requests, 500 to responses).
    fn refuse_size(&self) {
        let reply = if self.is_response {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            LocalReply::new(status, "Internal Server Error", "response_payload_too_large")
        } else {
            LocalReply::new(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large", "request_payload_too_large")
        };
        *self.reply.borrow_mut() = Some(reply);
    }

    /// The next piece of a body that passes; `None` is its end.
    pub(super) async fn next_chunk(&self) -> Option<Buffer> {
        poll_fn(|_| match self.chunks.given.take() {
            Some(given) => Poll::Ready(given),
            None => {
                self.chunks.wanted.set(true);
                Poll::Pending
            }
        })
        .await
    }

    /// Puts the body that the script has read, or left, back; with it the length that its headers say.
    pub(super) fn body_after(&self) -> Body {
        let Some(whole) = self.whole.take() else { return self.inner.take() };
        let data = whole.take();
        let trailers = self.trailers.take().map(|trailers| std::mem::take(&mut trailers.borrow_mut().map));
        let mut headers = self.headers.borrow_mut();
        let told = headers.map.contains_key(CONTENT_LENGTH);
        if trailers.is_none() && (told || !data.is_empty()) {
            headers.map.insert(CONTENT_LENGTH, HeaderValue::from(data.len()));
        }
        match trailers {
            None => Body::from_bytes(data),
            Some(trailers) => {
                headers.map.remove(CONTENT_LENGTH);
                super::super::buffer::with_trailers(data, trailers)
            }
        }
    }

    /// The script is done with the head of a request.
    pub(super) fn give_back_request(&self, request: &mut Request) {
        let mut fields = self.headers.borrow_mut();
        let mut headers = HeaderMap::with_capacity(fields.map.len() + 1);
        if !request.authority.is_empty() {
            headers.insert(HOST, request.authority.clone());
        }
        headers.extend(fields.map.iter().map(|(name, value)| (name.clone(), value.clone())));
        request.parts.headers = headers;
        for (name, value) in std::mem::take(&mut fields.pseudo) {
            match name {
                ":authority" if value != request.authority() => request.set_authority(&value),
                ":path" if value != request.path() => request.set_path(value),
                ":method" if value != request.parts.method.as_str() => {
                    request.set_pseudo(&HeaderTarget::Method, &value);
                }
                _ => {}
            }
        }
        fields.sent = true;
    }

    /// The script is done with the head of a response.
    pub(super) fn give_back_response(&self, response: &mut Response<Body>) {
        let mut fields = self.headers.borrow_mut();
        *response.headers_mut() = fields.map.clone();
        for (_, value) in std::mem::take(&mut fields.pseudo) {
            if let Some(status) = value.parse().ok().and_then(|code| StatusCode::from_u16(code).ok()) {
                *response.status_mut() = status;
            }
        }
        fields.sent = true;
    }
}

/// `key` as Envoy has it: what is no header has a name of its own.
pub(super) fn pseudo_name(key: &str) -> Option<&'static str> {
    Some(match key {
        ":authority" | "host" => ":authority",
        ":path" => ":path",
        ":method" => ":method",
        ":scheme" => ":scheme",
        ":status" => ":status",
        _ => return None,
    })
}

pub(super) fn name_of(key: &str) -> mlua::Result<HeaderName> {
    HeaderName::from_bytes(key.as_bytes())
        .map_err(|_| mlua::Error::runtime(format!("{key:?} is no header name")))
}

pub(super) fn value_of(value: &[u8]) -> mlua::Result<HeaderValue> {
    HeaderValue::from_bytes(value).map_err(|_| mlua::Error::runtime("this cannot be the value of a header"))
}
