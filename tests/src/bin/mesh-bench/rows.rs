//! What is measured: the named rows, and the paths a row is measured on.
//!
//! Exists so that the list can be read at a glance and two runs mean the same thing by a name. It must
//! not know how a path is built or a load is made.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A way from the client pod to the server pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// No mesh.
    Direct,
    /// An Envoy in each pod, HTTP connection manager on both sides, mutual TLS between them.
    Sidecar,
    /// The same without TLS.
    SidecarPlain,
    /// An Envoy in each pod, `tcp_proxy` on both sides, mutual TLS between them.
    SidecarL4,
    /// One HAProxy on the client's node, `nbthread 2`, http mode; the client speaks to it by address.
    Haproxy,
    /// Both pods enrolled: outbound and inbound half, L7.
    Mesh,
    /// Only the client enrolled: outbound half, L7.
    MeshOut,
    /// Both pods enrolled, `tcp_proxy`.
    MeshL4,
    /// Only the client enrolled, `tcp_proxy`.
    MeshL4Out,
    /// As [`Path::Mesh`], the two halves meeting in memory.
    MeshInmem,
    /// As [`Path::MeshL4`], the applications' connections handed off to each other.
    MeshHandoff,
}

impl Path {
    /// Whether the proxy parses HTTP; the others copy bytes (`tcp_proxy`).
    pub fn is_l7(self) -> bool {
        !matches!(self, Path::SidecarL4 | Path::MeshL4 | Path::MeshL4Out | Path::MeshHandoff)
    }

    pub fn is_sidecar(self) -> bool {
        matches!(self, Path::Sidecar | Path::SidecarPlain | Path::SidecarL4)
    }

    pub fn is_mesh(self) -> bool {
        matches!(
            self,
            Path::Mesh | Path::MeshOut | Path::MeshL4 | Path::MeshL4Out | Path::MeshInmem | Path::MeshHandoff
        )
    }

    /// Without acceleration, with it, or both.
    pub fn accelerations(self) -> &'static [bool] {
        match self {
            // Only accelerated connections are handed off.
            Path::MeshHandoff => &[true],
            path if path.is_mesh() => &[false, true],
            _ => &[false],
        }
    }

    /// Settings of mesh-node that make this path what it is.
    pub fn settings(self) -> &'static [&'static str] {
        match self {
            Path::MeshInmem => &["in_memory"],
            Path::MeshHandoff => &["hand_off"],
            _ => &[],
        }
    }

    /// Whether the proxy's inbound half runs for the server pod as well.
    pub fn has_inbound_half(self) -> bool {
        self.is_sidecar() || matches!(self, Path::Mesh | Path::MeshL4 | Path::MeshInmem | Path::MeshHandoff)
    }

    /// Sidecars speak mutual TLS to each other as Istio's do, except where the name says plain. The mesh
    /// does so between nodes, where the row asks for it; on one node its bytes never leave the host.
    pub fn is_mtls(self, placement: Placement) -> bool {
        match self {
            Path::Sidecar | Path::SidecarL4 => true,
            path => path.is_mesh() && placement == Placement::TwoNodesMtls,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.pad(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// A path, and whether its bytes may go past TCP between pods and proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    pub path: Path,
    /// Only ever for paths of the mesh.
    pub acceleration: bool,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.path.to_string();
        f.pad(&if self.acceleration { format!("{name} accel.") } else { name })
    }
}

/// Where client and server pod are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    SameNode,
    TwoNodes,
    /// As [`Placement::TwoNodes`], with mutual TLS between the proxies of the mesh.
    TwoNodesMtls,
}

/// How requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// HTTP/1.1 keep-alive.
    Http1,
    /// HTTP/1.1 with `Connection: close`: a new connection for every request.
    NewConnections,
    /// h2c with prior knowledge, this many streams at a time on each connection.
    Http2 { streams: u32 },
    /// Unary gRPC over h2c, this many streams at a time on each connection.
    Grpc { streams: u32 },
    /// One connection, one direction, as many bytes as go through.
    Bulk,
}

/// One row of the result table, for all of its paths.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub scenario: &'static str,
    pub connections: u32,
    /// Size of the answer's body; of no meaning for [`Load::Bulk`].
    pub payload_bytes: u32,
    pub load: Load,
    pub placement: Placement,
    pub paths: &'static [Path],
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} c={}", self.scenario, self.connections)?;
        match self.load {
            Load::Http2 { streams } | Load::Grpc { streams } => write!(f, "×{streams}"),
            _ => Ok(()),
        }
    }
}

const L7: &[Path] = &[
    Path::Direct,
    Path::Sidecar,
    Path::SidecarPlain,
    Path::Haproxy,
    Path::Mesh,
    Path::MeshOut,
    Path::MeshInmem,
];
const L7_NO_HAPROXY: &[Path] =
    &[Path::Direct, Path::Sidecar, Path::SidecarPlain, Path::Mesh, Path::MeshOut, Path::MeshInmem];
const L4: &[Path] = &[Path::Direct, Path::SidecarL4, Path::MeshL4, Path::MeshL4Out, Path::MeshHandoff];
const ALL: &[Path] = &[
    Path::Direct,
    Path::Sidecar,
    Path::SidecarPlain,
    Path::SidecarL4,
    Path::Haproxy,
    Path::Mesh,
    Path::MeshOut,
    Path::MeshL4,
    Path::MeshL4Out,
    Path::MeshInmem,
    Path::MeshHandoff,
];
const PLAIN_BETWEEN_NODES: &[Path] =
    &[Path::Direct, Path::SidecarPlain, Path::Haproxy, Path::Mesh, Path::MeshOut];
const MTLS_L7: &[Path] = &[Path::Direct, Path::Sidecar, Path::Mesh];
const MTLS_L4: &[Path] = &[Path::Direct, Path::SidecarL4, Path::MeshL4];

/// Size of the small answer.
pub const SMALL: u32 = 130;

const fn row(
    scenario: &'static str,
    connections: u32,
    payload_bytes: u32,
    load: Load,
    placement: Placement,
    paths: &'static [Path],
) -> Row {
    Row { scenario, connections, payload_bytes, load, placement, paths }
}

/// The twelve named rows of a run.
pub const STANDARD: [Row; 12] = [
    row("same-node-http1", 1, SMALL, Load::Http1, Placement::SameNode, L7),
    row("same-node-http1", 64, SMALL, Load::Http1, Placement::SameNode, L7),
    row("same-node-http1-64k", 64, 65536, Load::Http1, Placement::SameNode, L7),
    row("same-node-http2", 8, SMALL, Load::Http2 { streams: 8 }, Placement::SameNode, L7),
    row("same-node-tcp", 1, SMALL, Load::Http1, Placement::SameNode, L4),
    row("same-node-tcp", 64, SMALL, Load::Http1, Placement::SameNode, L4),
    row("connect-rate", 16, SMALL, Load::NewConnections, Placement::SameNode, ALL),
    row("bulk", 1, 0, Load::Bulk, Placement::SameNode, L4),
    row("two-node-http1", 64, SMALL, Load::Http1, Placement::TwoNodes, PLAIN_BETWEEN_NODES),
    row("two-node-mtls-http1", 1, SMALL, Load::Http1, Placement::TwoNodesMtls, MTLS_L7),
    row("two-node-mtls-http1", 64, SMALL, Load::Http1, Placement::TwoNodesMtls, MTLS_L7),
    row("two-node-mtls-tcp", 64, SMALL, Load::Http1, Placement::TwoNodesMtls, MTLS_L4),
];

/// What `--full` adds: other sizes, other numbers of connections, gRPC.
pub const FULL: [Row; 9] = [
    row("same-node-http1-1k", 64, 1024, Load::Http1, Placement::SameNode, L7),
    row("same-node-http1-1m", 64, 1 << 20, Load::Http1, Placement::SameNode, L7),
    row("same-node-http1", 16, SMALL, Load::Http1, Placement::SameNode, L7),
    row("same-node-http1", 256, SMALL, Load::Http1, Placement::SameNode, L7),
    row("same-node-tcp-64k", 64, 65536, Load::Http1, Placement::SameNode, L4),
    row("same-node-tcp-1m", 64, 1 << 20, Load::Http1, Placement::SameNode, L4),
    row("same-node-tcp", 16, SMALL, Load::Http1, Placement::SameNode, L4),
    row("same-node-tcp", 256, SMALL, Load::Http1, Placement::SameNode, L4),
    row("same-node-grpc", 8, SMALL, Load::Grpc { streams: 8 }, Placement::SameNode, L7_NO_HAPROXY),
];
