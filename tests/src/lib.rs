//! Nodes and pods in network namespaces, and what runs in them: the stage for the integration tests, the
//! demo and the measurements.
//!
//! A [`netns::Node`] stands for a Kubernetes node, a [`netns::Pod`] for a pod on it, a [`netns::Link`] for
//! the wire between two nodes; [`kube_proxy`] writes the rules a node's kube-proxy would write,
//! [`mesh::MeshNode`] runs the proxy on a node and [`peer`] talks from one pod to another. Everything
//! is removed when it is dropped, after a panic as well, and [`run`] removes what a killed run left.
//!
//! Nothing here may know how the proxy works inside: it is started as a process, with files and flags,
//! as on a real node.

pub mod differential;
pub mod foreign;
pub mod kube_proxy;
pub mod load;
pub mod mesh;
pub mod netns;
pub mod packet;
pub mod peer;
pub mod process;
pub mod redirect;
pub mod run;
pub mod soak;
pub mod sys;
