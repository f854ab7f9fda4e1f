//! A response head: no panic, one length at most, and a connection is kept only where the body's end is known.
#![no_main]

use bytes::BytesMut;
use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use mesh_node::http::h1::parse::{Asked, Framing, Limits, Progress, response};

fuzz_target!(|data: &[u8]| {
    for asked in [Asked::Plain, Asked::Head, Asked::Connect, Asked::Upgrade] {
        let (mut buffer, mut spare) = (BytesMut::from(data), HeaderMap::new());
        let head = response(&mut buffer, &mut Progress::default(), &Limits::default(), asked, &mut spare);
        if let Ok(Some(head)) = head {
            assert!(!(head.keep_alive && head.framing == Framing::UntilClose));
            if let Framing::Length(_) = head.framing {
                assert_eq!(head.headers.get_all("content-length").iter().count(), 1);
                assert!(!head.headers.contains_key("transfer-encoding"));
            }
        }
    }
});
