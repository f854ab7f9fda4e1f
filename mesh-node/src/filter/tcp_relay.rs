//! The longest part of a proxied TCP connection: its bytes are copied until it ends. One allocation, apart from
//! all that led here, because most of the connections of a node are here most of the time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use super::Downstream;
use super::istio_tcp::Series;
use super::network::Counts;
use super::tcp_proxy::log;
use crate::budget::Purse;
use crate::cluster::ConnectionGuard;
use crate::model::listener::Direction;
use crate::model::network::TcpProxy;
use crate::model::workload::{HalfOfConnection, HandOff};
use crate::resting::Rest;
use crate::stream::Stream;
use crate::telemetry::peer::Peer;
use crate::telemetry::stream_info::{
    ConnectionInfo, ResponseFlags, StreamInfo, UpstreamConnection, UpstreamInfo,
};
use crate::upstream::copy::{End, Meters};
use crate::upstream::pair::{Limits, Pair};
use crate::upstream::{Beside, Connection, UpstreamStream};

/// Copies to the end of a connection.
pub type Copying = Pin<Box<dyn Future<Output = ()>>>;

/// The open way to a host.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) stream: UpstreamStream,
    pub(super) facts: Arc<UpstreamConnection>,
    /// A tunnel has none: the connection around it counts.
    pub(super) guard: Option<ConnectionGuard>,
}

impl From<Connection> for Way {
    fn from(connection: Connection) -> Self {
        let Connection { stream, facts, guard, .. } = connection;
        Self { stream, facts, guard: Some(guard) }
    }
}

/// A connection whose bytes are copied. Both streams, and all that is said of it at its end.
pub(super) struct Relay<I> {
    /// While the applications need no copy between them.
    rest: Option<Rest>,
    config: Arc<TcpProxy>,
    io: I,
    upstream: UpstreamStream,
    pair: Pair,
    series: Option<Series>,
    /// Count it for as long as it lives.
    _counted: (Option<ConnectionGuard>, Counts),
    /// Taken at the end.
    facts: Option<Facts>,
}

/// The facts of a stream as far as a TCP stream has them while it runs.
struct Facts {
    connection: Arc<ConnectionInfo>,
    start: Instant,
    start_wall: SystemTime,
    flags: ResponseFlags,
    upstream: UpstreamInfo,
    peer: Option<Arc<Peer>>,
}

impl Facts {
    fn of(stream: StreamInfo) -> Self {
        let StreamInfo { connection, start, start_wall, flags, upstream, peer, .. } = stream;
        Self { connection, start, start_wall, flags, upstream, peer }
    }

    fn into_stream(self) -> StreamInfo {
        let Self { connection, start, start_wall, flags, upstream, peer } = self;
        StreamInfo { start, start_wall, flags, upstream, peer, ..StreamInfo::new(connection) }
    }
}

impl<I: Downstream> Relay<I> {
    pub(super) fn new(
        config: Arc<TcpProxy>,
        stream: StreamInfo,
        io: I,
        way: Way,
        series: Option<Series>,
        counts: Counts,
    ) -> Self {
        let info = &stream.connection;
        let purse = info.workload.as_ref().map(|workload| Purse::of(&workload.limits.buffers));
        let hand_off = hand_off(&stream, &io, &way.stream);
        let beside = hand_off.map(|hand_off| Beside::new(hand_off, info.drain.clone()));
        let limits =
            Limits { idle: config.idle_timeout, duration: config.max_downstream_connection_duration };
        let pair = Pair::new(limits, purse, beside);
        let Way { stream: upstream, guard, .. } = way;
        let facts = Some(Facts::of(stream));
        Self { rest: None, config, io, upstream, pair, series, _counted: (guard, counts), facts }
    }

    /// Lets each side know how the other ended, and logs the connection.
    fn end(&mut self, end: End) {
        let Some(mut stream) = self.facts.take().map(Facts::into_stream) else { return };
        let stats = &self.config.stats;
        let moved = self.pair.finish(meters(&self.config, self.series.as_ref()));
        stream.bytes_received = moved.received;
        stream.bytes_sent = moved.sent;
        match end {
            End::Finished => {}
            End::Idle => {
                stats.idle_timeout.inc();
                stream.flags.set(ResponseFlags::STREAM_IDLE_TIMEOUT);
                stream.connection_termination_details = Some("tcp_session_idle_timeout".into());
            }
            End::Downstream(error) => {
                stream.flags.set(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
                pass_reset_on(&error, self.upstream.transport());
            }
            End::Upstream(error) => {
                stream.flags.set(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION);
                pass_reset_on(&error, self.io.transport());
            }
            End::Duration => {
                stats.max_downstream_connection_duration.inc();
                stream.flags.set(ResponseFlags::DURATION_TIMEOUT);
                stream.connection_termination_details = Some("max_downstream_connection_duration".into());
            }
        }
        self.series = None;
        log(&self.config, &mut stream);
    }
}

impl<I: Downstream> Future for Relay<I> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let end = match this.wake(cx) {
            Err(error) => End::Downstream(error),
            Ok(false) => {
                let ended = this.pair.look(meters(&this.config, this.series.as_ref()));
                let Some(end) = ended else {
                    this.rest.iter().for_each(|rest| rest.until(this.pair.next_alarm()));
                    return Poll::Pending;
                };
                end
            }
            Ok(true) => {
                let meters = meters(&this.config, this.series.as_ref());
                match this.pair.poll(cx, &mut this.io, &mut this.upstream, meters) {
                    Poll::Ready(end) => end,
                    Poll::Pending if !this.pair.may_rest() => return Poll::Pending,
                    Poll::Pending => match this.rest(cx) {
                        Ok(()) => return Poll::Pending,
                        Err(error) => End::Downstream(error),
                    },
                }
            }
        };
        this.end(end);
        Poll::Ready(())
    }
}

impl<I: Downstream> Relay<I> {
    /// Both sockets rest until something comes to one of them.
    fn rest(&mut self, cx: &Context<'_>) -> io::Result<()> {
        self.streams().into_iter().try_for_each(Stream::rest)?;
        let due = self.pair.lay_down();
        match self.sockets().map(|sockets| Rest::begin(sockets, due, cx)) {
            Some(Ok(rest)) => {
                self.rest = Some(rest);
                return Ok(());
            }
            Some(Err(error)) => tracing::debug!(%error, "a connection does not rest"),
            None => {}
        }
        self.pair.stirred();
        cx.waker().wake_by_ref();
        self.streams().into_iter().try_for_each(Stream::wake)
    }

    /// Whether the sockets are, or are again, to be read and written.
    fn wake(&mut self, cx: &Context<'_>) -> io::Result<bool> {
        match &self.rest {
            None => return Ok(true),
            Some(rest) if rest.poll(cx).is_pending() => return Ok(false),
            Some(_) => {}
        }
        if let Some((rest, sockets)) = self.rest.take().zip(self.sockets()) {
            rest.end(sockets);
        }
        self.streams().into_iter().try_for_each(Stream::wake)?;
        self.pair.stirred();
        Ok(true)
    }

    fn streams(&mut self) -> [&mut Stream; 2] {
        [self.io.transport_mut(), self.upstream.transport_mut()]
    }

    fn sockets(&self) -> Option<[BorrowedFd<'_>; 2]> {
        self.io.transport().descriptor().zip(self.upstream.transport().descriptor()).map(<[_; 2]>::from)
    }
}

fn meters<'a>(config: &'a TcpProxy, series: Option<&'a Series>) -> Meters<'a> {
    let stats = &config.stats;
    Meters {
        received: [Some(&stats.downstream_cx_rx_bytes_total), series.and_then(|s| s.received.as_deref())],
        sent: [Some(&stats.downstream_cx_tx_bytes_total), series.and_then(|s| s.sent.as_deref())],
    }
}

/// What lets the two applications of the connection send each other bytes past the proxy: all filters before this
/// one have decided, and this one looks at no byte.
fn hand_off<I: Downstream>(
    stream: &StreamInfo,
    io: &I,
    upstream: &UpstreamStream,
) -> Option<Box<dyn HandOff>> {
    let workload = stream.connection.workload.as_ref()?;
    let plain = io.is_plain() && upstream.is_plain();
    let sockets = match [io.transport().socket(), upstream.transport().socket()] {
        [Some(client), Some(endpoint)] if plain => Some([client.as_fd(), endpoint.as_fd()]),
        _ => None,
    };
    let inbound = stream.connection.direction == Direction::Inbound;
    workload.sockets.hand_off(&HalfOfConnection { inbound, plain: sockets })
}

/// A reset on one side is a reset on the other: without a proxy the peer would have seen one.
fn pass_reset_on(error: &io::Error, other: &Stream) {
    if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
        && let Err(error) = other.abort()
    {
        tracing::debug!(%error, "reset could not be passed on");
    }
}
