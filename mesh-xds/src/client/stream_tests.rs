//! Streams under servers that misbehave, over real HTTP/2 in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use super::*;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;

/// A server: what it does with its n-th stream (from 0).
type Serve = fn(usize, h2::SendStream<Bytes>);

/// Connects to a server in memory.
#[derive(Debug, Clone)]
struct InMemory {
    serve: Serve,
    streams: Arc<AtomicUsize>,
}

impl Connect for InMemory {
    fn connect(&self) -> Connecting {
        let this = self.clone();
        Box::pin(async move {
            let (client, server) = tokio::io::duplex(1 << 16);
            tokio::spawn(this.serve(server));
            Ok(Box::new(client) as Box<dyn Io>)
        })
    }
}

impl InMemory {
    async fn serve(self, io: DuplexStream) {
        let Ok(mut connection) = h2::server::handshake(io).await else { return };
        // Requests are not read: the server says what it says.
        let mut requests = Vec::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let Ok(body) = respond.send_response(head, false) else { continue };
            requests.push(request);
            (self.serve)(self.streams.fetch_add(1, Ordering::Relaxed), body);
        }
    }
}

/// A gRPC message (its length before it).
fn message(response: &DeltaDiscoveryResponse) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(response.encoded_len()).unwrap());
    response.encode(&mut framed).unwrap();
    framed.freeze()
}

fn response(nonce: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: ResourceType::Cluster.url().to_owned(),
        nonce: nonce.to_owned(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn server(name: &str, serve: Serve) -> Server {
    let options = ServerOptions {
        name: name.to_owned(),
        authority: "xds".to_owned(),
        keepalive_interval: Duration::from_secs(30),
        keepalive_timeout: Duration::from_secs(20),
    };
    Server::new(&options, Arc::new(InMemory { serve, streams: Arc::default() })).unwrap()
}

/// A stream that asks for all clusters; what it tells.
fn subscribe(servers: Vec<Server>) -> (Stream, mpsc::UnboundedReceiver<Event>) {
    let options = StreamOptions {
        servers,
        protocol: Protocol::Delta,
        scope: Scope::Aggregated,
        node: Node::default(),
        backoff: Backoff::new(Duration::from_millis(1), Duration::from_millis(10)),
        max_response_bytes: 1000,
        silence: Duration::from_millis(200),
    };
    let (tell, told) = mpsc::unbounded_channel();
    let stream = open(options, Box::new(move |event| drop(tell.send(event)))).unwrap();
    stream.send(Command::Subscribe(ResourceType::Cluster, Wanted::All));
    (stream, told)
}

async fn next(told: &mut mpsc::UnboundedReceiver<Event>) -> Event {
    tokio::time::timeout(Duration::from_secs(20), told.recv()).await.expect("an event").unwrap()
}

/// Why the stream ended.
async fn ended(told: &mut mpsc::UnboundedReceiver<Event>) -> (String, String) {
    loop {
        if let Event::Disconnected { server, reason } = next(told).await {
            return (server.to_string(), reason);
        }
    }
}

async fn received(told: &mut mpsc::UnboundedReceiver<Event>) -> Box<Received> {
    loop {
        if let Event::Received(received) = next(told).await {
            return received;
        }
    }
}

/// Says something good on every stream, and stays.
fn good(_: usize, mut body: h2::SendStream<Bytes>) {
    body.send_data(message(&response("1")), false).unwrap();
    std::mem::forget(body);
}

#[tokio::test]
async fn a_response_over_the_limit_ends_the_stream_with_its_size_and_the_next_one_is_taken() {
    fn serve(stream: usize, mut body: h2::SendStream<Bytes>) {
        if stream == 0 {
            let mut large = response("1");
            large.removed_resources.push("x".repeat(2000));
            body.send_data(message(&large), false).unwrap();
        } else {
            body.send_data(message(&response("2")), false).unwrap();
        }
        std::mem::forget(body);
    }
    let (_stream, mut told) = subscribe(vec![server("a", serve)]);
    let (of, reason) = ended(&mut told).await;
    assert_eq!(of, "a");
    assert!(reason.contains("found") && reason.contains("1000"), "{reason}");
    assert_eq!(received(&mut told).await.nonce, "2");
}

#[tokio::test]
async fn a_server_that_stalls_within_a_message_is_passed_over_for_the_next() {
    fn stalls(_: usize, mut body: h2::SendStream<Bytes>) {
        let half = message(&response("1")).slice(..7);
        body.send_data(half, false).unwrap();
        std::mem::forget(body);
    }
    let (_stream, mut told) = subscribe(vec![server("stalls", stalls), server("good", good)]);
    let (of, reason) = ended(&mut told).await;
    assert_eq!(of, "stalls");
    assert!(reason.starts_with("no answer within"), "{reason}");
    assert!(matches!(next(&mut told).await, Event::Connected(name, _) if &*name == "good"));
}

#[tokio::test]
async fn a_nonce_that_is_used_twice_is_told_and_the_stream_goes_on() {
    fn repeats(_: usize, mut body: h2::SendStream<Bytes>) {
        for nonce in ["1", "1", "2"] {
            body.send_data(message(&response(nonce)), false).unwrap();
        }
        std::mem::forget(body);
    }
    let (stream, mut told) = subscribe(vec![server("a", repeats)]);
    let first = received(&mut told).await;
    stream.send(Command::Finish(first, Vec::new()));
    let problem = loop {
        if let Event::Problem(problem) = next(&mut told).await {
            break problem;
        }
    };
    assert_eq!(problem, Problem::RepeatedNonce { kind: ResourceType::Cluster, nonce: "1".to_owned() });
    assert_eq!(received(&mut told).await.nonce, "2");
}

#[tokio::test]
async fn bytes_that_are_no_message_end_the_stream_by_name() {
    fn garbage(stream: usize, mut body: h2::SendStream<Bytes>) {
        if stream == 0 {
            body.send_data(Bytes::from_static(b"\0\0\0\0\x04\xff\xff\xff\xff"), false).unwrap();
            std::mem::forget(body);
        } else {
            good(stream, body);
        }
    }
    let (_stream, mut told) = subscribe(vec![server("a", garbage)]);
    let (_, reason) = ended(&mut told).await;
    assert!(reason.contains("decode") || reason.contains("varint"), "{reason}");
    assert_eq!(received(&mut told).await.nonce, "1");
}
