//! The pods of this node, from the Kubernetes API: which of them are enrolled, and where their networks are.
//!
//! Watches this node's pods and the namespaces that say something about enrolment, finds each enrolled pod's network
//! namespace by its processes, and hands on whole lists of [`PodSpec`]. All it writes to the API are Events that say why
//! a pod is not enrolled; and it enters no pod: that is the business of capture. While the API is away what was enrolled stays; at start that is the list
//! which an earlier process had written down.
//!
//! Reading order: `pod` (who is enrolled), `registry` (what is known), `processes` (where a pod's network is),
//! `resolve` (the list), `follow` (the watches), `tell` (Events), `tokens` (who a pod is to a control plane).

mod error;
mod follow;
mod pod;
mod processes;
mod registry;
mod resolve;
mod tell;
mod tokens;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;

use crate::capture::pods::{Held, PodSpec};
pub use error::Error;
use processes::Processes;
use resolve::{Known, Resolver};
pub use tokens::{Bearer, Tokens};

/// How long the API may take to accept a connection.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// The API ends a watch after so many seconds, so that one that hangs is noticed soon after.
const WATCH_SECONDS: u32 = 60;
const READ_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(75);

/// Where the API is, and whose pods are followed.
#[derive(Debug, Clone)]
pub struct Options {
    /// `spec.nodeName` of the pods.
    pub node_name: Option<String>,
    /// `None`: `$KUBECONFIG`, or the service account of the pod that this is.
    pub kubeconfig: Option<PathBuf>,
    /// Where the enrolled pods are written down for the next process.
    pub known_pods: PathBuf,
}

/// What is new of pods.
#[derive(Debug)]
pub enum Heard {
    /// [`Source::current`] has changed.
    Listed,
    /// Network namespaces of pods that are not to be enrolled, asked for by [`Source::look`].
    Strangers(Vec<Held>),
}

/// Who is to be enrolled.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    pub pods: Vec<PodSpec>,
    /// Some namespace of the cluster or pod of this node asks for the mesh, whether it is part of it or not; also
    /// while that is not known.
    pub asked_for: bool,
}

/// The list of enrolled pods as it changes. Dropping it ends the watches.
pub struct Source {
    lists: watch::Receiver<Option<Listed>>,
    strangers: mpsc::UnboundedReceiver<Vec<Held>>,
    look: Arc<Notify>,
    client: Client,
    task: AbortHandle,
}

/// What the following task hands out.
struct Outbox {
    lists: watch::Sender<Option<Listed>>,
    strangers: mpsc::UnboundedSender<Vec<Held>>,
}

impl Source {
    /// Begins to follow. The API need not answer yet.
    ///
    /// # Errors
    /// When it is not known where the API is or which node this is.
    pub async fn start(options: &Options) -> Result<Self, Error> {
        let node = options.node_name.clone().filter(|name| !name.is_empty()).ok_or(Error::NodeName)?;
        let mut config = match &options.kubeconfig {
            Some(path) => from_file(path).await?,
            None => Config::infer().await.map_err(|source| Error::NoApi(Box::new(source)))?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        let api = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|source| Error::Client(Box::new(source)))?;
        let mut resolver = Resolver::new(Processes::of_host(), Known::at(options.known_pods.clone()));
        let left = resolver.left_by_an_earlier_process().map(|pods| Listed { pods, asked_for: true });
        let (listing, lists) = watch::channel(left);
        let (telling, strangers) = mpsc::unbounded_channel();
        let outbox = Outbox { lists: listing, strangers: telling };
        let look = Arc::<Notify>::default();
        tracing::info!(%api, %node, "pods come from the Kubernetes API");
        let follower = follow::run(client.clone(), (api, node), resolver, look.clone(), outbox);
        let task = tokio::spawn(follower).abort_handle();
        Ok(Self { lists, strangers, look, client, task })
    }

    /// Where tokens of pods for this audience come from.
    pub fn tokens(&self, audience: &str) -> Tokens {
        Tokens::new(self.client.clone(), audience.to_owned())
    }

    /// The pods that are to be enrolled now; `None` while that is not known.
    pub fn current(&mut self) -> Option<Listed> {
        self.lists.borrow_and_update().clone()
    }

    /// Somebody whom nobody knows has connected: look for pods at once.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// What is new since this was last asked. Safe to cancel.
    pub async fn next(&mut self) -> Heard {
        tokio::select! {
            Ok(()) = self.lists.changed() => Heard::Listed,
            Some(namespaces) = self.strangers.recv() => Heard::Strangers(namespaces),
            // The task ends with this value only.
            else => std::future::pending().await,
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn from_file(path: &Path) -> Result<Config, Error> {
    let wrong = |source| Error::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let file = Kubeconfig::read_from(path).map_err(wrong)?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(wrong)
}
