//! The two watches: moves events into the registry and lists out of it. What goes wrong is said once, with the
//! remedy, and tried again with back-off.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::pod::MODE;
use super::registry::Registry;
use super::resolve::{Missing, Resolver};
use super::{Listed, Outbox, WATCH_SECONDS, tell};

/// Changes that come close together are taken as one.
const SETTLE: Duration = Duration::from_millis(10);
/// A pod that has an address has a process within moments.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A pod that connects is in the API already; its event is on its way for this long at most.
const WAITED_FOR: Duration = Duration::from_secs(5);
/// Looks without success before that is said.
const PATIENCE: u32 = 6;

/// Follows until dropped.
pub(super) async fn run(
    client: Client,
    (api, node): (String, String),
    mut resolver: Resolver,
    look: Arc<Notify>,
    outbox: Outbox,
) {
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let of_node = config.clone().fields(&format!("spec.nodeName={node}"));
    let mut pods = pin!(watcher(Api::<Pod>::all(client.clone()), of_node).default_backoff());
    let labelled = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
    let mut namespaces = pin!(watcher(labelled, config.labels(MODE)).default_backoff());
    let (mut of_pods, mut of_namespaces) = (Health::of("pods", &api), Health::of("namespaces", &api));
    let mut registry = Registry::default();
    let mut missing = Search::default();
    // When the list is to be made anew.
    let mut due: Option<Instant> = None;
    // Until when strangers are told: somebody waits to be known, and the API may tell of it a moment later.
    let mut waited_for: Option<Instant> = None;
    loop {
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let changed = tokio::select! {
            // The watches never end.
            Some(event) = pods.next() => of_pods.judge(event).is_some_and(|event| registry.take_pod(event)),
            Some(event) = namespaces.next() => {
                of_namespaces.judge(event).is_some_and(|event| registry.take_namespace(event))
            }
            () = look.notified() => {
                waited_for = Some(Instant::now() + WAITED_FOR);
                due = Some(Instant::now());
                false
            }
            () = timer => {
                due = None;
                if let Some(sorted) = registry.wanted() {
                    for (candidate, barred) in &sorted.to_tell {
                        tell::tell(&client, &node, candidate, barred);
                    }
                    if waited_for.is_some_and(|until| Instant::now() < until) {
                        // Without a receiver the process ends.
                        let _ = outbox.strangers.send(resolver.namespaces(&sorted.others));
                    }
                    let asked_for = sorted.asked_for;
                    let resolved = resolver.resolve(sorted.wanted);
                    due = missing.look_again(&resolved.missing).map(|wait| Instant::now() + wait);
                    let listed = Listed { pods: resolved.pods, asked_for };
                    outbox.lists.send_if_modified(|list| {
                        let differs = list.as_ref() != Some(&listed);
                        *list = Some(listed);
                        differs
                    });
                }
                false
            }
        };
        if changed {
            let soon = Instant::now() + SETTLE;
            due = Some(due.map_or(soon, |due| due.min(soon)));
        }
    }
}

/// Pods whose network was not found yet.
#[derive(Debug, Default)]
struct Search {
    pods: Vec<Missing>,
    looks: u32,
}

impl Search {
    /// When to look again, if at all. Says so when it takes long.
    fn look_again(&mut self, missing: &[Missing]) -> Option<Duration> {
        if missing != self.pods {
            self.pods = missing.to_vec();
            self.looks = 0;
        }
        if missing.is_empty() {
            return None;
        }
        self.looks += 1;
        // One without an address has not been started yet.
        let running = missing.iter().filter(|pod| pod.has_address).map(|pod| pod.name.as_str());
        let running: Vec<&str> = running.collect();
        if self.looks == PATIENCE && !running.is_empty() {
            tracing::warn!(
                "no process of {} is to be seen, so that their networks are not known and they are not served; \
                 mesh-node must see the host's processes (hostPID: true)",
                running.join(", ")
            );
        }
        Some(LOOK_AGAIN.1.min(LOOK_AGAIN.0 * 2u32.saturating_pow(self.looks - 1)))
    }
}

/// How one watch stands, for the log.
#[derive(Debug)]
struct Health<'a> {
    what: &'static str,
    api: &'a str,
    /// What was said last.
    told: Option<String>,
}

impl<'a> Health<'a> {
    fn of(what: &'static str, api: &'a str) -> Self {
        Self { what, api, told: None }
    }

    fn judge<K>(&mut self, event: watcher::Result<watcher::Event<K>>) -> Option<watcher::Event<K>> {
        let error = match event {
            // Only that a list begins, not that one has come.
            Ok(watcher::Event::Init) => return Some(watcher::Event::Init),
            Ok(event) => {
                if self.told.take().is_some() {
                    tracing::info!(
                        "the Kubernetes API at {} answers again: {} are followed",
                        self.api,
                        self.what
                    );
                }
                return Some(event);
            }
            Err(error) => error,
        };
        // The changes since the last one that was seen are not kept any more; everything is listed anew.
        if matches!(&error, watcher::Error::WatchError(status) if status.code == 410) {
            tracing::debug!("{}: {error}", self.what);
            return None;
        }
        let message = format!("{}; {}", cause(&error), remedy(&error));
        if self.told.as_ref() != Some(&message) {
            tracing::error!(
                "{} of the Kubernetes API at {} cannot be followed, pods that are enrolled stay served: {message}",
                self.what,
                self.api
            );
        }
        self.told = Some(message);
        None
    }
}

/// The innermost cause, in one line.
fn cause(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
        text = inner.to_string();
    }
    text.lines().next().unwrap_or_default().to_owned()
}

fn remedy(error: &watcher::Error) -> &'static str {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code,
        _ => 0,
    };
    match status {
        401 => "check the token or certificate that mesh-node shows",
        403 => "grant its service account `list` and `watch` of pods and namespaces",
        429 | 500.. => "the API server is overloaded or starting; tried again by itself",
        _ => "check that the address is reachable from this node; tried again by itself",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_watch_names_the_rights_that_are_missing() {
        let status = serde_json::json!({ "status": "Failure", "message": "pods is forbidden", "code": 403 });
        let status = serde_json::from_value(status).unwrap();
        let error = watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)));
        assert!(cause(&error).contains("pods is forbidden"), "{}", cause(&error));
        assert!(remedy(&error).contains("`list` and `watch`"));
    }

    #[test]
    fn who_is_not_found_is_looked_for_less_and_less_often() {
        let mut missing = Search::default();
        let pods = [Missing { name: "shop/a".to_owned(), has_address: true }];
        let waits: Vec<_> = (0..8).map(|_| missing.look_again(&pods).unwrap().as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(missing.look_again(&[]), None);
    }
}
