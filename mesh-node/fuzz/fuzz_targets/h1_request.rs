//! A request head: no panic, and the same head whether it comes at once or byte by byte.
#![no_main]

use bytes::BytesMut;
use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use mesh_node::http::h1::parse::{Limits, Progress, request};

fn parse(data: &[u8], step: usize) -> Option<(String, HeaderMap)> {
    let (mut buffer, mut progress) = (BytesMut::new(), Progress::default());
    for piece in data.chunks(step) {
        buffer.extend_from_slice(piece);
        match request(&mut buffer, &mut progress, &Limits::default(), &mut HeaderMap::new()) {
            Ok(Some(head)) => return Some((format!("{} {} {:?}", head.method, head.uri, head.framing), head.headers)),
            Ok(None) => {}
            Err(_) => return None,
        }
    }
    None
}

fuzz_target!(|data: &[u8]| {
    assert_eq!(parse(data, usize::MAX), parse(data, 1));
});
