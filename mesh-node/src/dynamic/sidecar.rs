//! Runs one virtual sidecar: gives its assembly what comes, subscribes to what it wants, publishes what it says.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mesh_xds::client::{Credentials, Event, Received, Rejected};
use mesh_xds::pb::envoy::config::core::v3::Node;
use tokio::sync::mpsc;

use super::assembly::{Assembled, Assembly, Statics, Step};
use super::sources::{Brought, FeedKey, Feeds, Servers};
use super::subscriptions::Subscriptions;
use crate::cluster::ClusterManager;
use crate::model::source::Dynamic;
use crate::runtime::Values;

/// Who a sidecar is, and where its configuration comes from.
#[derive(Debug, Clone)]
pub struct Identity {
    pub node: Node,
    pub dynamic: Dynamic,
    /// What its stream of `ads_config` shows beside what that says. No other server gets to see it.
    pub credentials: Option<Arc<dyn Credentials>>,
}

/// A listener that cannot go into service.
#[derive(Debug, Clone, thiserror::Error)]
#[error("listener {listener}: {reason}")]
pub struct Refused {
    pub listener: String,
    pub reason: String,
}

/// Where a sidecar's configuration goes.
pub trait Outlet {
    /// Puts these into service, make-before-break.
    ///
    /// # Errors
    /// When a listener cannot be; nothing has changed then.
    fn publish(&mut self, assembled: Assembled) -> impl Future<Output = Result<(), Refused>>;

    /// A layer of the runtime has come, or is gone.
    fn runtime(&self, name: &str, values: Option<Values>);

    /// The clusters, for endpoints that come apart from them.
    fn clusters(&self) -> &Arc<ClusterManager>;
}

/// A sidecar and its outlet.
#[derive(Debug)]
pub struct Sidecar<O> {
    assembly: Arc<Mutex<Assembly>>,
    feeds: Feeds,
    inbox: mpsc::UnboundedReceiver<(FeedKey, Brought)>,
    pub outlet: O,
    stats: Subscriptions,
}

/// What [`Sidecar::next`] saw; to be given to [`Sidecar::handle`].
#[derive(Debug)]
pub struct Happened(Option<(FeedKey, Brought)>);

impl<O: Outlet> Sidecar<O> {
    pub fn new(assembly: Assembly, identity: &Identity, servers: Arc<Servers>, outlet: O) -> Self {
        let (outbox, inbox) = mpsc::unbounded_channel();
        let stats = Subscriptions::new(assembly.compiler().stats().clone());
        let feeds = Feeds::new(servers, identity, outbox);
        Self { assembly: Arc::new(Mutex::new(assembly)), feeds, inbox, outlet, stats }
    }

    /// Puts into service what needs nothing else, and begins to ask for the rest.
    ///
    /// # Errors
    /// The listener that cannot be put into service.
    pub async fn start(&mut self) -> Result<(), Refused> {
        let steps = self.lock().settle(Instant::now());
        self.carry_out(steps).await?;
        self.settle().await;
        Ok(())
    }

    /// The resources, for the admin pages.
    pub fn assembly(&self) -> &Arc<Mutex<Assembly>> {
        &self.assembly
    }

    fn lock(&self) -> MutexGuard<'_, Assembly> {
        self.assembly.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has everything that the start waits for come, or not come in time?
    pub fn has_started(&self) -> bool {
        self.lock().has_started(Instant::now())
    }

    /// Returns when there is something to handle. May be dropped and called again.
    pub async fn next(&mut self) -> Happened {
        let deadline = self.lock().next_deadline(Instant::now());
        let deadline = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The feeds' sender is ours: it cannot be gone.
            brought = self.inbox.recv() => Happened(brought),
            () = deadline => Happened(None),
        }
    }

    /// Takes what happened into account.
    pub async fn handle(&mut self, happened: Happened) {
        if let Some((key, brought)) = happened.0 {
            match brought {
                Brought::Stream(event) => self.heard(&key, event),
                Brought::File(Ok(received)) => {
                    let received = self.whole(&key, *received);
                    let _ = self.judge(&received);
                }
                Brought::File(Err(problem)) => {
                    self.stats.failed(key.1);
                    tracing::error!("the last good configuration serves: {problem}");
                }
            }
        }
        self.settle().await;
    }

    /// Other static resources are in force. The previous ones stay if one cannot be put into service.
    ///
    /// # Errors
    /// The listener that cannot be.
    pub async fn set_statics(&mut self, statics: Statics, previous: Statics) -> Result<(), Refused> {
        self.lock().set_statics(statics, Instant::now());
        let steps = self.lock().settle(Instant::now());
        if let Err(refused) = self.carry_out(steps).await {
            self.lock().set_statics(previous, Instant::now());
            self.settle().await;
            return Err(refused);
        }
        self.subscribe();
        Ok(())
    }

    fn heard(&mut self, key: &FeedKey, event: Event) {
        let control_plane = self.stats.store().control_plane().clone();
        match event {
            Event::Connected(server, identifier) => {
                control_plane.connected_state.set(1);
                tracing::info!(%server, %identifier, "xDS server answers");
            }
            Event::Disconnected { server, reason } => {
                control_plane.connected_state.set(0);
                self.stats.failed(key.1);
                tracing::warn!(%server, "xDS stream ended, the last good configuration serves: {reason}");
            }
            Event::Problem(problem) => {
                control_plane.protocol_errors.inc();
                tracing::warn!("xDS: {problem}");
            }
            Event::Expired(kind, name) => {
                tracing::info!(%kind, %name, "the time of this resource has run out");
                self.lock().remove(kind, &name);
            }
            Event::Received(received) => {
                let rejected = self.judge(&received);
                self.feeds.finish(key, received, rejected);
            }
        }
    }

    /// A file holds all there is: of clusters and listeners, what it lacks is gone. Of the others only what is
    /// asked for counts.
    fn whole(&self, key: &FeedKey, mut received: Received) -> Received {
        if received.kind.is_whole() {
            let present = |name: &String| received.resources.iter().any(|r| r.name == *name);
            let held = self.lock().names(received.kind);
            received.removed = held.into_iter().filter(|name| !present(name)).collect();
        } else {
            let kind = received.kind;
            received.resources.retain(|resource| self.feeds.wants(&key.0, kind, &resource.name));
        }
        received
    }

    fn judge(&self, received: &Received) -> Vec<Rejected> {
        let kind = received.kind;
        let rejected = self.lock().receive(received, Instant::now());
        for Rejected { name, reason } in &rejected {
            tracing::warn!(%kind, %name, version = %received.version,
                "resource rejected, the last good one serves: {reason}");
        }
        tracing::debug!(%kind, version = %received.version, resources = received.resources.len(),
            removed = received.removed.len(), rejected = rejected.len(), "xDS response taken");
        self.stats.judged(&self.lock(), received, &rejected);
        rejected
    }

    /// Puts into service what is ready, and asks for what is wanted now.
    pub async fn settle(&mut self) {
        loop {
            let steps = self.lock().settle(Instant::now());
            let late = self.lock().take_late();
            self.stats.late(&late);
            if steps.is_empty() {
                break;
            }
            if let Err(Refused { listener, reason }) = self.carry_out(steps).await {
                tracing::error!(%listener, "listener not put into service: {reason}");
                self.lock().refuse_listener(&listener, &reason);
            }
        }
        self.subscribe();
    }

    fn subscribe(&mut self) {
        let mut assembly = self.assembly.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(wanted) = assembly.newly_wanted() else { return };
        self.stats.follow(&assembly);
        drop(assembly);
        for problem in self.feeds.want(wanted) {
            tracing::error!("cannot be subscribed to: {problem}");
        }
    }

    async fn carry_out(&mut self, steps: Vec<Step>) -> Result<(), Refused> {
        let mut outcome = Ok(());
        for step in steps {
            match step {
                Step::Endpoints(name, assignment) => {
                    self.outlet.clusters().set_endpoints(&name, &assignment);
                }
                Step::Secret(name, secret) => self.outlet.clusters().secrets().set(name, secret),
                Step::Publish(assembled) => outcome = self.outlet.publish(assembled).await,
                Step::Routes(handle, table) => handle.store(table),
                Step::Scopes(handle, table) => handle.store(table),
                Step::Runtime(name, values) => self.outlet.runtime(&name, values),
                Step::Forget(name) => self.outlet.clusters().forget_endpoints(&name),
            }
        }
        outcome
    }
}
