//! Hedging (`hedge_on_per_try_timeout`): a try that takes long goes on, and another one begins beside it. The first
//! good response is the answer (Envoy: `Filter::onSoftPerTryTimeout`).
//!
//! At most one try, the newest, may still lead to another one: what became of those before it only counts as an answer.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::Response;
use tokio::time::Sleep;

use super::super::local_reply::LocalReply;
use super::super::request::Request;
use super::super::reset::ResetReason;
use super::super::trace;
use super::Forwarding;
use super::attempt::{Failure, Source, Tries, Verdict};
use super::limits::{TryLimit, TryLimits};
use super::local;
use crate::cluster::{Host, Outcome, Report};
use crate::http::body::Body;
use crate::upstream::{Exchange, UpstreamError};

/// A try under way.
struct Flight<'a> {
    host: Arc<Host>,
    attempt: u32,
    exchange: Pin<Box<dyn Future<Output = Result<Exchange, UpstreamError>> + 'a>>,
    limits: Option<TryLimits>,
    /// It has had its time.
    late: bool,
    /// Another try took its place.
    replaced: bool,
}

enum Happened {
    /// The next try is due.
    Due,
    /// The try of this index has ended.
    Ended(usize, Box<Result<Exchange, UpstreamError>>),
    /// It has had its time.
    Late(usize, TryLimit),
}

impl<'r> Forwarding<'r> {
    /// Sends the request to one host, and to another one whenever the newest takes too long or fails.
    pub(super) async fn hedged(
        &self,
        request: &mut Request,
        mut source: Source,
        mut tries: Tries,
    ) -> Result<Response<Body>, LocalReply> {
        let stream = self.stream();
        let mut flights: Vec<Flight<'_>> = Vec::new();
        let mut next = Some(Instant::now());
        let mut sleep = pin!(tokio::time::sleep_until(Instant::now().into()));
        'tries: loop {
            let happened = poll_fn(|cx| self.poll_next(cx, &mut flights, next, sleep.as_mut())).await;
            let (flight, failure) = match happened {
                Happened::Due => {
                    next = None;
                    let Some((host, message)) = self.begin_try(request, &mut source, &mut tries) else {
                        return Err(local::no_healthy_upstream(stream));
                    };
                    flights.push(self.flight(host, message));
                    continue 'tries;
                }
                Happened::Late(index, limit) if limit != TryLimit::MaxDuration => {
                    let flight = &mut flights[index];
                    flight.late = true;
                    self.cluster.report(&flight.host, Report::Timeout);
                    if !flight.replaced
                        && let Verdict::Again(pause) = tries.judge(self, &source, |_| true)
                    {
                        flight.replaced = true;
                        next = Some(Instant::now() + pause);
                    }
                    continue 'tries;
                }
                Happened::Late(index, limit) => {
                    let flight = flights.remove(index);
                    limit.count(&self.cluster);
                    flight.host.counters.finish(Outcome::Timeout);
                    self.cluster.report(&flight.host, Report::Timeout);
                    (flight, Failure::TimedOut(limit))
                }
                Happened::Ended(index, ended) => 'ended: {
                    let flight = flights.remove(index);
                    let exchange = match *ended {
                        Ok(exchange) => exchange,
                        Err(error) => {
                            let failure = self.failed(&flight.host, error);
                            break 'ended (flight, failure);
                        }
                    };
                    let response = &exchange.response;
                    self.report(&flight.host, response);
                    let code = response.status();
                    let retries =
                        |plan: &crate::router::RetryPlan| plan.retries_response(code, response.headers());
                    let bad = if flight.replaced {
                        tries.plan.as_ref().is_some_and(retries)
                    } else {
                        match tries.judge(self, &source, retries) {
                            Verdict::Again(pause) => {
                                next = Some(Instant::now() + pause);
                                true
                            }
                            Verdict::Spent => true,
                            Verdict::Stands => false,
                        }
                    };
                    if bad && (next.is_some() || !flights.is_empty()) {
                        trace::end_try_of(stream, flight.attempt, trace::Ended::Response(code.as_u16()));
                        continue 'tries;
                    }
                    for other in &flights {
                        let ended = trace::Ended::Reset(ResetReason::LocalReset);
                        trace::end_try_of(stream, other.attempt, ended);
                    }
                    stream.return_to(&flight.host);
                    if let Some(limits) = &flight.limits {
                        limits.bound_body(stream);
                    }
                    return Ok(self.take(exchange));
                }
            };
            trace::end_try_of(stream, flight.attempt, failure.ended());
            if !flight.replaced
                && let Verdict::Again(pause) = tries.judge(self, &source, |plan| failure.asks(plan))
            {
                next = Some(Instant::now() + pause);
            }
            if next.is_none() && flights.is_empty() {
                return Err(failure.reply(stream));
            }
        }
    }

    fn flight(&self, host: Arc<Host>, message: http::Request<Body>) -> Flight<'r> {
        let (stream, priority) = (self.routing.stream, self.priority);
        let (target, version) = (self.target(host.clone()), stream.version);
        let upstreams = &stream.manager.ctx.upstreams;
        Flight {
            host,
            attempt: stream.info.borrow().upstream.attempts,
            exchange: Box::pin(async move { upstreams.request(&target, priority, version, message).await }),
            limits: TryLimits::new(&self.timeouts, &self.cluster),
            late: false,
            replaced: false,
        }
    }

    fn poll_next(
        &self,
        cx: &mut Context<'_>,
        flights: &mut [Flight<'_>],
        next: Option<Instant>,
        mut sleep: Pin<&mut Sleep>,
    ) -> Poll<Happened> {
        for (index, flight) in flights.iter_mut().enumerate() {
            if let Poll::Ready(ended) = flight.exchange.as_mut().poll(cx) {
                return Poll::Ready(Happened::Ended(index, Box::new(ended)));
            }
        }
        loop {
            let due = next.map(|at| (at, None));
            let late = flights.iter().enumerate().filter_map(|(index, flight)| {
                let (at, limit) = flight.limits.as_ref()?.of_hedged(self.stream(), flight.late)?;
                Some((at, Some((index, limit))))
            });
            let Some((at, what)) = late.chain(due).min_by_key(|(at, _)| *at) else { return Poll::Pending };
            if Instant::now() >= at {
                return Poll::Ready(match what {
                    None => Happened::Due,
                    Some((index, limit)) => Happened::Late(index, limit),
                });
            }
            sleep.as_mut().reset(at.into());
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
