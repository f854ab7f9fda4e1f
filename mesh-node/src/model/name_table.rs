//! The names of a mesh with their addresses (`istio.networking.nds.v1.NameTable`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Str;

/// By host name, in lower case and without a dot at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameTable {
    pub hosts: BTreeMap<Str, NamedHost>,
}

/// One host of a [`NameTable`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedHost {
    pub ips: Vec<IpAddr>,
    /// `Kubernetes` or `External`.
    pub registry: Str,
    /// Kubernetes' name and namespace of the service; empty for other hosts.
    pub short_name: Str,
    pub namespace: Str,
}
