//! Statistics of MongoDB (`envoy.filters.network.mongo_proxy`): listens to both directions of a connection and counts
//! operations under Envoy's names. Bytes pass as they are; what cannot be read ends the listening, not the connection.

pub mod wire;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use self::wire::{Decoder, Kind, Op, Query, Reply, Subject};
use super::Downstream;
use crate::model::mongo::MongoProxy;
use crate::model::network::NetworkFilter;
use crate::stream::{Bare, Stream};

/// Queries of one connection that are remembered until their replies.
const MAX_ACTIVE: usize = 1024;
const REPLY_CURSOR_NOT_FOUND: u32 = 1;
const REPLY_QUERY_FAILURE: u32 = 2;
/// Bits of a query's flags.
const FLAGS: [(u32, &str); 5] = [
    (1 << 1, "op_query_tailable_cursor"),
    (1 << 4, "op_query_no_cursor_timeout"),
    (1 << 5, "op_query_await_data"),
    (1 << 6, "op_query_exhaust"),
    (1 << 7, "op_query_partial"),
];

/// The filter of a chain, if it has one.
pub fn of(filters: &[NetworkFilter]) -> Option<&Arc<MongoProxy>> {
    filters.iter().find_map(|filter| match filter {
        NetworkFilter::MongoProxy(own) => Some(own),
        _ => None,
    })
}

/// A client's connection that is listened to.
pub struct Sniffed<I> {
    inner: I,
    ears: Ears,
    /// A delay that was drawn: what was read waits for it.
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
    held: Vec<u8>,
}

/// What is heard on one connection.
struct Ears {
    own: Arc<MongoProxy>,
    requests: Decoder,
    replies: Decoder,
    /// Something could not be read: the rest passes unheard.
    deaf: bool,
    active: Vec<Active>,
    /// The client closed first.
    client_left: bool,
}

/// A query without its reply.
struct Active {
    id: i32,
    since: Instant,
    of: String,
}

impl<I> Sniffed<I> {
    pub fn new(own: Arc<MongoProxy>, inner: I) -> Self {
        let ears = Ears {
            own,
            requests: Decoder::default(),
            replies: Decoder::default(),
            deaf: false,
            active: Vec::new(),
            client_left: false,
        };
        Self { inner, ears, pause: None, held: Vec::new() }
    }
}

impl Ears {
    fn count(&self, rest: &str) {
        if let Some(counter) = self.own.stats.counter(rest) {
            counter.inc();
        }
    }

    fn hear(&mut self, from_client: bool, bytes: &[u8]) {
        if self.deaf || bytes.is_empty() {
            return;
        }
        let mut heard = Vec::new();
        let decoder = if from_client { &mut self.requests } else { &mut self.replies };
        let outcome = decoder.feed(bytes, &mut |op| heard.push(op));
        for op in heard {
            self.note(op);
        }
        if outcome.is_err() {
            self.count("decoding_error");
            self.deaf = true;
        }
    }

    fn note(&mut self, op: Op) {
        match op {
            Op::Insert => self.count("op_insert"),
            Op::GetMore => self.count("op_get_more"),
            Op::KillCursors => self.count("op_kill_cursors"),
            Op::Command => self.count("op_command"),
            Op::CommandReply => self.count("op_command_reply"),
            Op::Query(query) => self.note_query(query),
            Op::Reply(reply) => self.note_reply(&reply),
        }
    }

    fn note_query(&mut self, query: Query) {
        self.count("op_query");
        for (bit, name) in FLAGS {
            if query.flags & bit != 0 {
                self.count(name);
            }
        }
        let of = match query.of {
            Subject::Command(name) => {
                let known = self.own.commands.contains(&name);
                let name = if known { name.as_str() } else { "unknown_command" };
                self.count(&format!("cmd.{name}.total"));
                format!("cmd.{name}")
            }
            Subject::Collection { name, kind } => {
                if !query.bounded {
                    self.count("op_query_no_max_time");
                }
                let of = format!("collection.{name}.query");
                self.count(&format!("{of}.total"));
                match kind {
                    Kind::One => {}
                    Kind::Some => {
                        self.count("op_query_multi_get");
                        self.count(&format!("{of}.multi_get"));
                    }
                    Kind::Any => {
                        self.count("op_query_scatter_get");
                        self.count(&format!("{of}.scatter_get"));
                    }
                }
                of
            }
        };
        if self.active.len() < MAX_ACTIVE {
            self.own.active.inc();
            self.active.push(Active { id: query.id, since: Instant::now(), of });
        }
    }

    fn note_reply(&mut self, reply: &Reply) {
        self.count("op_reply");
        for (set, name) in [
            (reply.flags & REPLY_CURSOR_NOT_FOUND != 0, "op_reply_cursor_not_found"),
            (reply.flags & REPLY_QUERY_FAILURE != 0, "op_reply_query_failure"),
            (reply.cursor != 0, "op_reply_valid_cursor"),
        ] {
            if set {
                self.count(name);
            }
        }
        let Some(at) = self.active.iter().position(|active| active.id == reply.to) else { return };
        let active = self.active.remove(at);
        self.own.active.dec();
        let took = u64::try_from(active.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        for (name, value) in [
            ("reply_num_docs", u64::from(reply.documents)),
            ("reply_size", reply.bytes),
            ("reply_time_ms", took),
        ] {
            if let Some(histogram) = self.own.stats.histogram(&format!("{}.{name}", active.of)) {
                histogram.record(value);
            }
        }
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        if self.active.is_empty() {
            return;
        }
        self.own.active.sub(self.active.len() as u64);
        let who = if self.client_left { "remote" } else { "local" };
        self.count(&format!("cx_destroy_{who}_with_active_rq"));
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Sniffed<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        if !this.held.is_empty() {
            let taken = this.held.len().min(buf.remaining());
            buf.put_slice(&this.held[..taken]);
            this.held.drain(..taken);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        this.ears.client_left |= read.is_empty() && buf.remaining() > 0;
        this.ears.hear(true, read);
        if let Some(delay) = this.ears.own.delay.as_ref().filter(|_| !read.is_empty())
            && let Some(pause) = delay.fixed.as_ref().map(|fixed| Duration::from_millis(fixed.now()))
            && delay.share.drawn()
        {
            this.ears.count("delays_injected");
            this.held = read.to_vec();
            buf.set_filled(before);
            this.pause = Some(Box::pin(tokio::time::sleep(pause)));
            return self.poll_read(cx, buf);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Sniffed<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, data))?;
        self.ears.hear(false, &data[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<I> Bare for Sniffed<I> {
    /// Every byte must pass here.
    fn bare(&self) -> Option<&TcpStream> {
        None
    }
}

impl<I: Downstream> Downstream for Sniffed<I> {
    fn transport(&self) -> &Stream {
        self.inner.transport()
    }

    fn transport_mut(&mut self) -> &mut Stream {
        self.inner.transport_mut()
    }

    fn is_plain(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::wire::tests::{query, reply};
    use super::*;
    use crate::model::http_filter::Delay;
    use crate::model::mongo::MongoStats;
    use crate::runtime::Setting;
    use crate::telemetry::stats::{Query as StatsQuery, Store, Value};

    fn own(store: &Store, delay: Option<Delay>) -> Arc<MongoProxy> {
        let stats =
            MongoStats { custom: store.custom().clone(), label: "p".to_owned(), held: Default::default() };
        let active = store.custom().gauge("mongo.p.op_query_active", || stats.tags("op_query_active"));
        Arc::new(MongoProxy { commands: vec!["insert".to_owned()], delay, active, stats })
    }

    fn counted(store: &Store) -> Vec<(String, u64)> {
        let used = StatsQuery { used_only: true, ..StatsQuery::default() };
        let all = store.samples(&used).into_iter().filter(|sample| sample.name.starts_with("mongo."));
        all.map(|sample| {
            let value = match sample.value {
                Value::Counter(value) | Value::Gauge(value) => value,
                Value::Histogram { cumulative, .. } => cumulative.count(),
            };
            (sample.name.trim_start_matches("mongo.p.").to_owned(), value)
        })
        .collect()
    }

    #[tokio::test]
    async fn queries_and_their_replies_are_counted_and_pass_unchanged() {
        let store = Store::default();
        let (mut client, server) = tokio::io::duplex(4096);
        let filter = own(&store, None);
        let mut sniffed = Sniffed::new(filter.clone(), server);
        let asked = [query(7, 2, "db.books", &[]), query(8, 0, "db.$cmd", b"\x10ping\0\x01\0\0\0")].concat();
        client.write_all(&asked).await.unwrap();
        let mut read = vec![0; asked.len()];
        sniffed.read_exact(&mut read).await.unwrap();
        assert_eq!(read, asked);
        sniffed.write_all(&reply(7, 0, 5)).await.unwrap();
        let mut names: Vec<_> =
            counted(&store).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "cmd.unknown_command.total=1",
                "collection.books.query.reply_num_docs=1",
                "collection.books.query.reply_size=1",
                "collection.books.query.reply_time_ms=1",
                "collection.books.query.scatter_get=1",
                "collection.books.query.total=1",
                "op_query=2",
                "op_query_active=1",
                "op_query_no_max_time=1",
                "op_query_scatter_get=1",
                "op_query_tailable_cursor=1",
                "op_reply=1",
                "op_reply_valid_cursor=1",
            ]
        );
        drop(sniffed);
        let left = counted(&store);
        assert!(left.contains(&("cx_destroy_local_with_active_rq".to_owned(), 1)), "{left:?}");
        assert!(
            left.contains(&("op_query_active".to_owned(), 0))
                || !left.iter().any(|(n, _)| n == "op_query_active")
        );
    }

    #[tokio::test]
    async fn what_is_not_mongodb_passes_and_is_counted_once() {
        let store = Store::default();
        let (mut client, server) = tokio::io::duplex(4096);
        let mut sniffed = Sniffed::new(own(&store, None), server);
        for _ in 0..2 {
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut read = [0; 27];
            sniffed.read_exact(&mut read).await.unwrap();
            assert!(read.starts_with(b"GET / HTTP/1.1"));
        }
        assert_eq!(counted(&store), [("decoding_error".to_owned(), 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_holds_what_the_client_sends() {
        let store = Store::default();
        let delay = Delay { fixed: Some(Setting::new(3_000, "")), share: Setting::new((100, 100), "") };
        let (mut client, server) = tokio::io::duplex(4096);
        let mut sniffed = Sniffed::new(own(&store, Some(delay)), server);
        let asked = query(7, 0, "db.books", &[]);
        client.write_all(&asked).await.unwrap();
        let begin = tokio::time::Instant::now();
        let mut read = vec![0; asked.len()];
        sniffed.read_exact(&mut read).await.unwrap();
        assert_eq!((read, begin.elapsed().as_secs()), (asked, 3));
        assert!(counted(&store).contains(&("delays_injected".to_owned(), 1)));
    }
}
