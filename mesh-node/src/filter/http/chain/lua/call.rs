//! Requests that scripts make (`httpCall`), by way of a cluster and in the name of the stream's pod.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use http_body_util::BodyExt as _;
use mlua::{Lua, Table, Value};

use super::exchange::Exchange;
use super::values::lines_of;
use crate::cluster::{LbContext, RoutingPriority};
use crate::http::body::Body;
use crate::upstream::{Target, UpstreamPath, implied_alpn};

/// Of an answer that a script keeps.
const MAX_BYTES: usize = 16 << 20;

/// What a script asks for.
pub(super) struct Call {
    cluster: String,
    message: Request<Body>,
    timeout: Option<Duration>,
    /// The script does not wait.
    forget: bool,
    /// Values of repeated headers are lists.
    lists: bool,
}

impl Call {
    pub(super) fn of(lua: &Lua, arguments: mlua::MultiValue) -> mlua::Result<Self> {
        let mut arguments = arguments.into_iter();
        let mut next = || arguments.next().unwrap_or(Value::Nil);
        let cluster: String = mlua::FromLua::from_lua(next(), lua)?;
        let headers: Table = mlua::FromLua::from_lua(next(), lua)?;
        let body: Option<mlua::String> = mlua::FromLua::from_lua(next(), lua)?;
        let (mut forget, mut lists, mut milliseconds) = (false, false, 0.0);
        match next() {
            Value::Table(options) => {
                forget = options.get::<Option<bool>>("asynchronous")?.unwrap_or(false);
                lists = options.get::<Option<bool>>("return_duplicate_headers")?.unwrap_or(false);
                milliseconds = options.get::<Option<f64>>("timeout_ms")?.unwrap_or(0.0);
            }
            Value::Nil => return Err(mlua::Error::runtime("http call timeout must be >= 0")),
            timeout => {
                milliseconds += <f64 as mlua::FromLua>::from_lua(timeout, lua)?;
                forget = <Option<bool> as mlua::FromLua>::from_lua(next(), lua)?.unwrap_or(forget);
            }
        }
        if milliseconds < 0.0 {
            return Err(mlua::Error::runtime("http call timeout must be >= 0"));
        }
        let (pseudo, mut lines) = lines_of(&headers)?;
        let of = |name: &str| pseudo.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let (Some(method), Some(path), Some(authority)) = (of(":method"), of(":path"), of(":authority"))
        else {
            return Err(mlua::Error::runtime(
                "http call headers must include ':path', ':method', and ':authority'",
            ));
        };
        let host = HeaderValue::from_str(authority).map_err(mlua::Error::external)?;
        lines.insert(HOST, host);
        let body =
            body.map_or(Body::Empty, |body| Body::from_bytes(Bytes::copy_from_slice(&body.as_bytes())));
        let method = Method::from_bytes(method.as_bytes()).map_err(mlua::Error::external)?;
        let mut message =
            Request::builder().method(method).uri(path).body(body).map_err(mlua::Error::external)?;
        *message.headers_mut() = lines;
        let timeout = (milliseconds > 0.0).then(|| Duration::from_secs_f64(milliseconds.min(1e9) / 1000.0));
        Ok(Self { cluster, message, timeout, forget, lists })
    }
}

/// Makes the call. A script that waits gets headers and body; a failure is a 503 to it.
pub(super) async fn call(lua: &Lua, exchange: &Rc<Exchange>, call: Call) -> mlua::Result<(Value, Value)> {
    let manager = exchange.stream.manager.clone();
    let Some(cluster) = manager.ctx.clusters.get(&call.cluster) else {
        return Err(mlua::Error::runtime("http call cluster invalid. Must be configured"));
    };
    let lists = call.lists;
    let limit = call.timeout;
    let forget = call.forget;
    let made = async move {
        let host = cluster.choose(&LbContext::default()).ok()?;
        let target = Target {
            client: None,
            workload: manager.connection.workload.clone(),
            implied_alpn: implied_alpn(cluster.config.protocol, Version::HTTP_11),
            cluster,
            host,
            path: UpstreamPath::Network,
            alpn: None,
        };
        let upstreams = &manager.ctx.upstreams;
        let exchange = upstreams
            .request(&target, RoutingPriority::Default, Version::HTTP_11, call.message)
            .await
            .ok()?;
        let (parts, mut body) = exchange.response.into_parts();
        target.cluster.stats.count_response(parts.status.as_u16());
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.ok()?.data_ref() {
                read.extend_from_slice(data);
            }
            if read.len() > MAX_BYTES {
                return None;
            }
        }
        Some((parts.status.as_u16(), parts.headers, read))
    };
    let made = async move {
        match limit {
            Some(limit) => tokio::time::timeout(limit, made).await.ok().flatten(),
            None => made.await,
        }
    };
    if forget {
        tokio::task::spawn_local(made);
        return Ok((Value::Nil, Value::Nil));
    }
    let (status, headers, body) =
        made.await.unwrap_or_else(|| (503, HeaderMap::new(), b"upstream failure".to_vec()));
    let table = lua.create_table()?;
    table.raw_set(":status", status.to_string())?;
    for name in headers.keys() {
        let values: Vec<_> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        match &values[..] {
            [.., last] if values.len() == 1 || !lists => {
                table.raw_set(name.as_str(), lua.create_string(last)?)?
            }
            _ => {
                let list =
                    values.iter().map(|value| lua.create_string(value)).collect::<mlua::Result<Vec<_>>>()?;
                table.raw_set(name.as_str(), list)?;
            }
        }
    }
    let body = if body.is_empty() { Value::Nil } else { Value::String(lua.create_string(body)?) };
    Ok((Value::Table(table), body))
}
