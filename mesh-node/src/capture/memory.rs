//! Capture without a kernel: connections are handed in by a test, sockets are opened where the
//! test runs. For tests of the stages after capture.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{CaptureSource, Captured};
use crate::model::workload::{SocketFactory, Workload};

/// A source that yields what is sent to the other half of [`memory_capture`].
#[derive(Debug)]
pub struct MemoryCapture(Receiver<Captured>);

/// A pair: connections sent to the first come out of the second. Capture ends when the sender is
/// dropped.
pub fn memory_capture() -> (Sender<Captured>, MemoryCapture) {
    let (sender, receiver) = channel(16);
    (sender, MemoryCapture(receiver))
}

impl CaptureSource for MemoryCapture {
    async fn accept(&mut self) -> Option<Captured> {
        self.0.recv().await
    }
}

/// Opens sockets in the current namespace, unmarked. The client's address is not kept.
#[derive(Debug, Default)]
pub struct LocalSockets;

impl SocketFactory for LocalSockets {
    fn to_network(&self, remote: SocketAddr, source: Option<SocketAddr>) -> io::Result<Socket> {
        let domain = Domain::for_address(remote);
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        source.map_or(Ok(()), |source| socket.bind(&source.into()))?;
        Ok(socket)
    }

    fn to_application(&self, _source: SocketAddr, remote: SocketAddr) -> io::Result<Socket> {
        self.to_network(remote, None)
    }
}

/// A workload named `name` whose sockets are [`LocalSockets`].
pub fn local_workload(name: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: name.into(),
        namespace: "default".into(),
        name: name.into(),
        service_account: "default".into(),
        labels: Default::default(),
        annotations: Default::default(),
        details: Default::default(),
        peer: Default::default(),
        ips: vec![[127, 0, 0, 1].into()],
        sockets: Arc::new(LocalSockets),
        limits: Default::default(),
        drain: Default::default(),
        hand_over: Default::default(),
    })
}
