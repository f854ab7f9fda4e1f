//! Why pods cannot come from the API. One line each, with the remedy.

use std::path::PathBuf;

use kube::config::{InferConfigError, KubeconfigError};

/// Errors of the start, and a token that is not given; others are logged while what is enrolled stays.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "node_name is not set; set it (or NODE_NAME) to the name of this node, in a DaemonSet by the field spec.nodeName"
    )]
    NodeName,
    #[error("kubeconfig {}: {source}; set kubeconfig to a readable file with a current context", path.display())]
    Kubeconfig { path: PathBuf, source: Box<KubeconfigError> },
    #[error(
        "no Kubernetes API is known: {0}; set kubeconfig, or run in a pod with a service account token (automountServiceAccountToken)"
    )]
    NoApi(#[source] Box<InferConfigError>),
    #[error(
        "the client of the Kubernetes API cannot be made: {0}; check certificates and token that kubeconfig names"
    )]
    Client(#[source] Box<kube::Error>),
    #[error("pod {pod} has no token of its service account {service_account}: {source}; {remedy}")]
    Token { pod: String, service_account: String, source: Box<kube::Error>, remedy: &'static str },
}
