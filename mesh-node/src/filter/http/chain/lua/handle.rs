//! The stream handle (Envoy's reference, "Stream handle API"): what a script is given.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::StatusCode;
use mlua::{Lua, Table, UserData, UserDataMethods, Value};

use super::super::super::local_reply::LocalReply;
use super::call::{self, Call};
use super::exchange::Exchange;
use super::facts::{Connection, StreamFacts};
use super::signature::{self, PublicKey};
use super::values::{BufferObject, HeadersObject, MetadataObject, json_of, lines_of};
use crate::telemetry::base64;

/// The handle of one message.
#[derive(Clone)]
pub(super) struct Handle(pub(super) Rc<Exchange>);

macro_rules! logs {
    ($methods:ident, $($name:literal => $level:ident),* $(,)?) => {
        $($methods.add_method($name, |_, _, text: mlua::String| {
            tracing::$level!(target: "lua", "script log: {}", text.to_string_lossy());
            Ok(())
        });)*
    };
}

impl UserData for Handle {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        logs!(
            methods, "logTrace" => trace, "logDebug" => debug, "logInfo" => info, "logWarn" => warn,
            "logErr" => error, "logCritical" => error,
        );
        methods.add_method("headers", |_, this, ()| Ok(HeadersObject(this.0.headers.clone())));
        methods.add_async_method("body", |_, this, even_empty: Option<bool>| {
            let exchange = this.0.clone();
            async move { Ok(exchange.body(even_empty.unwrap_or(false)).await?.map(BufferObject)) }
        });
        methods.add_method("bodyChunks", |lua, this, ()| {
            let exchange = this.0.clone();
            lua.create_async_function(move |_, _: mlua::Variadic<Value>| {
                let exchange = exchange.clone();
                async move { Ok(exchange.next_chunk().await.map(BufferObject)) }
            })
        });
        methods.add_method("trailers", |_, this, ()| Ok(this.0.trailers.borrow().clone().map(HeadersObject)));
        methods.add_async_method("respond", |_, this, (headers, body): (Table, Option<mlua::String>)| {
            let reply = respond(&this.0, &headers, body);
            let exchange = this.0.clone();
            async move {
                *exchange.reply.borrow_mut() = Some(reply?);
                // The script is not heard of again.
                std::future::pending::<mlua::Result<()>>().await
            }
        });
        methods.add_async_method("httpCall", |lua, this, arguments: mlua::MultiValue| {
            let (exchange, call) = (this.0.clone(), Call::of(&lua, arguments));
            async move { call::call(&lua, &exchange, call?).await }
        });
        methods.add_method("metadata", |_, this, ()| {
            Ok(MetadataObject(this.0.told.metadata.as_ref().map(json_of).unwrap_or_default()))
        });
        methods.add_method("streamInfo", |_, this, ()| Ok(StreamFacts(this.0.stream.clone())));
        methods
            .add_method("connection", |_, this, ()| Ok(Connection(this.0.stream.manager.connection.clone())));
        methods.add_method("clearRouteCache", |_, this, ()| {
            this.0.reroute.set(true);
            Ok(())
        });
        methods.add_method("filterContext", |_, this, ()| Ok(MetadataObject(json_of(&this.0.told.context))));
        methods.add_method("setUpstreamOverrideHost", |_, this, (host, strict): (String, Option<bool>)| {
            let address = host.parse().or_else(|_| host.parse::<IpAddr>().map(|ip| (ip, 0).into()));
            let address = address.map_err(|_| mlua::Error::runtime(format!("{host:?} is not an address")))?;
            this.0.stream.chain.session_host.set(Some((address, strict.unwrap_or(false))));
            Ok(())
        });
        methods.add_method("importPublicKey", |_, _, (der, length): (mlua::String, usize)| {
            Ok(PublicKey::of(der.as_bytes().get(..length).unwrap_or_default()))
        });
        methods.add_method(
            "verifySignature",
            |_, _, (hash, key, signature, length, data, data_length): Verification| {
                let key = key.borrow::<PublicKey>()?;
                let signature = signature.as_bytes().get(..length).map(<[u8]>::to_vec).unwrap_or_default();
                let data = data.as_bytes().get(..data_length).map(<[u8]>::to_vec).unwrap_or_default();
                Ok(match signature::verify(&hash, &key, &signature, &data) {
                    Ok(()) => (true, String::new()),
                    Err(reason) => (false, reason),
                })
            },
        );
        methods.add_method("base64Escape", |_, _, text: mlua::String| Ok(base64::encode(&text.as_bytes())));
        methods.add_method("timestamp", |_, _, _: Option<Value>| Ok(since_epoch().as_millis() as f64));
        methods.add_method("timestampString", |_, _, resolution: Option<i64>| {
            Ok(match resolution {
                Some(1) => since_epoch().as_micros().to_string(),
                _ => since_epoch().as_millis().to_string(),
            })
        });
    }
}

/// Hash function, key, signature and its length, data and its length.
type Verification = (String, mlua::AnyUserData, mlua::String, usize, mlua::String, usize);

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn respond(exchange: &Exchange, headers: &Table, body: Option<mlua::String>) -> mlua::Result<LocalReply> {
    if exchange.is_response {
        return Err(mlua::Error::runtime("respond not currently supported in the response path"));
    }
    if exchange.headers.borrow().sent {
        return Err(mlua::Error::runtime("respond() cannot be called if headers have been continued"));
    }
    let (pseudo, lines) = lines_of(headers)?;
    let status =
        pseudo.iter().find(|(name, _)| name == ":status").and_then(|(_, code)| code.parse::<u16>().ok());
    let status = status.filter(|code| *code >= 200).and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or_else(|| mlua::Error::runtime(":status must be between 200-599"))?;
    let mut reply = LocalReply::new(status, "", "lua_response");
    reply.headers = lines;
    reply.content_type = reply.headers.remove(http::header::CONTENT_TYPE);
    reply.bytes = body.map(|body| Bytes::copy_from_slice(&body.as_bytes()));
    Ok(reply)
}

/// A handle for a run of the script.
pub(super) fn of(lua: &Lua, exchange: &Rc<Exchange>) -> mlua::Result<mlua::AnyUserData> {
    lua.create_userdata(Handle(exchange.clone()))
}
