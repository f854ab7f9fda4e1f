//! Scripts (`envoy.filters.http.lua`), with Envoy's stream handle: [`handle`] and what hangs on it. A script runs as a
//! coroutine in a machine of its worker ([`machine`]); where it waits, its request waits. A script that fails is
//! logged and counted, and its message goes on as it is. A request that no script wants costs a look at its route.

mod call;
mod exchange;
mod facts;
mod handle;
mod machine;
mod signature;
mod streaming;
mod values;

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Response;
use http::header::CONTENT_LENGTH;

use self::exchange::{Exchange, Told};
use self::machine::Machine;
pub use self::machine::Machines;
use super::super::local_reply::LocalReply;
use super::super::request::Request;
use super::super::stream::Stream;
use super::{Decoding, Step};
use crate::http::body::Body;
use crate::model::http_filter::{HttpFilter, Override};
use crate::model::lua::{LuaChoice, LuaFilter};
use crate::model::metadata::Metadata;
use crate::turn;

/// Under this name routes speak to all filters of the kind.
const CANONICAL: &str = "envoy.filters.http.lua";

/// A script and what it is told, for one stream.
#[derive(Debug, Clone)]
pub struct Chosen {
    own: Arc<LuaFilter>,
    machine: Rc<Machine>,
    told: Told,
}

/// The script of a request, if one is to run on it; what it does with the response is noted.
pub(super) fn chosen(decoding: &Decoding<'_>, filter: &HttpFilter, own: &Arc<LuaFilter>) -> Option<Chosen> {
    let of_route = match decoding.override_of(filter) {
        Some(Override::Lua(of_route)) => Some(of_route),
        _ => None,
    };
    let script = match of_route.map(|of_route| &of_route.choice) {
        None | Some(LuaChoice::Default) => own.default.as_ref(),
        Some(LuaChoice::None) => None,
        Some(LuaChoice::Named(name)) => own.named.get(name),
        Some(LuaChoice::Own(script)) => Some(script),
    }?;
    let stream = decoding.stream;
    let Some(machine) = stream.manager.ctx.scripts.of(script) else {
        own.errors.inc();
        return None;
    };
    let context = of_route.and_then(|of_route| of_route.context.as_ref()).unwrap_or(&own.context);
    let chosen = Chosen {
        own: own.clone(),
        machine,
        told: Told { metadata: metadata(decoding, filter), context: context.clone() },
    };
    if chosen.machine.on_response.is_some() {
        stream.chain.push(Step::Lua(Box::new(chosen.clone())));
    }
    chosen.machine.on_request.is_some().then_some(chosen)
}

/// What the route's metadata says under the filter's name.
fn metadata(decoding: &Decoding<'_>, filter: &HttpFilter) -> Option<Metadata> {
    let all = &decoding.routed?.route.metadata;
    let of = |wanted: &str| all.iter().find(|(name, _)| **name == *wanted).map(|(_, fields)| fields.clone());
    of(&filter.name).or_else(|| of(CANONICAL))
}

/// Runs `envoy_on_request`.
pub(super) async fn decode(chosen: Chosen, stream: &Rc<Stream>, request: &mut Request) -> Option<LocalReply> {
    let exchange = Exchange::of_request(stream, request, chosen.told.clone());
    let function = chosen.machine.on_request.clone()?;
    let (phase, run) = start(&chosen, &exchange, &function).await;
    let reply = exchange.reply.take();
    match phase {
        Phase::Done => {
            request.body = exchange.body_after();
            exchange.give_back_request(request);
        }
        Phase::Streaming => {
            exchange.headers.borrow_mut().map.remove(CONTENT_LENGTH);
            exchange.give_back_request(request);
            request.body = streaming::body(run, exchange.clone());
        }
    }
    if reply.is_none() && (exchange.reroute.get() || (exchange.changed() && chosen.own.clear_route_cache)) {
        stream.chain.reroute.set(true);
    }
    reply
}

impl Chosen {
    /// Runs `envoy_on_response`; `Some`: the answer in place of the response.
    pub async fn encode(self, stream: &Rc<Stream>, response: &mut Response<Body>) -> Option<LocalReply> {
        let exchange = Exchange::of_response(stream, response, self.told.clone());
        let function = self.machine.on_response.clone()?;
        let (phase, run) = start(&self, &exchange, &function).await;
        match phase {
            Phase::Done => {
                *response.body_mut() = exchange.body_after();
                exchange.give_back_response(response);
            }
            Phase::Streaming => {
                exchange.headers.borrow_mut().map.remove(CONTENT_LENGTH);
                exchange.give_back_response(response);
                *response.body_mut() = streaming::body(run, exchange.clone());
            }
        }
        exchange.reply.take()
    }
}

/// Why a run stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It has ended, or is not heard of again.
    Done,
    /// It waits for a piece of the body, which passes.
    Streaming,
}

/// A run of a script.
struct Run {
    machine: Rc<Machine>,
    own: Arc<LuaFilter>,
    exchange: Rc<Exchange>,
    future: Pin<Box<dyn Future<Output = mlua::Result<()>>>>,
}

impl Run {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Phase> {
        self.machine.refill();
        let polled = self.future.as_mut().poll(cx);
        turn::went_on();
        match polled {
            Poll::Ready(outcome) => {
                if let Err(error) = outcome {
                    self.own.errors.inc();
                    tracing::error!(target: "lua", %error, "script failed");
                }
                Poll::Ready(Phase::Done)
            }
            Poll::Pending if self.exchange.reply.borrow().is_some() => Poll::Ready(Phase::Done),
            Poll::Pending if self.exchange.chunks.wanted.get() => Poll::Ready(Phase::Streaming),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Begins a run and follows it until its head can go on.
async fn start(chosen: &Chosen, exchange: &Rc<Exchange>, function: &mlua::Function) -> (Phase, Run) {
    chosen.own.executions.inc();
    let (function, handle) = (function.clone(), handle::of(&chosen.machine.lua, exchange));
    let mut run = Run {
        machine: chosen.machine.clone(),
        own: chosen.own.clone(),
        exchange: exchange.clone(),
        future: Box::pin(async move { function.call_async::<()>(handle?).await }),
    };
    let phase = poll_fn(|cx| run.poll(cx)).await;
    (phase, run)
}
