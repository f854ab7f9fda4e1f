//! Polling, against a server that answers what it is told to.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use super::*;
use crate::pb::envoy::config::core::v3::Node;

/// Each connection's other end.
#[derive(Debug)]
struct Through(mpsc::UnboundedSender<DuplexStream>);

impl Connect for Through {
    fn connect(&self) -> Connecting {
        let to = self.0.clone();
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            to.send(theirs).map_err(|_| io::Error::other("nobody listens"))?;
            Ok(Box::new(ours) as Box<dyn Io>)
        })
    }
}

/// Reads a request to its end and answers it; the head and the message.
async fn answer(stream: &mut DuplexStream, status: &str, body: &str) -> (String, serde_json::Value) {
    let mut read = Vec::new();
    let (head, message) = loop {
        read.push(stream.read_u8().await.unwrap());
        let text = String::from_utf8_lossy(&read).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        if let Ok(message) = serde_json::from_str(body) {
            break (head.to_owned(), message);
        }
    };
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await.unwrap();
    (head, message)
}

#[tokio::test]
async fn a_server_is_polled_and_told_what_is_held_and_what_is_wanted() {
    let (connections, mut accepted) = mpsc::unbounded_channel();
    let options = ServerOptions {
        name: "rest".to_owned(),
        authority: "rest.test".to_owned(),
        keepalive_interval: Duration::from_secs(60),
        keepalive_timeout: Duration::from_secs(60),
    };
    let server = Server::new(&options, Arc::new(Through(connections))).unwrap();
    let options = StreamOptions {
        servers: vec![server],
        protocol: Protocol::Rest(Poll { every: Duration::from_millis(1), timeout: Duration::from_secs(20) }),
        scope: Scope::Only(ResourceType::Endpoint),
        node: Node { id: "n".to_owned(), ..Node::default() },
        backoff: Backoff::new(Duration::from_millis(1), Duration::from_millis(1)),
        max_response_bytes: 1 << 20,
        silence: Duration::from_secs(60),
    };
    let (tell, mut told) = mpsc::unbounded_channel();
    let stream = open(options, Box::new(move |event| drop(tell.send(event)))).unwrap();
    stream.send(Command::Subscribe(ResourceType::Endpoint, Wanted::from_iter(["a", "b"])));

    let good = r#"{"version_info": "7", "resources": [{"@type":
        "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name": "a"}]}"#;
    let mut first = accepted.recv().await.unwrap();
    let (head, message) = answer(&mut first, "200 OK", good).await;
    assert!(head.starts_with("POST /v3/discovery:endpoints HTTP/1.1"), "{head}");
    assert!(head.contains("host: rest.test") && head.contains("content-type: application/json"), "{head}");
    assert_eq!(message["node"]["id"], "n");
    assert_eq!(message["resource_names"], serde_json::json!(["a", "b"]));
    assert!(message.get("version_info").is_none());
    let mut next = async || told.recv().await.unwrap();
    assert!(matches!(next().await, Event::Connected(name, _) if *name == *"rest"));
    let Event::Received(received) = next().await else { panic!() };
    assert_eq!((received.version.as_str(), received.resources[0].name.as_str()), ("7", "a"));
    stream.send(Command::Finish(received, Vec::new()));

    let mut second = accepted.recv().await.unwrap();
    let (_, message) = answer(&mut second, "304 Not Modified", "").await;
    assert_eq!(message["version_info"], "7");

    for (status, body, reason) in [
        ("503 Service Unavailable", "", "answered 503 Service Unavailable"),
        ("200 OK", "{\"nonsense\": 1}", "nonsense"),
    ] {
        let mut connection = accepted.recv().await.unwrap();
        answer(&mut connection, status, body).await;
        let Event::Disconnected { reason: told, .. } = next().await else { panic!() };
        assert!(told.contains(reason), "{told}");
    }
    // Only what it has is asked for again.
    stream.send(Command::Subscribe(ResourceType::Endpoint, Wanted::from_iter(["b"])));
    loop {
        let mut connection = accepted.recv().await.unwrap();
        let (_, message) = answer(&mut connection, "304 Not Modified", "").await;
        if message["resource_names"] == serde_json::json!(["b"]) {
            break;
        }
    }
}

#[tokio::test]
async fn names_are_no_matter_of_polling() {
    let (connections, _accepted) = mpsc::unbounded_channel();
    let options = ServerOptions {
        name: "rest".to_owned(),
        authority: "rest.test".to_owned(),
        keepalive_interval: Duration::from_secs(60),
        keepalive_timeout: Duration::from_secs(60),
    };
    let server = Server::new(&options, Arc::new(Through(connections))).unwrap();
    for scope in [Scope::Aggregated, Scope::Only(ResourceType::NameTable)] {
        let options = StreamOptions {
            servers: vec![server.clone()],
            protocol: Protocol::Rest(Poll { every: Duration::from_secs(1), timeout: Duration::from_secs(1) }),
            scope,
            node: Node::default(),
            backoff: Backoff::new(Duration::from_millis(1), Duration::from_millis(1)),
            max_response_bytes: 1 << 20,
            silence: Duration::from_secs(60),
        };
        assert!(open(options, Box::new(|_| {})).is_err());
    }
}
