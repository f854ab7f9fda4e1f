//! The client side over a loopback socket.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Home, connection, local, read_until};
use crate::http::body::{Body, BodyError};
use crate::http::h1::client::Failure;
use crate::http::informational::Informational;

fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "a").body(Body::Empty).unwrap()
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// One exchange with a server that answers with these bytes and then closes.
async fn exchange(request: Request<Body>, answer: &[u8]) -> (Result<Response<Body>, Failure>, Home) {
    let (connection, mut server) = connection().await;
    server.write_all(answer).await.unwrap();
    server.shutdown().await.unwrap();
    let home = Home::default();
    (connection.exchange(request, home.clone()).await, home)
}

#[test]
fn a_complete_answer_gives_the_connection_home_and_it_serves_again() {
    local(async {
        let (mut connection, mut server) = connection().await;
        let home = Home::default();
        for path in ["/1", "/2"] {
            let peer = async {
                let head = read_until(&mut server, "\r\n\r\n").await;
                assert_eq!(head, format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"));
                server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
            };
            let (response, ()) = tokio::join!(connection.exchange(get(path), home.clone()), peer);
            assert_eq!(text(response.unwrap()).await, "hi");
            connection = home.0.borrow_mut().take().expect("not released");
            assert!(poll_fn(|cx| Poll::Ready(connection.poll_idle(cx))).await);
        }
        assert_eq!(connection.exchanges(), 2);
        drop(server);
        poll_fn(|cx| if connection.poll_idle(cx) { Poll::Pending } else { Poll::Ready(()) }).await;
    });
}

#[test]
fn bodies_of_every_framing_are_read_to_their_end() {
    let table: [(&[u8], &str, bool); 4] = [
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\nX: y\r\n\r\n",
            "hi!",
            true,
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", "until the end", false),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", "hi", false),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi", "hi", false),
    ];
    for (answer, body, reused) in table {
        local(async {
            let (response, home) = exchange(get("/"), answer).await;
            assert_eq!(text(response.unwrap()).await, body);
            assert_eq!(home.0.borrow().is_some(), reused, "{body}");
        });
    }
}

#[test]
fn a_truncated_answer_is_an_error_and_never_a_short_body() {
    let answers: [&[u8]; 2] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhi",
    ];
    for answer in answers {
        local(async {
            let (response, home) = exchange(get("/"), answer).await;
            let error = response.unwrap().into_body().collect().await.unwrap_err();
            assert!(matches!(error, BodyError::Incomplete), "{error}");
            assert!(home.0.borrow().is_none());
        });
    }
}

#[test]
fn a_connection_that_dies_before_the_answer_tells_whether_it_is_safe_to_repeat() {
    local(async {
        let (response, _) = exchange(get("/"), b"").await;
        assert!(matches!(response, Err(Failure::Connection { untouched: true, .. })), "{response:?}");
        let (response, _) = exchange(get("/"), b"HTTP/1.1 2").await;
        assert!(matches!(response, Err(Failure::Connection { untouched: false, .. })), "{response:?}");
    });
}

#[test]
fn answers_that_two_parsers_could_read_in_two_ways_are_refused() {
    let answers: [&[u8]; 7] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhi",
        b"garbage\r\n\r\n",
    ];
    for answer in answers {
        local(async {
            let (response, _) = exchange(get("/"), answer).await;
            let shown = String::from_utf8_lossy(answer);
            assert!(matches!(response, Err(Failure::Protocol(_))), "{shown:?}: {response:?}");
        });
    }
}

#[test]
fn bytes_after_an_answer_end_the_use_of_the_connection() {
    local(async {
        let (response, home) =
            exchange(get("/"), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 ").await;
        assert_eq!(text(response.unwrap()).await, "hi");
        assert!(home.0.borrow().is_none());
    });
}

#[test]
fn interim_answers_are_passed_on_where_asked_for_and_skipped_else() {
    let answer = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    local(async {
        let (response, _) = exchange(get("/"), answer).await;
        assert_eq!(response.unwrap().status(), StatusCode::OK);
        let informational = Informational::default();
        let mut request = get("/");
        request.extensions_mut().insert(informational.clone());
        let (response, _) = exchange(request, answer).await;
        assert_eq!(response.unwrap().status(), StatusCode::OK);
        let sent = informational.take(std::task::Waker::noop());
        assert_eq!(sent[0].0, StatusCode::EARLY_HINTS);
        assert_eq!(sent[0].1["link"], "x");
    });
}

#[test]
fn a_large_upload_and_its_echo_flow_at_the_same_time() {
    local(async {
        let (connection, mut server) = connection().await;
        tokio::task::spawn_local(async move {
            let head = read_until(&mut server, "\r\n\r\n").await;
            let early = &head.as_bytes()[head.find("\r\n\r\n").unwrap() + 4..];
            server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n").await.unwrap();
            server.write_all(early).await.unwrap();
            let mut buffer = vec![0; 64 << 10];
            let mut left = (8 << 20) - early.len();
            while left > 0 {
                let length = server.read(&mut buffer).await.unwrap();
                server.write_all(&buffer[..length]).await.unwrap();
                left -= length;
            }
        });
        let body = Body::boxed(http_body_util::StreamBody::new(futures_util::stream::unfold(
            0,
            |sent| async move {
                let piece = Bytes::from(vec![b'x'; 64 << 10]);
                (sent < 128).then(|| (Ok(http_body::Frame::data(piece)), sent + 1))
            },
        )));
        let request = Request::builder().method(Method::POST).uri("/").header("content-length", 8 << 20);
        let response = connection.exchange(request.body(body).unwrap(), Home::default()).await.unwrap();
        assert_eq!(text(response).await.len(), 8 << 20);
    });
}

#[test]
fn an_answer_before_the_upload_ends_stops_the_upload_and_the_connection() {
    local(async {
        let (connection, mut server) = connection().await;
        server.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
        let body = Body::boxed(http_body_util::StreamBody::new(futures_util::stream::pending::<
            Result<http_body::Frame<Bytes>, BodyError>,
        >()));
        let home = Home::default();
        let request = Request::post("/").header("host", "a").body(body).unwrap();
        let response = connection.exchange(request, home.clone()).await.unwrap();
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(text(response).await, "no");
        assert!(home.0.borrow().is_none());
        read_until(&mut server, "\r\n\r\n").await;
        assert_eq!(server.read(&mut [0; 16]).await.unwrap(), 0);
    });
}

#[test]
fn an_upgrade_holds_its_bytes_until_it_is_accepted_and_half_closes() {
    local(async {
        let (connection, mut server) = connection().await;
        let request = Request::get("/")
            .header("host", "a")
            .header("connection", "upgrade")
            .header("upgrade", "x")
            .body(Body::from_bytes("raw"))
            .unwrap();
        let peer = async {
            let head = read_until(&mut server, "\r\n\r\n").await;
            assert!(head.ends_with("\r\n\r\n"), "{head}");
            let answer =
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello";
            server.write_all(answer).await.unwrap();
            let mut sent = String::new();
            server.read_to_string(&mut sent).await.unwrap();
            assert_eq!(sent, "raw");
            server.write_all(b" bye").await.unwrap();
            drop(server);
        };
        let ours = async {
            let response = connection.exchange(request, Home::default()).await.unwrap();
            assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
            text(response).await
        };
        assert_eq!(tokio::join!(ours, peer).0, "hello bye");
    });
}
