//! Both sides over a loopback socket, and the client against a server that misbehaves.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, LocalSet};

use super::{Failure, Handle, Options, connect, serve};
use crate::budget::{Budget, Purse};
use crate::drain::Signal;
use crate::http::body::{Body, BodyError};
use crate::http::informational::Informational;
use crate::http::service::{HttpService, Refusal, Reset};
use crate::model::network::Http2Options;
use crate::telemetry::stream_info::UpstreamConnection;

struct FnService<F>(F);

impl<F, A> HttpService for FnService<F>
where
    F: Fn(Request<Body>) -> A + 'static,
    A: Future<Output = Result<Response<Body>, Reset>>,
{
    type Body = Body;

    async fn call(self: &Rc<Self>, request: Request<Body>) -> Result<Response<Body>, Reset> {
        (self.0)(request).await
    }

    fn refuse(&self, _: &Refusal) -> Response<Body> {
        unreachable!("HTTP/2 refuses by itself")
    }

    fn on_cut(&self, _: bool) {}

    fn on_read(&self, _: usize) {}

    fn on_written(&self, _: usize) {}
}

fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("nothing happened for 20 s")
    })
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

struct Served {
    handle: Handle,
    server: JoinHandle<Result<(), h2::Error>>,
    drain: Arc<Signal>,
}

fn options() -> Options {
    Options {
        http2: Http2Options { allow_connect: true, ..Http2Options::default() },
        max_header_bytes: 60 << 10,
        proxy_100_continue: true,
        idle_timeout: None,
        delayed_close: Some(Duration::from_secs(1)),
        purse: None,
    }
}

async fn handle(io: TcpStream) -> Handle {
    let local: SocketAddr = io.local_addr().unwrap();
    connect(io, UpstreamConnection::new(local, None), &Http2Options::default(), None, None).await.unwrap()
}

async fn served<F, A>(answer: F) -> Served
where
    F: Fn(Request<Body>) -> A + 'static,
    A: Future<Output = Result<Response<Body>, Reset>> + 'static,
{
    served_with(options(), answer).await
}

async fn served_with<F, A>(options: Options, answer: F) -> Served
where
    F: Fn(Request<Body>) -> A + 'static,
    A: Future<Output = Result<Response<Body>, Reset>> + 'static,
{
    let (client, io) = pair().await;
    let drain = Arc::new(Signal::default());
    let service = Rc::new(FnService(answer));
    let server = tokio::task::spawn_local(serve(io, Bytes::new(), Rc::new(options), service, drain.clone()));
    Served { handle: handle(client).await, server, drain }
}

fn get() -> Request<Body> {
    Request::get("http://a/").body(Body::Empty).unwrap()
}

/// A body that a test feeds.
fn fed() -> (mpsc::Sender<Result<Frame<Bytes>, BodyError>>, Body) {
    let (sender, mut receiver) = mpsc::channel(1);
    let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    (sender, Body::boxed(StreamBody::new(stream)))
}

#[test]
fn a_grpc_call_streams_both_ways_and_ends_with_its_status_in_trailers() {
    local(async {
        let mut served = served(|request: Request<Body>| async move {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let body = request.into_body().with_trailers(std::future::ready(Some(Ok(trailers))));
            Ok(Response::new(Body::boxed(body)))
        })
        .await;
        let (feed, body) = fed();
        let request = Request::post("http://a/s/m").header("te", "trailers").body(body).unwrap();
        let response = served.handle.exchange(request, ()).await.unwrap();
        let mut body = response.into_body();
        for text in ["one", "two"] {
            feed.send(Ok(Frame::data(Bytes::from_static(text.as_bytes())))).await.unwrap();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), text);
        }
        drop(feed);
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        drop(body);
        assert_eq!(served.handle.active(), 0);
    });
}

#[test]
fn a_stream_that_the_service_resets_is_reset_for_the_client_and_others_go_on() {
    local(async {
        let mut served = served(|request: Request<Body>| async move {
            if request.uri().path() == "/reset" { Err(Reset) } else { Ok(Response::new(Body::Empty)) }
        })
        .await;
        let reset = Request::get("http://a/reset").body(Body::Empty).unwrap();
        let failure = served.handle.exchange(reset, ()).await.unwrap_err();
        assert!(matches!(failure, Failure::Reset(h2::Reason::INTERNAL_ERROR)), "{failure}");
        assert_eq!(served.handle.exchange(get(), ()).await.unwrap().status(), StatusCode::OK);
    });
}

#[test]
fn a_draining_server_finishes_its_streams_and_then_the_connection() {
    local(async {
        let (feed, body) = fed();
        let body = RefCell::new(Some(body));
        let mut served = served(move |_| {
            let body = body.borrow_mut().take().unwrap_or_default();
            async { Ok(Response::new(body)) }
        })
        .await;
        let response = served.handle.exchange(get(), ()).await.unwrap();
        served.drain.start();
        feed.send(Ok(Frame::data(Bytes::from_static(b"late")))).await.unwrap();
        drop(feed);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "late");
        served.server.await.unwrap().unwrap();
        assert!(!served.handle.has_room());
    });
}

#[test]
fn a_response_that_says_close_ends_the_connection_after_it() {
    local(async {
        let mut served = served(|_| async {
            Ok(Response::builder().header("connection", "close").body(Body::from_bytes("bye")).unwrap())
        })
        .await;
        let response = served.handle.exchange(get(), ()).await.unwrap();
        assert!(!response.headers().contains_key("connection"));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "bye");
        served.server.await.unwrap().unwrap();
    });
}

#[test]
fn a_client_that_leaves_stops_the_work_on_its_stream() {
    local(async {
        struct OnDrop(Rc<Notify>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let (begun, stopped) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let signals = (begun.clone(), stopped.clone());
        let mut served = served(move |_| {
            let (begun, guard) = (signals.0.clone(), OnDrop(signals.1.clone()));
            async move {
                let _guard = guard;
                begun.notify_one();
                std::future::pending().await
            }
        })
        .await;
        tokio::select! {
            _ = served.handle.exchange(get(), ()) => panic!("answered"),
            () = begun.notified() => {}
        }
        stopped.notified().await;
        assert_eq!(served.handle.active(), 0);
    });
}

#[test]
fn refused_streams_and_resets_are_told_apart() {
    let failure = |reason: h2::Reason| {
        local(async move {
            let (client, io) = pair().await;
            tokio::task::spawn_local(async move {
                let mut connection = h2::server::handshake(io).await.unwrap();
                while let Some(Ok((_request, mut respond))) = connection.accept().await {
                    respond.send_reset(reason);
                }
            });
            handle(client).await.exchange(get(), ()).await.unwrap_err()
        })
    };
    let refused = failure(h2::Reason::REFUSED_STREAM);
    assert!(matches!(refused, Failure::Refused), "{refused}");
    let reset = failure(h2::Reason::ENHANCE_YOUR_CALM);
    assert!(matches!(reset, Failure::Reset(h2::Reason::ENHANCE_YOUR_CALM)), "{reset}");
}

#[test]
fn a_body_that_is_reset_midway_says_with_which_reason() {
    local(async {
        let (client, io) = pair().await;
        let answered = Rc::new(Notify::new());
        let begun = answered.clone();
        tokio::task::spawn_local(async move {
            let mut connection = h2::server::handshake(io).await.unwrap();
            while let Some(Ok((_request, mut respond))) = connection.accept().await {
                let begun = begun.clone();
                tokio::task::spawn_local(async move {
                    let mut stream = respond.send_response(Response::new(()), false).unwrap();
                    begun.notified().await;
                    stream.send_reset(h2::Reason::CANCEL);
                });
            }
        });
        let response = handle(client).await.exchange(get(), ()).await.unwrap();
        answered.notify_one();
        let error = response.into_body().collect().await.unwrap_err();
        assert_eq!(error.reset_reason(), Some(h2::Reason::CANCEL));
    });
}

#[test]
fn a_client_that_opens_and_resets_streams_without_end_is_cut_off() {
    local(async {
        let (client, io) = pair().await;
        let options = options();
        let service = Rc::new(FnService(|_| async { Ok(Response::new(Body::Empty)) }));
        let server = serve(io, Bytes::new(), Rc::new(options), service, Arc::new(Signal::default()));
        let server = tokio::task::spawn_local(server);
        let (mut sender, connection) = h2::client::handshake(client).await.unwrap();
        tokio::task::spawn_local(connection);
        // In bursts, so that the server finds streams that are reset before it accepts them.
        'attack: for _ in 0..100 {
            for _ in 0..50 {
                let Ok(ready) = sender.ready().await else { break 'attack };
                sender = ready;
                let request = Request::get("http://a/").body(()).unwrap();
                let Ok((_, mut stream)) = sender.send_request(request, false) else { break 'attack };
                stream.send_reset(h2::Reason::CANCEL);
            }
            tokio::task::yield_now().await;
        }
        assert!(server.await.unwrap().is_err());
    });
}

#[test]
fn a_slow_reader_of_a_stream_holds_its_sender_back() {
    local(async {
        let produced = Rc::new(std::cell::Cell::new(0_usize));
        let counter = produced.clone();
        let mut served = served(move |_| {
            let counter = counter.clone();
            let piece = Bytes::from(vec![b'x'; 64 << 10]);
            let stream = futures_util::stream::poll_fn(move |_| {
                counter.set(counter.get() + piece.len());
                std::task::Poll::Ready(Some(Ok::<_, BodyError>(Frame::data(piece.clone()))))
            });
            async { Ok(Response::new(Body::boxed(StreamBody::new(stream)))) }
        })
        .await;
        let response = served.handle.exchange(get(), ()).await.unwrap();
        let mut before = usize::MAX;
        while produced.get() != before {
            before = produced.get();
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        }
        assert!(before < 16 << 20, "{before} bytes were produced for a client that reads nothing");
        drop(response);
    });
}

#[test]
fn an_upgrade_crosses_http2_as_extended_connect_and_looks_like_http1_on_both_ends() {
    local(async {
        let mut served = served(|request: Request<Body>| async move {
            assert_eq!((request.method().as_str(), request.uri().path()), ("GET", "/chat"));
            assert_eq!(request.headers()["upgrade"], "websocket");
            assert_eq!(request.headers()["connection"], "upgrade");
            let answer = Response::builder().status(101).header("upgrade", "websocket");
            Ok(answer.header("connection", "upgrade").body(request.into_body()).unwrap())
        })
        .await;
        let (feed, body) = fed();
        let request = Request::get("http://a/chat").header("upgrade", "websocket");
        let request = request.header("connection", "upgrade").body(body).unwrap();
        let response = served.handle.exchange(request, ()).await.unwrap();
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["upgrade"], "websocket");
        let mut body = response.into_body();
        feed.send(Ok(Frame::data(Bytes::from_static(b"ping")))).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "ping");
        drop(feed);
        assert!(body.frame().await.is_none());
    });
}

#[test]
fn what_follows_a_connect_that_is_refused_is_not_sent() {
    local(async {
        let mut served = served(|request: Request<Body>| async move {
            assert_eq!((request.method().as_str(), request.uri().to_string()), ("CONNECT", "a:1".into()));
            Ok(Response::builder().status(403).body(Body::Empty).unwrap())
        })
        .await;
        let (feed, body) = fed();
        let request = Request::connect("a:1").body(body).unwrap();
        assert_eq!(served.handle.exchange(request, ()).await.unwrap().status(), 403);
        assert!(feed.is_closed());
    });
}

#[test]
fn early_hints_reach_the_client_before_the_answer() {
    local(async {
        let go_on = Rc::new(Notify::new());
        let hinted = go_on.clone();
        let mut served = served(move |request: Request<Body>| {
            let go_on = go_on.clone();
            async move {
                let hints = request.extensions().get::<Informational>().unwrap();
                hints.send(StatusCode::EARLY_HINTS, HeaderMap::new());
                go_on.notified().await;
                Ok(Response::new(Body::Empty))
            }
        })
        .await;
        let informational = Informational::default();
        let mut request = get();
        request.extensions_mut().insert(informational.clone());
        let mut response = std::pin::pin!(served.handle.exchange(request, ()));
        let hints = std::future::poll_fn(|cx| {
            assert!(response.as_mut().poll(cx).is_pending(), "the answer came before its hints");
            let hints = informational.take(cx.waker());
            if hints.is_empty() { std::task::Poll::Pending } else { std::task::Poll::Ready(hints) }
        });
        assert_eq!(hints.await[0].0, StatusCode::EARLY_HINTS);
        hinted.notify_one();
        assert_eq!(response.await.unwrap().status(), 200);
    });
}

#[test]
fn a_body_that_fails_at_once_does_not_take_the_head_and_what_came_before_from_the_client() {
    local(async {
        let mut served = served(|_| async {
            let frames = [Ok(Frame::data(Bytes::from_static(b"part"))), Err(BodyError::Incomplete)];
            Ok(Response::new(Body::boxed(StreamBody::new(futures_util::stream::iter(frames)))))
        })
        .await;
        let response = served.handle.exchange(get(), ()).await.unwrap();
        let mut body = response.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "part");
        assert!(body.frame().await.unwrap().is_err());
    });
}

#[test]
fn a_body_that_fails_after_a_silence_resets_its_stream() {
    local(async {
        let (feed, body) = fed();
        let body = RefCell::new(Some(body));
        let mut served = served(move |_| {
            let body = body.borrow_mut().take().unwrap_or_default();
            async { Ok(Response::new(body)) }
        })
        .await;
        let mut body = served.handle.exchange(get(), ()).await.unwrap().into_body();
        feed.send(Err(BodyError::Incomplete)).await.unwrap();
        assert!(body.frame().await.unwrap().is_err());
    });
}

#[test]
fn a_server_that_answers_in_full_and_wants_no_more_has_answered() {
    local(async {
        let (client, io) = pair().await;
        tokio::task::spawn_local(async move {
            let mut connection = h2::server::handshake(io).await.unwrap();
            while let Some(Ok((_request, mut respond))) = connection.accept().await {
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                stream.send_data(Bytes::from_static(b"full"), true).unwrap();
            }
        });
        let (feed, body) = fed();
        let request = Request::post("http://a/").body(body).unwrap();
        let response = handle(client).await.exchange(request, ()).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "full");
        // Nobody reads the rest of the request.
        feed.closed().await;
    });
}

#[test]
fn a_client_that_speaks_nonsense_is_told_so_and_closed_in_order() {
    local(async {
        let (mut client, io) = pair().await;
        let service = Rc::new(FnService(|_| async { Ok(Response::new(Body::Empty)) }));
        let server = serve(io, Bytes::new(), Rc::new(options()), service, Arc::new(Signal::default()));
        let server = tokio::task::spawn_local(server);
        client.write_all(&[b'x'; 64 << 10]).await.unwrap();
        assert!(server.await.unwrap().is_err());
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.expect("a reset took our last words from the client");
    });
}

/// A body of this many pieces of 16 KiB.
fn pieces(count: usize) -> Body {
    let piece = || Ok(Frame::data(Bytes::from(vec![7; 16 << 10])));
    Body::boxed(StreamBody::new(futures_util::stream::iter((0..count).map(move |_| piece()))))
}

/// Lets tasks run until `done`.
async fn until(done: impl Fn() -> bool) {
    while !done() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn what_a_server_receives_and_nobody_reads_counts_for_the_workload_until_it_is_read() {
    local(async {
        let budget = Arc::new(Budget::new("ns/pod", 4 << 20));
        let purse = Purse::of(&budget);
        let reading = Rc::new(Notify::new());
        let read = reading.clone();
        let options = Options { purse: Some(purse.clone()), ..options() };
        let mut served = served_with(options, move |request: Request<Body>| {
            let read = read.clone();
            async move {
                read.notified().await;
                request.into_body().collect().await.unwrap();
                Ok(Response::new(Body::Empty))
            }
        })
        .await;
        let request = Request::post("http://a/").body(pieces(40)).unwrap();
        let mut response = std::pin::pin!(served.handle.exchange(request, ()));
        // All of it is less than the stream's window.
        tokio::select! {
            _ = &mut response => panic!("answered before the body was read"),
            () = until(|| purse.used() >= 38 * (16 << 10)) => {}
        }
        reading.notify_one();
        assert_eq!(response.await.unwrap().status(), 200);
        assert_eq!(purse.used(), 0);
    });
}

#[test]
fn near_the_limit_streams_of_a_client_that_reads_nothing_are_sent_one_piece_at_a_time() {
    const STREAMS: usize = 12;
    local(async {
        let budget = Arc::new(Budget::new("ns/pod", 1 << 20));
        let purse = Purse::of(&budget);
        let options = Options { purse: Some(purse.clone()), ..options() };
        let answered = Rc::new(std::cell::Cell::new(0));
        let counter = answered.clone();
        let service = Rc::new(FnService(move |_| {
            counter.set(counter.get() + 1);
            async { Ok(Response::new(pieces(200))) }
        }));
        let (client, io) = pair().await;
        tokio::task::spawn_local(serve(io, Bytes::new(), Rc::new(options), service, Arc::default()));
        // Its windows let everything through: what is queued waits for the transport alone.
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(64 << 20).initial_connection_window_size(64 << 20);
        let (mut sender, mut connection) = builder.handshake::<_, Bytes>(client).await.unwrap();
        let responses: Vec<_> = (0..STREAMS)
            .map(|_| sender.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap().0)
            .collect();
        tokio::select! {
            end = &mut connection => panic!("{end:?}"),
            () = until(|| answered.get() == STREAMS) => {}
        }
        until(|| purse.is_pressed()).await;
        for _ in 0..1000 {
            tokio::task::yield_now().await;
            assert!(purse.used() < 5 << 18, "{} bytes are queued", purse.used());
        }
        tokio::task::spawn_local(connection);
        for response in responses {
            let mut body = response.await.unwrap().into_body();
            let mut length = 0;
            while let Some(data) = body.data().await {
                length += data.unwrap().len();
            }
            assert_eq!(length, 200 * (16 << 10));
        }
        until(|| purse.used() == 0).await;
    });
}
