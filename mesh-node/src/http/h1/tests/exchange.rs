//! The server side over a loopback socket.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, mpsc};

use super::support::{ask, echo, local, read_all, read_until, served};
use crate::http::body::{Body, BodyError};
use crate::http::h1::server::{End, Options};

/// A body that a test feeds.
fn fed() -> (mpsc::Sender<Result<Frame<Bytes>, BodyError>>, Body) {
    let (sender, mut receiver) = mpsc::channel(1);
    let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    (sender, Body::boxed(StreamBody::new(stream)))
}

fn data(text: &'static str) -> Result<Frame<Bytes>, BodyError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

#[test]
fn requests_on_one_connection_are_answered_in_order_even_when_sent_at_once() {
    let requests =
        b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
        GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let (answer, end) = local(ask(Options::default(), requests));
    assert_eq!(
        answer,
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nGET /1 a HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n\
         POST /2 a abcHTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9\r\n\r\nGET /3 a "
    );
    assert!(matches!(end, End::Finished), "{end:?}");
}

#[test]
fn a_refused_request_gets_its_status_and_the_connection_closes() {
    let (answer, end) = local(ask(Options::default(), b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"));
    assert_eq!(
        answer,
        "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 11\r\n\r\nBad Request"
    );
    assert!(matches!(end, End::Refused("http1.codec_error")), "{end:?}");
}

#[test]
fn a_broken_chunk_is_refused_while_the_service_reads_it() {
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n";
    let (answer, _) = local(ask(Options::default(), request));
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
fn chunked_bodies_arrive_whole_with_extensions_and_trailers_read_over() {
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n\
        00a\r\n0123456789\r\n0\r\nX-T: v\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let (answer, _) = local(ask(Options::default(), request));
    assert!(answer.contains("POST / a abc0123456789HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.ends_with("GET /2 a "), "{answer}");
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it_before_the_answer() {
    local(async {
        let mut served = served(Options::default(), echo).await;
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
        served.client.write_all(head).await.unwrap();
        assert_eq!(read_until(&mut served.client, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        served.client.write_all(b"abc").await.unwrap();
        assert!(read_until(&mut served.client, "abc").await.starts_with("HTTP/1.1 200 OK"));
    });
}

#[test]
fn a_slow_head_is_answered_with_408() {
    let options = Options {
        headers_timeout: Some(Duration::from_millis(20)),
        delayed_close: None,
        ..Options::default()
    };
    let (answer, end) = local(ask(options, b"GET / HTTP/1.1\r\nHost:"));
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    assert!(answer.ends_with("request header timeout"), "{answer}");
    assert!(matches!(end, End::Refused("request_header_timeout")), "{end:?}");
}

#[test]
fn an_idle_connection_closes_after_its_timeout_without_a_word() {
    let options = Options { idle_timeout: Some(Duration::from_millis(20)), ..Options::default() };
    let (answer, end) = local(ask(options, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert!(answer.ends_with("GET / a "), "{answer}");
    assert!(matches!(end, End::IdleTimeout), "{end:?}");
}

#[test]
fn a_draining_server_answers_once_more_and_says_close() {
    local(async {
        let mut served = served(Options::default(), echo).await;
        served.client.write_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(!read_until(&mut served.client, "GET /1 a ").await.contains("close"));
        served.drain.start();
        served.client.write_all(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(read_all(&mut served.client).await.contains("connection: close"));
        assert!(matches!(served.server.await.unwrap(), End::Finished));
    });
}

#[test]
fn an_idle_connection_of_a_draining_server_closes_after_the_grace() {
    local(async {
        let options = Options { drain_timeout: Duration::from_millis(10), ..Options::default() };
        let mut served = served(options, echo).await;
        served.drain.start();
        assert_eq!(read_all(&mut served.client).await, "");
        assert!(matches!(served.server.await.unwrap(), End::Finished));
    });
}

#[test]
fn an_answer_before_the_body_is_read_reaches_the_client_and_closes() {
    local(async {
        let mut served =
            served(Options::default(), |_| async { Ok(Response::new(Body::from_bytes("no"))) }).await;
        served
            .client
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
            .await
            .unwrap();
        // More than socket buffers hold: the answer is not lost to a reset.
        let (mut read, mut write) = served.client.split();
        let _ = write.write_all(&vec![b'x'; 1_000_000]).await;
        let mut answer = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut read, &mut answer).await.unwrap();
        assert!(answer.contains("connection: close") && answer.ends_with("no"), "{answer}");
    });
}

#[test]
fn a_streamed_answer_arrives_piece_by_piece_and_ends_with_its_trailers() {
    local(async {
        let (feed, body) = fed();
        let body = std::cell::RefCell::new(Some(body));
        let options = Options { trailers: true, ..Options::default() };
        let mut served = served(options, move |_| {
            let response = Response::new(body.borrow_mut().take().unwrap());
            async { Ok(response) }
        })
        .await;
        served.client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        feed.send(data("one")).await.unwrap();
        let first = read_until(&mut served.client, "3\r\none\r\n").await;
        assert!(first.starts_with("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"), "{first}");
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        feed.send(Ok(Frame::trailers(trailers))).await.unwrap();
        assert_eq!(read_until(&mut served.client, "\r\n\r\n").await, "0\r\ngrpc-status: 0\r\n\r\n");
    });
}

#[test]
fn an_answer_that_fails_midway_is_cut_and_never_looks_complete() {
    local(async {
        let (feed, body) = fed();
        let body = std::cell::RefCell::new(Some(body));
        let mut served = served(Options::default(), move |_| {
            let response = Response::new(body.borrow_mut().take().unwrap());
            async { Ok(response) }
        })
        .await;
        served.client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        feed.send(data("one")).await.unwrap();
        feed.send(Err(BodyError::Incomplete)).await.unwrap();
        let answer = read_all(&mut served.client).await;
        assert!(answer.ends_with("3\r\none\r\n"), "{answer}");
        assert!(matches!(served.server.await.unwrap(), End::Reset));
    });
}

#[test]
fn a_client_that_leaves_stops_the_work_on_its_request() {
    local(async {
        struct OnDrop(Rc<Notify>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let stopped = Rc::new(Notify::new());
        let guard = stopped.clone();
        let mut served = served(Options::default(), move |_| {
            let guard = OnDrop(guard.clone());
            async move {
                let _guard = guard;
                std::future::pending().await
            }
        })
        .await;
        served.client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        drop(served.client);
        stopped.notified().await;
        assert!(matches!(served.server.await.unwrap(), End::Abandoned));
    });
}

#[test]
fn a_slow_reader_holds_the_sender_back_instead_of_filling_memory() {
    local(async {
        let polled = Rc::new(std::cell::Cell::new(0_usize));
        let counter = polled.clone();
        let mut served = served(Options::default(), move |_| {
            let counter = counter.clone();
            let piece = Bytes::from(vec![b'x'; 64 << 10]);
            let stream = futures_util::stream::poll_fn(move |_| {
                counter.set(counter.get() + piece.len());
                std::task::Poll::Ready(Some(Ok::<_, BodyError>(Frame::data(piece.clone()))))
            });
            async { Ok(Response::new(Body::boxed(StreamBody::new(stream)))) }
        })
        .await;
        served.client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        read_until(&mut served.client, "\r\n\r\n").await;
        // Until the server makes no progress: the kernel's buffers are full.
        let mut before = 0;
        while polled.get() != before {
            before = polled.get();
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        }
        assert!(before < 64 << 20, "{before} bytes were produced for a client that reads nothing");
    });
}

#[test]
fn an_accepted_upgrade_carries_raw_bytes_both_ways() {
    local(async {
        let mut served = served(Options::default(), |request| async move {
            let response = Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "upgrade")
                .header("upgrade", "echo")
                .body(Body::boxed(request.into_body()));
            Ok(response.unwrap())
        })
        .await;
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly";
        served.client.write_all(head).await.unwrap();
        let answer = read_until(&mut served.client, "early").await;
        assert_eq!(
            answer,
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nearly"
        );
        served.client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(read_until(&mut served.client, "\r\n\r\n").await, "GET / HTTP/1.1\r\n\r\n");
        served.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut served.client).await, "");
    });
}

#[test]
fn a_refused_upgrade_closes_because_what_follows_may_be_anything() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    let (answer, _) = local(async {
        let mut served = served(Options::default(), |_| async { Ok(Response::new(Body::Empty)) }).await;
        served.client.write_all(head).await.unwrap();
        (read_all(&mut served.client).await, ())
    });
    // The upgrade was accepted by no 101: 200 is an answer like any other.
    assert_eq!(answer, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
}

#[test]
fn answers_without_a_body_say_so() {
    let answer = |status: u16, method: &'static str| {
        local(async move {
            let mut served = served(Options::default(), move |_| async move {
                let mut response = Response::new(Body::from_bytes("hi"));
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                Ok(response)
            })
            .await;
            let head = format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            served.client.write_all(head.as_bytes()).await.unwrap();
            read_all(&mut served.client).await
        })
    };
    assert!(answer(200, "HEAD").ends_with("content-length: 2\r\n\r\n"));
    let empty = local(async {
        let mut served = served(Options::default(), |_| async { Ok(Response::new(Body::Empty)) }).await;
        served.client.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        read_all(&mut served.client).await
    });
    assert!(empty.ends_with("transfer-encoding: chunked\r\n\r\n"), "{empty}");
    assert!(answer(204, "GET").ends_with("204 No Content\r\nconnection: close\r\n\r\n"));
    assert!(answer(304, "GET").ends_with("304 Not Modified\r\nconnection: close\r\n\r\n"));
}

#[test]
fn a_body_may_still_be_collected_when_it_came_with_the_head() {
    local(async {
        let mut served = served(Options::default(), |request| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Ok(Response::new(Body::from_bytes(body)))
        })
        .await;
        served.client.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        assert!(read_until(&mut served.client, "ok").await.contains("content-length: 2"));
    });
}
