//! The inputs that fuzzing starts from, and mutations of them, in every test run: no panic, and the same
//! result however the bytes are split.

use bytes::BytesMut;
use http::HeaderMap;

use crate::http::h1::chunk::{Decoded, Decoder};
use crate::http::h1::parse::{self, Asked, Framing, Limits, Progress};

const REQUESTS: [&[u8]; 5] = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /x?y HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\nX: y\r\n\r\nabc",
    b"POST http://b/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"CONNECT b:80 HTTP/1.1\r\nHost: b\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    b"\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
];
const RESPONSES: [&[u8]; 3] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.0 304 \r\nConnection: keep-alive\r\n\r\n",
    b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nraw",
];
const CHUNKS: [&[u8]; 3] =
    [b"3\r\nabc\r\n0\r\n\r\n", b"a;x=y\r\n0123456789\r\n00\r\nX-T: v\r\n\r\n", b"ffffffffffffffff\r\nab"];

/// Every input with each byte replaced in turn by bytes that matter to a parser.
fn mutations(inputs: &[&[u8]]) -> impl Iterator<Item = Vec<u8>> {
    inputs.iter().flat_map(|input| {
        (0..input.len()).flat_map(move |at| {
            b"\r\n\0 \t:;,/0fG\x7f\xff".iter().map(move |&byte| {
                let mut mutated = input.to_vec();
                mutated[at] = byte;
                mutated
            })
        })
    })
}

fn decode(bytes: &[u8], step: usize) -> Result<Vec<u8>, String> {
    let (mut buffer, mut decoder, mut out) = (BytesMut::new(), Decoder::new(Framing::Chunked), Vec::new());
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer, false, &Limits::default()) {
                Ok(Decoded::Data(data)) => out.extend_from_slice(&data),
                Ok(Decoded::More) => break,
                Ok(Decoded::End | Decoded::Trailers(_)) => return Ok(out),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
    Err("incomplete".to_owned())
}

#[test]
fn mutated_chunks_decode_the_same_in_one_piece_and_byte_by_byte() {
    for bytes in mutations(&CHUNKS) {
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!(decode(&bytes, usize::MAX).ok(), decode(&bytes, 1).ok(), "{shown:?}");
    }
    assert_eq!(decode(CHUNKS[0], 1).unwrap(), b"abc");
    assert_eq!(decode(CHUNKS[1], 2).unwrap(), b"0123456789");
}

#[test]
fn mutated_requests_parse_the_same_in_one_piece_and_byte_by_byte() {
    let limits = Limits::default();
    for bytes in mutations(&REQUESTS) {
        let parse = |step: usize| {
            let (mut buffer, mut progress) = (BytesMut::new(), Progress::default());
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                match parse::request(&mut buffer, &mut progress, &limits, &mut HeaderMap::new()) {
                    Ok(Some(head)) => return Some((head.uri.to_string(), head.framing, head.headers)),
                    Ok(None) => {}
                    Err(_) => return None,
                }
            }
            None
        };
        assert_eq!(parse(usize::MAX), parse(1), "{:?}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn mutated_responses_never_panic_and_keep_the_rules_of_framing() {
    let limits = Limits::default();
    for bytes in mutations(&RESPONSES) {
        let mut buffer = BytesMut::from(&bytes[..]);
        let head = parse::response(
            &mut buffer,
            &mut Progress::default(),
            &limits,
            Asked::Upgrade,
            &mut HeaderMap::new(),
        );
        if let Ok(Some(head)) = head {
            let lengths = head.headers.get_all("content-length").iter().count();
            assert!(lengths < 2, "{:?}", String::from_utf8_lossy(&bytes));
            assert!(!(head.keep_alive && head.framing == Framing::UntilClose));
        }
    }
}
