//! Resources by polling (`api_type: REST`): a `POST` of a `DiscoveryRequest` as JSON, again and again.
//!
//! To its owner it is a stream of one type. There is no subscription to keep: every request says all that is wanted.

use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;

use super::stream::{Event, Gone, Owner};
use super::{ResourceType, Server, Sotw, StreamOptions};
use crate::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use crate::{Node, from_node, to_json};

/// How a server is polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Poll {
    /// `refresh_delay`. Up to as much again is waited by chance, as Envoy does, so that not all ask at once.
    pub every: Duration,
    /// `request_timeout`
    pub timeout: Duration,
}

/// Where resources of the type are asked for; `None` if they cannot be.
pub(super) fn path(kind: ResourceType) -> Option<&'static str> {
    Some(match kind {
        ResourceType::Cluster => "/v3/discovery:clusters",
        ResourceType::Endpoint => "/v3/discovery:endpoints",
        ResourceType::Listener => "/v3/discovery:listeners",
        ResourceType::ScopedRoute => "/v3/discovery:scoped-routes",
        ResourceType::Route => "/v3/discovery:routes",
        ResourceType::Secret => "/v3/discovery:secrets",
        ResourceType::ExtensionConfig => "/v3/discovery:extension_configs",
        ResourceType::Runtime => "/v3/discovery:runtime",
        // Of virtual hosts only what changes is told.
        ResourceType::NameTable | ResourceType::VirtualHost => return None,
    })
}

/// Polls until nobody owns it any more.
pub(super) async fn run(
    options: StreamOptions,
    (kind, path, poll): (ResourceType, &'static str, Poll),
    mut owner: Owner,
    mut machine: Sotw,
) {
    let server = options.servers[0].clone();
    let mut answers = false;
    loop {
        while !owner.asks_for_something() {
            let command = owner.commands.recv().await;
            if owner.take(command, &mut machine).is_err() {
                return;
            }
        }
        // Nonces and acknowledgements are of streams.
        machine.connected();
        let Some(request) = machine.next_request() else { continue };
        let asked = ask(&server, path, &request, options.max_response_bytes);
        let outcome = match tokio::time::timeout(poll.timeout, asked).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {} ms (request_timeout)", poll.timeout.as_millis())),
        };
        match outcome {
            Ok(None) => {}
            Ok(Some(response)) => {
                if !std::mem::replace(&mut answers, true) {
                    owner.tell(Event::Connected(server.name.clone(), String::new()));
                }
                if heard(kind, response, &mut owner, &mut machine).await.is_err() {
                    return;
                }
            }
            Err(reason) => {
                answers = false;
                owner.tell(Event::Disconnected { server: server.name.clone(), reason });
            }
        }
        let chance = fastrand::u64(..=u64::try_from(poll.every.as_micros()).unwrap_or(u64::MAX));
        let pause = tokio::time::sleep(poll.every + Duration::from_micros(chance));
        tokio::select! {
            () = pause => {}
            // Something else is wanted, or nobody is there.
            command = owner.commands.recv() => if owner.take(command, &mut machine).is_err() { return },
        }
    }
}

async fn heard(
    kind: ResourceType,
    mut response: DiscoveryResponse,
    owner: &mut Owner,
    machine: &mut Sotw,
) -> Result<(), Gone> {
    if response.type_url.is_empty() {
        kind.url().clone_into(&mut response.type_url);
    }
    response.nonce.clear();
    match machine.receive(response) {
        Ok(received) => {
            owner.waiting = true;
            owner.tell(Event::Received(Box::new(received)));
            while owner.waiting {
                let command = owner.commands.recv().await;
                owner.take(command, machine)?;
            }
            // What a stream would be told of refusals, a log tells.
            owner.hold = None;
        }
        Err(problem) => owner.tell(Event::Problem(problem)),
    }
    Ok(())
}

/// `None`: nothing has changed (304).
async fn ask(
    server: &Server,
    path: &str,
    request: &DiscoveryRequest,
    max_bytes: usize,
) -> Result<Option<DiscoveryResponse>, String> {
    let json = to_json(request).ok_or("the request cannot be written as JSON")?.to_string();
    let io = server.connect.connect().await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
    let mut builder = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, &*server.authority)
        .header(header::CONTENT_TYPE, "application/json");
    for (name, value) in server.credentials.metadata()? {
        builder = builder.header(name, value);
    }
    let request = builder.body(Full::new(Bytes::from(json))).map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED => return Ok(None),
            status => return Err(format!("answered {status}")),
        }
        let body = Limited::new(response.into_body(), max_bytes).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        let text = std::str::from_utf8(&body).map_err(|_| "the answer is no text".to_owned())?;
        let tree = Node::parse(text).map_err(|problem| format!("the answer is no JSON: {problem}"))?;
        from_node::<DiscoveryResponse>(&tree).map(Some).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            problems.join("; ")
        })
    };
    // The connection ends with the exchange.
    tokio::select! {
        outcome = exchange => outcome,
        ended = connection => Err(ended.err().map_or_else(|| "closed".to_owned(), |error| error.to_string())),
    }
}
