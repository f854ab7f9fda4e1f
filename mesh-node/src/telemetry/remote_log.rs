//! Access logs that go to a server (`envoy.access_loggers.http_grpc`, `tcp_grpc`): workers leave entries here, one
//! task of the process sends them. An entry beyond the bound is dropped and counted; a server that is away never
//! holds a worker.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use super::format::RequestHead;
use super::stats::FilesystemStats;
use super::stream_info::{ResponseFlags, StreamInfo, UpstreamInfo};
use crate::model::Str;
use crate::model::source::GrpcServer;

/// Entries that wait of one log.
const MAX_ENTRIES: usize = 8192;

/// Which log of which server. Equal ones are one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    pub server: GrpcServer,
    /// `log_name`
    pub name: Str,
    /// A log of connections, not of requests.
    pub tcp: bool,
}

/// One finished stream.
#[derive(Debug)]
pub struct Entry {
    pub start: SystemTime,
    pub duration: Option<Duration>,
    pub remote: SocketAddr,
    pub direct_remote: SocketAddr,
    pub local: SocketAddr,
    pub server_name: Option<String>,
    pub flags: ResponseFlags,
    pub route: Option<Str>,
    pub upstream: UpstreamInfo,
    pub termination_details: Option<String>,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Of a request; a connection has none.
    pub http: Option<HttpEntry>,
}

/// What is of a request alone.
#[derive(Debug)]
pub struct HttpEntry {
    pub version: Option<http::Version>,
    pub request: Option<RequestHead>,
    pub code: Option<u16>,
    pub code_details: Option<String>,
    pub request_headers_bytes: u64,
    pub response_headers_bytes: u64,
}

/// A log and what waits to be sent.
#[derive(Debug)]
pub struct RemoteLog {
    pub target: Target,
    entries: Mutex<Vec<Entry>>,
    stats: Arc<FilesystemStats>,
}

/// All logs of the process that go to servers.
#[derive(Debug, Default)]
pub struct RemoteLogs(Mutex<HashMap<Target, Weak<RemoteLog>>>);

impl RemoteLogs {
    /// The log of this target.
    pub fn open(&self, target: &Target, stats: &Arc<FilesystemStats>) -> Arc<RemoteLog> {
        let mut logs = lock(&self.0);
        if let Some(log) = logs.get(target).and_then(Weak::upgrade) {
            return log;
        }
        logs.retain(|_, log| log.strong_count() > 0);
        let log =
            Arc::new(RemoteLog { target: target.clone(), entries: Mutex::default(), stats: stats.clone() });
        logs.insert(target.clone(), Arc::downgrade(&log));
        log
    }

    /// Those that are in use.
    pub fn held(&self) -> Vec<Arc<RemoteLog>> {
        lock(&self.0).values().filter_map(Weak::upgrade).collect()
    }
}

impl RemoteLog {
    /// Leaves an entry for a finished stream.
    pub fn log(&self, info: &StreamInfo, request: Option<&RequestHead>) {
        let mut entries = lock(&self.entries);
        if entries.len() >= MAX_ENTRIES {
            self.stats.write_dropped.inc();
            return;
        }
        self.stats.write_buffered.inc();
        entries.push(Entry::of(info, request, self.target.tcp));
    }

    /// What waits to be sent; it waits no longer.
    pub fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut *lock(&self.entries))
    }

    /// These entries could not be sent.
    pub fn dropped(&self, count: usize) {
        (0..count).for_each(|_| self.stats.write_dropped.inc());
    }
}

impl Entry {
    fn of(info: &StreamInfo, request: Option<&RequestHead>, tcp: bool) -> Self {
        let http = (!tcp).then(|| HttpEntry {
            version: info.protocol,
            request: request.cloned(),
            code: info.response_code,
            code_details: info.response_code_details.as_deref().map(str::to_owned),
            request_headers_bytes: info.request_headers_bytes,
            response_headers_bytes: info.response_headers_bytes,
        });
        Self {
            start: info.start_wall,
            duration: info.end,
            remote: info.remote,
            direct_remote: info.connection.peer,
            local: info.connection.local,
            server_name: info.connection.requested_server_name.clone(),
            flags: info.flags,
            route: info.route_name.clone(),
            upstream: info.upstream.clone(),
            termination_details: info.connection_termination_details.as_deref().map(str::to_owned),
            bytes_received: info.bytes_received,
            bytes_sent: info.bytes_sent,
            http,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::format::tests::{head, stream};
    use super::*;
    use crate::model::source::GrpcTarget;

    #[test]
    fn a_server_that_is_away_costs_entries_not_memory() {
        let server = GrpcServer {
            target: GrpcTarget::Cluster("als".into()),
            authority: "als".into(),
            metadata: Vec::new(),
            tokens: Vec::new(),
            max_message_bytes: None,
        };
        let target = Target { server, name: "log".into(), tcp: false };
        let (logs, stats) = (RemoteLogs::default(), Arc::<FilesystemStats>::default());
        let log = logs.open(&target, &stats);
        assert!(Arc::ptr_eq(&log, &logs.open(&target, &stats)));
        let (info, head) = (stream(), head());
        (0..MAX_ENTRIES + 3).for_each(|_| log.log(&info, Some(&head)));
        assert_eq!(stats.write_dropped.get(), 3);
        let taken = log.take();
        assert_eq!((taken.len(), log.take().len()), (MAX_ENTRIES, 0));
        assert_eq!(taken[0].http.as_ref().unwrap().request.as_ref().unwrap().path, head.path);
        drop(log);
        assert!(logs.held().is_empty());
    }
}
