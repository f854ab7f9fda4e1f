//! What is refused, and with which status: a request that two parsers could read in two ways gets no further.

use bytes::BytesMut;
use http::{HeaderMap, Version};

use crate::http::h1::parse::{self, Framing, HeadError, Limits, Progress, RequestHead};

fn request(bytes: &[u8]) -> Result<Option<RequestHead>, HeadError> {
    request_with(bytes, &Limits::default())
}

fn request_with(bytes: &[u8], limits: &Limits) -> Result<Option<RequestHead>, HeadError> {
    parse::request(&mut BytesMut::from(bytes), &mut Progress::default(), limits, &mut HeaderMap::new())
}

/// A request head with `lines` after the host.
fn post(lines: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").into_bytes()
}

#[test]
fn smuggling_shapes_are_refused_with_the_status_and_details_of_envoy() {
    use HeadError as E;
    let table: &[(&str, Vec<u8>, E)] = &[
        (
            "length and coding",
            post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"),
            E::LengthAndChunked,
        ),
        ("two equal lengths", post("Content-Length: 4\r\nContent-Length: 4\r\n"), E::Syntax),
        ("two lengths", post("Content-Length: 4\r\nContent-Length: 5\r\n"), E::Syntax),
        ("a list of lengths", post("Content-Length: 4, 4\r\n"), E::Syntax),
        ("a signed length", post("Content-Length: +4\r\n"), E::Syntax),
        ("an empty length", post("Content-Length: \r\n"), E::Syntax),
        ("an endless length", post("Content-Length: 99999999999999999999\r\n"), E::Syntax),
        ("a coding before chunked", post("Transfer-Encoding: gzip, chunked\r\n"), E::TransferEncoding),
        ("another coding", post("Transfer-Encoding: gzip\r\n"), E::TransferEncoding),
        ("identity", post("Transfer-Encoding: identity\r\n"), E::TransferEncoding),
        ("nearly chunked", post("Transfer-Encoding: xchunked\r\n"), E::TransferEncoding),
        (
            "chunked twice",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            E::TransferEncoding,
        ),
        ("a vertical tab", post("Transfer-Encoding: \x0bchunked\r\n"), E::Characters),
        ("bare line feeds", b"GET / HTTP/1.1\nHost: a\n\n".to_vec(), E::Syntax),
        ("one bare line feed", post("X: y\nZ: w\r\n"), E::Syntax),
        ("a bare carriage return", post("X: y\rZ: w\r\n"), E::Characters),
        ("a folded line", post("X: y\r\n z\r\n"), E::Syntax),
        ("a folded first line", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n".to_vec(), E::Syntax),
        ("a space before the colon", post("X : y\r\n"), E::Syntax),
        ("no colon", post("Xy\r\n"), E::Syntax),
        ("no name", post(": y\r\n"), E::Syntax),
        ("a bad name", post("X(y): z\r\n"), E::Syntax),
        ("a zero byte", post("X: y\0z\r\n"), E::Characters),
        ("a control byte", post("X: y\x01z\r\n"), E::Characters),
        ("a delete byte", post("X: y\x7fz\r\n"), E::Characters),
        ("no host", b"GET / HTTP/1.1\r\n\r\n".to_vec(), E::MissingHost),
        ("two hosts", post("Host: b\r\n"), E::Authority),
        ("a host with a space", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_vec(), E::Authority),
        ("a host with a slash", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_vec(), E::Authority),
        ("an unknown method", b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), E::Syntax),
        ("a lower-case method", b"get / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), E::Syntax),
        ("not HTTP", b"garbage\r\n\r\n".to_vec(), E::Syntax),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), E::Syntax),
        ("another version", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n".to_vec(), E::Version),
        ("a future version", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n".to_vec(), E::Version),
        ("another protocol", b"GET / HTTQ/1.1\r\nHost: a\r\n\r\n".to_vec(), E::Syntax),
        ("HTTP/1.0", b"GET / HTTP/1.0\r\nHost: a\r\n\r\n".to_vec(), E::Version),
        ("HTTP/0.9", b"GET /\r\n\r\n".to_vec(), E::Version),
        ("two spaces", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), E::Syntax),
        ("a relative target", b"GET x HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), E::Syntax),
        ("a target without host", b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), E::Target),
        ("another scheme", b"GET ftp://b/x HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), E::Scheme),
        ("an asterisk", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), E::Target),
        ("CONNECT to a path", b"CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), E::Target),
        ("a fragment", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), E::Fragment),
        ("a path that is not ASCII", b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), E::Syntax),
        ("many headers", post(&"X: y\r\n".repeat(101)), E::TooMany),
        ("a large header", post(&format!("X: {}\r\n", "y".repeat(70_000))), E::TooLarge),
    ];
    for (name, bytes, expected) in table {
        assert_eq!(request(bytes).map(|head| head.map(|head| head.uri)), Err(*expected), "{name}");
    }
    let statuses = [
        (E::LengthAndChunked, 400),
        (E::TransferEncoding, 501),
        (E::TooMany, 431),
        (E::TooLarge, 431),
        (E::Version, 426),
    ];
    for (error, status) in statuses {
        assert_eq!(error.refusal().status.as_u16(), status, "{error}");
    }
}

#[test]
fn ordinary_requests_are_read_whole_and_byte_by_byte() {
    let bytes = post("Content-Length: 3\r\nX-Two: 1\r\nX-Two: é\r\n");
    let whole = request(&bytes).unwrap().unwrap();
    assert_eq!(whole.framing, Framing::Length(3));
    assert_eq!(whole.headers.get_all("x-two").iter().count(), 2);

    let (mut buffer, mut progress) = (BytesMut::new(), Progress::default());
    for (at, byte) in bytes.iter().enumerate() {
        buffer.extend_from_slice(&[*byte]);
        let head =
            parse::request(&mut buffer, &mut progress, &Limits::default(), &mut HeaderMap::new()).unwrap();
        assert_eq!(head.is_some(), at + 1 == bytes.len());
        if let Some(head) = head {
            assert_eq!(head.headers, whole.headers);
        }
    }
    assert!(buffer.is_empty());
}

#[test]
fn request_targets_of_all_four_forms_reach_the_service() {
    let uri = |line: &str| {
        let head = request(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap().unwrap();
        (head.uri.to_string(), head.headers["host"].to_str().unwrap().to_owned(), head.upgrade)
    };
    assert_eq!(uri("GET /x?y"), ("/x?y".into(), "a".into(), false));
    assert_eq!(uri("GET http://b:80/x?y"), ("http://b:80/x?y".into(), "b:80".into(), false));
    assert_eq!(uri("OPTIONS *"), ("*".into(), "a".into(), false));
    assert_eq!(uri("CONNECT b:80"), ("b:80".into(), "a".into(), true));
}

#[test]
fn an_upgrade_is_one_only_where_connection_says_so_and_never_to_h2c() {
    let upgrade = |lines: &str| {
        let head = request(&post(lines)).unwrap().unwrap();
        (head.upgrade, head.headers.contains_key("upgrade"))
    };
    assert_eq!(upgrade("Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"), (true, true));
    assert_eq!(upgrade("Upgrade: websocket\r\n"), (false, false));
    assert_eq!(upgrade("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"), (false, false));
}

#[test]
fn old_clients_are_served_where_that_is_configured() {
    let limits = Limits { accept_http_10: true, ..Limits::default() };
    let head = request_with(b"GET / HTTP/1.0\r\n\r\n", &limits).unwrap().unwrap();
    assert_eq!((head.version, head.keep_alive), (Version::HTTP_10, false));
    let head = request_with(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &limits).unwrap().unwrap();
    assert!(head.keep_alive);
    let coded = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(request_with(coded, &limits).err(), Some(HeadError::TransferEncoding));
}

#[test]
fn a_length_beside_chunked_is_dropped_where_that_is_configured() {
    let limits = Limits { allow_chunked_length: true, ..Limits::default() };
    let bytes = post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n");
    let head = request_with(&bytes, &limits).unwrap().unwrap();
    assert_eq!(head.framing, Framing::Chunked);
    assert!(!head.headers.contains_key("content-length"));
}
