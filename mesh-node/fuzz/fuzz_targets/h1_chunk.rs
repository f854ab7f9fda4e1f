//! A chunked body: no panic, never more data than came, and the same data however it is split.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use mesh_node::http::h1::chunk::{Decoded, Decoder};
use mesh_node::http::h1::parse::{Framing, Limits};

fn decode(data: &[u8], step: usize) -> Option<Vec<u8>> {
    let (mut buffer, mut decoder, mut out) = (BytesMut::new(), Decoder::new(Framing::Chunked), Vec::new());
    for piece in data.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer, false, &Limits::default()) {
                Ok(Decoded::Data(piece)) => out.extend_from_slice(&piece),
                Ok(Decoded::More) => break,
                Ok(Decoded::End | Decoded::Trailers(_)) => return Some(out),
                Err(_) => return None,
            }
        }
    }
    None
}

fuzz_target!(|data: &[u8]| {
    let whole = decode(data, usize::MAX);
    assert_eq!(whole, decode(data, 1));
    assert!(whole.is_none_or(|out| out.len() <= data.len()));
});
