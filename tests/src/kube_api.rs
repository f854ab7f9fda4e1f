//! A Kubernetes API server as a node agent sees it: lists and watches of pods and namespaces over HTTP, in memory.
//!
//! It speaks the watch protocol (resource versions, selectors, bookmarks, `410 Gone`) and fails when it is told to:
//! refuse, hang up, forget the past, go away. It knows nothing of what objects mean.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

/// One change: the object before and after it.
#[derive(Clone, Debug)]
struct Change {
    version: u64,
    kind: Kind,
    before: Option<Value>,
    after: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Pod,
    Namespace,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<(Kind, String), Value>,
    changes: Vec<Change>,
    version: u64,
    /// Watches from before this version are told that it is gone.
    oldest: u64,
    forbidden: bool,
    /// Requests that were made, as `list pods` and `watch pods`.
    requests: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    /// Watches end when this moves.
    hung_up: watch::Sender<u64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The objects, and the server while it is there.
#[derive(Debug)]
pub struct KubeApi {
    shared: Arc<Shared>,
    running: Option<(oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
}

impl Default for KubeApi {
    fn default() -> KubeApi {
        let shared = Shared {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            hung_up: watch::Sender::new(0),
        };
        KubeApi { shared: Arc::new(shared), running: None }
    }
}

impl KubeApi {
    /// Serves on a thread of its own. The socket decides from which network namespace it is reached.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub fn serve(&mut self, socket: TcpListener) -> Result<SocketAddr> {
        let address = socket.local_addr()?;
        socket.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("kube-api".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    outcome = accept(socket, shared) => {
                        let Err(error) = outcome;
                        eprintln!("Kubernetes API: {error}");
                    }
                    _ = ended => {}
                }
            });
        })?;
        self.running = Some((end, thread));
        Ok(address)
    }

    /// Goes away with all connections; the objects stay.
    pub fn stop(&mut self) {
        if let Some((end, thread)) = self.running.take() {
            // Without a receiver it has ended.
            let _ = end.send(());
            let _ = thread.join();
        }
    }

    /// All watches end.
    pub fn hang_up(&self) {
        self.shared.hung_up.send_modify(|times| *times += 1);
    }

    /// Deletes a pod so that no watch tells of it: the past is gone, and whoever watches from an earlier version
    /// has to list again.
    pub fn delete_pod_and_forget(&self, namespace: &str, name: &str) {
        let mut state = self.shared.state();
        state.objects.remove(&(Kind::Pod, format!("{namespace}/{name}")));
        state.changes.clear();
        state.version += 1;
        state.oldest = state.version;
        drop(state);
        self.hang_up();
    }

    /// Refuses every request with 403, or no more.
    pub fn forbid(&self, forbidden: bool) {
        self.shared.state().forbidden = forbidden;
        self.hang_up();
    }

    /// How often this was asked for: `list pods`, `watch pods`, `list namespaces` or `watch namespaces`.
    pub fn asked(&self, request: &str) -> usize {
        self.shared.state().requests.iter().filter(|made| *made == request).count()
    }

    /// Creates or changes a pod; its key is namespace and name.
    ///
    /// # Errors
    /// When it has no name.
    pub fn set_pod(&self, pod: Value) -> Result<()> {
        self.set(Kind::Pod, pod)
    }

    pub fn delete_pod(&self, namespace: &str, name: &str) {
        self.change(Kind::Pod, &format!("{namespace}/{name}"), None);
    }

    /// Creates or changes a namespace with these labels.
    ///
    /// # Errors
    /// Never: a namespace has a name.
    pub fn set_namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        self.set(Kind::Namespace, json!({ "metadata": { "name": name, "uid": name, "labels": labels } }))
    }

    fn set(&self, kind: Kind, object: Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let key = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        };
        self.change(kind, &key, Some(object));
        Ok(())
    }

    fn change(&self, kind: Kind, key: &str, mut after: Option<Value>) {
        let mut state = self.shared.state();
        state.version += 1;
        let version = state.version;
        if let Some(object) = &mut after {
            object["metadata"]["resourceVersion"] = version.to_string().into();
        }
        let key = (kind, key.to_owned());
        let before = match &after {
            Some(object) => state.objects.insert(key, object.clone()),
            None => state.objects.remove(&key),
        };
        state.changes.push(Change { version, kind, before, after });
        drop(state);
        self.shared.changed.send_replace(version);
    }
}

impl Drop for KubeApi {
    fn drop(&mut self) {
        self.stop();
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn accept(socket: TcpListener, shared: Arc<Shared>) -> std::io::Result<Infallible> {
    let socket = tokio::net::TcpListener::from_std(socket)?;
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (io, _) = socket.accept().await?;
        while connections.try_join_next().is_some() {}
        let shared = shared.clone();
        connections.spawn(async move {
            let answer = hyper::service::service_fn(move |request: Request<Incoming>| {
                let answer = answer(&shared, request.uri());
                async move { Ok::<_, Infallible>(answer) }
            });
            let _ =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), answer).await;
        });
    }
}

/// What a request asks for beside its path.
struct Query {
    kind: Kind,
    node: Option<String>,
    label: Option<String>,
}

impl Query {
    fn matches(&self, object: &Value) -> bool {
        let node = self.node.as_deref();
        let label = self.label.as_deref();
        node.is_none_or(|node| object["spec"]["nodeName"] == node)
            && label.is_none_or(|label| !object["metadata"]["labels"][label].is_null())
    }
}

fn answer(shared: &Arc<Shared>, uri: &http::Uri) -> Response<Body> {
    let (kind, name) = match uri.path() {
        "/api/v1/pods" => (Kind::Pod, "pods"),
        "/api/v1/namespaces" => (Kind::Namespace, "namespaces"),
        _ => return status(StatusCode::NOT_FOUND, "no such resource"),
    };
    let parameters: BTreeMap<String, String> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace("%3D", "=").replace("%2F", "/")))
        .collect();
    let watches = parameters.get("watch").is_some_and(|value| value == "true" || value == "1");
    let selected = parameters.get("fieldSelector").and_then(|of| of.strip_prefix("spec.nodeName="));
    let label = parameters.get("labelSelector").cloned();
    let query = Query { kind, node: selected.map(str::to_owned), label };
    let mut state = shared.state();
    state.requests.push(format!("{} {name}", if watches { "watch" } else { "list" }));
    if state.forbidden {
        return status(StatusCode::FORBIDDEN, &format!("{name} is forbidden: User \"node\" cannot list it"));
    }
    if !watches {
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|((of, _), object)| *of == kind && query.matches(object))
            .map(|(_, object)| object)
            .collect();
        let version = state.version.to_string();
        let list = json!({ "kind": "List", "apiVersion": "v1",
            "metadata": { "resourceVersion": version }, "items": items });
        return respond(StatusCode::OK, &list);
    }
    let from = parameters.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    drop(state);
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(stream(shared.clone(), query, from, sender));
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
        let line: Bytes = receiver.recv().await?;
        Some((Ok(Frame::data(line)), receiver))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}

/// Sends what changes, until the client has gone or all are hung up on.
async fn stream(shared: Arc<Shared>, query: Query, mut from: u64, sender: mpsc::Sender<Bytes>) {
    let mut changed = shared.changed.subscribe();
    let mut hung_up = shared.hung_up.subscribe();
    loop {
        let (lines, gone) = {
            let state = shared.state();
            let gone = from < state.oldest;
            let news =
                state.changes.iter().filter(|change| change.version > from && change.kind == query.kind);
            let mut lines: Vec<Value> = news.filter_map(|change| event(change, &query)).collect();
            from = state.version;
            let version = json!({ "resourceVersion": from.to_string(), "creationTimestamp": null });
            // Also a client that hears of nothing new is told how far it has come.
            lines.push(json!({ "type": "BOOKMARK", "object": { "kind": "Pod", "apiVersion": "v1",
                "metadata": version, "spec": { "containers": [] } } }));
            (lines, gone)
        };
        if gone {
            let object = status_object(StatusCode::GONE, "too old resource version");
            let _ = sender.send(line(&json!({ "type": "ERROR", "object": object }))).await;
            return;
        }
        for event in &lines {
            if sender.send(line(event)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            _ = changed.changed() => {}
            _ = hung_up.changed() => return,
        }
    }
}

/// A change as the watcher of a selection sees it.
fn event(change: &Change, query: &Query) -> Option<Value> {
    let selected = |object: &Option<Value>| object.clone().filter(|object| query.matches(object));
    let (kind, mut object) = match (selected(&change.before), selected(&change.after)) {
        (None, Some(after)) => ("ADDED", after),
        (Some(_), Some(after)) => ("MODIFIED", after),
        (Some(before), None) => ("DELETED", before),
        (None, None) => return None,
    };
    object["metadata"]["resourceVersion"] = change.version.to_string().into();
    Some(json!({ "type": kind, "object": object }))
}

fn line(event: &Value) -> Bytes {
    Bytes::from(format!("{event}\n"))
}

fn status_object(code: StatusCode, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
        "reason": code.canonical_reason().unwrap_or_default().replace(' ', ""), "code": code.as_u16() })
}

fn status(code: StatusCode, message: &str) -> Response<Body> {
    respond(code, &status_object(code, message))
}

fn respond(code: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}
