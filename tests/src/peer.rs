//! Both ends of a connection as a test sees them: `mesh-peer` started as a server or as a client in a
//! pod, and what each end reports about the addresses it saw.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::netns::{HostCgroup, Node, Pod};
use crate::process::{self, Process};

/// What the server says about a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The name the server was started with.
    pub name: String,
    /// `getsockname` of the accepted socket.
    pub local: SocketAddr,
    /// `getpeername` of the accepted socket.
    pub peer: SocketAddr,
}

/// What the client says about a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// `getsockname`, once connected.
    pub local: Option<SocketAddr>,
    /// `getpeername`, once connected.
    pub peer: Option<SocketAddr>,
    /// What the server saw; absent if the exchange failed.
    pub server: Option<Seen>,
    pub failure: Option<Failure>,
}

/// Where and how a client's exchange failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// `bind`, `connect`, `send`, `receive`.
    pub stage: String,
    /// The operating system's error number; absent for an end of file or an answer that is no answer.
    pub errno: Option<i32>,
    pub text: String,
}

impl Call {
    /// What the server saw, or an error that says how the exchange failed.
    pub fn ok(&self) -> Result<&Seen> {
        match (&self.server, &self.failure) {
            (Some(seen), None) => Ok(seen),
            (_, Some(failure)) => Err(anyhow::anyhow!("{}: {}", failure.stage, failure.text)),
            (None, None) => Err(anyhow::anyhow!("the client reports neither an answer nor a failure")),
        }
    }

    /// The error number of the failure, or an error if the exchange went well or failed without one.
    pub fn errno(&self) -> Result<i32> {
        ensure!(self.server.is_none(), "the exchange went well: {:?}", self.server);
        let failure = self.failure.as_ref().context("no failure was reported")?;
        failure.errno.with_context(|| format!("{}: {}", failure.stage, failure.text))
    }
}

/// The outcome of many exchanges ([`hold`](Place::hold), [`churn`](Place::churn)).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    pub exchanges: u64,
    pub failed: u64,
    /// The first few failures, in words.
    pub errors: Vec<String>,
}

impl Tally {
    /// An error if anything failed.
    pub fn all_ok(&self) -> Result<u64> {
        ensure!(self.failed == 0, "{} of {} failed: {:?}", self.failed, self.exchanges, self.errors);
        Ok(self.exchanges)
    }
}

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Answers the line `who` with a [`Seen`], echoes other lines.
    Report,
    /// The same, but the server speaks first, with a [`Seen`].
    First,
    /// HTTP/1.1; the body of every answer is a [`Seen`].
    Http,
}

/// How a client calls; the default is a plain connect.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// Source address and port (port 0: any).
    pub bind: Option<SocketAddr>,
    /// `SO_MARK`.
    pub mark: Option<u32>,
    /// Connect through an IPv6 socket to the IPv4-mapped address.
    pub mapped: bool,
    /// Wait for the server to speak first.
    pub server_first: bool,
    /// Let the server close first, so that the client's port is in TIME_WAIT on the server's side.
    pub server_closes: bool,
    /// Limit for each step, in milliseconds; 10,000 by default.
    pub timeout_ms: Option<u64>,
}

impl CallOptions {
    fn args(&self) -> Vec<String> {
        let mut args = Vec::new();
        let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
        if let Some(bind) = self.bind {
            option("--bind", bind.to_string());
        }
        if let Some(mark) = self.mark {
            option("--mark", mark.to_string());
        }
        if let Some(limit) = self.timeout_ms {
            option("--timeout-ms", limit.to_string());
        }
        for (set, name) in [
            (self.mapped, "--mapped"),
            (self.server_first, "--server-first"),
            (self.server_closes, "--server-closes"),
        ] {
            if set {
                args.push(name.to_owned());
            }
        }
        args
    }
}

/// Where a peer runs.
pub trait Place {
    /// Starts a process there.
    fn start(&self, command: Command) -> Result<Process>;

    /// Starts a server; it accepts connections when this returns.
    fn serve(&self, name: &str, mode: Server, listen: &[SocketAddr]) -> Result<Process> {
        let mode = match mode {
            Server::Report => "report",
            Server::First => "first",
            Server::Http => "http",
        };
        let mut command = peer("serve")?;
        command.args(["--name", name, "--mode", mode]);
        for address in listen {
            command.args(["--listen", &address.to_string()]);
        }
        let mut server = self.start(command)?;
        let line = server.line()?;
        ensure!(line == "listening", "unexpected line of the server: {line}");
        Ok(server)
    }

    /// One connection and one exchange.
    fn call(&self, to: SocketAddr) -> Result<Call> {
        self.call_with(to, &CallOptions::default())
    }

    fn call_with(&self, to: SocketAddr, options: &CallOptions) -> Result<Call> {
        let mut command = peer("call")?;
        command.args(["--to", &to.to_string()]).args(options.args());
        let line = self.start(command)?.line()?;
        serde_json::from_str(&line).with_context(|| format!("unexpected line of the client: {line}"))
    }

    /// A connection that is open when this returns and stays open.
    fn session(&self, to: SocketAddr) -> Result<Session> {
        let mut command = peer("session")?;
        command.args(["--to", &to.to_string()]);
        let mut process = self.start(command)?;
        let line = process.line()?;
        ensure!(line == "connected", "the session to {to} does not open: {line}");
        Ok(Session { process })
    }

    /// Connections that exchange a line again and again until [`Held::finish`].
    fn hold(&self, to: SocketAddr, connections: usize) -> Result<Held> {
        self.hold_at(to, connections, Duration::from_millis(2))
    }

    /// The same with this pause between the exchanges of a connection.
    fn hold_at(&self, to: SocketAddr, connections: usize, pause: Duration) -> Result<Held> {
        let mut command = peer("hold")?;
        command.args(["--to", &to.to_string(), "--connections", &connections.to_string()]);
        command.args(["--pause-ms", &pause.as_millis().to_string()]);
        let mut process = self.start(command)?;
        let line = process.line()?;
        ensure!(line == "running", "the held connections to {to} do not open: {line}");
        Ok(Held { process })
    }

    /// Connections that ask for much and read nothing, open until the process is dropped.
    fn hoard(&self, to: SocketAddr, connections: usize) -> Result<Process> {
        let mut command = peer("hoard")?;
        command.args(["--to", &to.to_string(), "--connections", &connections.to_string()]);
        let mut process = self.start(command)?;
        let line = process.line()?;
        ensure!(line == "running", "the hoard of {to} does not run: {line}");
        Ok(process)
    }

    /// `count` connections one after the other on each of a few threads, each with one exchange and
    /// a close by the client.
    fn churn(&self, to: &[SocketAddr], count: u64) -> Result<Tally> {
        let mut command = peer("churn")?;
        command.args(["--count", &count.to_string()]);
        for address in to {
            command.args(["--to", &address.to_string()]);
        }
        let line = self.start(command)?.line_within(Duration::from_secs(300))?;
        serde_json::from_str(&line).with_context(|| format!("unexpected line of the client: {line}"))
    }
}

/// Transfers in which both sides check every byte.
#[derive(Clone, Copy, Debug)]
pub struct Streams {
    /// The seed of the first; the others follow.
    pub seed: u64,
    pub count: u64,
    /// At a time.
    pub concurrency: usize,
    /// A reading and a writing thread at each end, in place of an event loop.
    pub blocking: bool,
}

impl Streams {
    /// Starts a server of transfers.
    pub fn serve(place: &impl Place, listen: SocketAddr, blocking: bool) -> Result<Process> {
        let mut command = peer("streams-serve")?;
        command.args(["--listen", &listen.to_string()]);
        if blocking {
            command.arg("--blocking");
        }
        started(place, command)
    }

    /// Makes the transfers.
    pub fn call(&self, place: &impl Place, to: SocketAddr) -> Result<Tally> {
        self.begin(place, to)?.finish(Duration::from_secs(3600))
    }

    /// The same, without waiting for the end.
    pub fn begin(&self, place: &impl Place, to: SocketAddr) -> Result<Running> {
        let mut command = peer("streams-call")?;
        command.args(["--to", &to.to_string(), "--seed", &self.seed.to_string()]);
        command.args(["--count", &self.count.to_string(), "--concurrency", &self.concurrency.to_string()]);
        if self.blocking {
            command.arg("--blocking");
        }
        Ok(Running(place.start(command)?))
    }
}

/// Transfers that are being made.
pub struct Running(Process);

impl Running {
    pub fn finish(mut self, limit: Duration) -> Result<Tally> {
        let line = self.0.line_within(limit)?;
        serde_json::from_str(&line).with_context(|| format!("unexpected line of the client: {line}"))
    }
}

/// What [`Echoes`] do on each of their connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Turn {
    /// Send so many bytes, and receive them back.
    Exchange(usize),
    /// The same, then the end of both directions, the client's first.
    HalfClose(usize),
    /// Wait for the other side's end, or a reset.
    Ended,
}

/// Open connections of an event loop to a server that sends back what it gets.
pub struct Echoes(Process);

impl Echoes {
    /// Starts the server, an event loop too.
    pub fn serve(place: &impl Place, listen: SocketAddr) -> Result<Process> {
        let mut command = peer("echo-serve")?;
        command.args(["--listen", &listen.to_string()]);
        started(place, command)
    }

    pub fn open(place: &impl Place, to: SocketAddr, connections: usize) -> Result<Echoes> {
        let mut command = peer("echo-call")?;
        command.args(["--to", &to.to_string(), "--connections", &connections.to_string()]);
        let mut process = place.start(command)?;
        let line = process.line()?;
        ensure!(line == "connected", "the connections to {to} do not open: {line}");
        Ok(Echoes(process))
    }

    /// Takes a turn on each connection, one after the other.
    pub fn take(&mut self, turn: Turn) -> Result<()> {
        self.0.send(&serde_json::to_string(&turn)?)?;
        let line = self.0.line_within(Duration::from_secs(60))?;
        ensure!(line == "done", "{turn:?}: {line}");
        Ok(())
    }
}

/// A server that accepts and never reads.
pub fn deaf(place: &impl Place, listen: SocketAddr) -> Result<Process> {
    let mut command = peer("deaf")?;
    command.args(["--listen", &listen.to_string()]);
    started(place, command)
}

/// Bytes that a client can write in messages of this size until nothing more is taken.
pub fn flood(place: &impl Place, to: SocketAddr, message: usize) -> Result<u64> {
    let mut command = peer("flood")?;
    command.args(["--to", &to.to_string(), "--message", &message.to_string()]);
    let line = place.start(command)?.line_within(Duration::from_secs(60))?;
    line.parse().with_context(|| format!("unexpected line of the client: {line}"))
}

/// A kind of socket that is never accelerated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Mptcp,
    Ktls,
    ZeroCopy,
    LowWatermark,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Mptcp, Kind::Ktls, Kind::ZeroCopy, Kind::LowWatermark];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Mptcp => "mptcp",
            Kind::Ktls => "ktls",
            Kind::ZeroCopy => "zerocopy",
            Kind::LowWatermark => "low-watermark",
        }
    }

    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// `count` connections to a server of [`Server::Report`]; `None` if this kernel has no such sockets.
    pub fn call(self, place: &impl Place, to: SocketAddr, count: u64) -> Result<Option<Tally>> {
        let mut command = peer("kinds")?;
        command.args(["--to", &to.to_string(), "--kind", self.name(), "--count", &count.to_string()]);
        let line = place.start(command)?.line_within(Duration::from_secs(120))?;
        if line == "unsupported" {
            return Ok(None);
        }
        serde_json::from_str(&line)
            .map(Some)
            .with_context(|| format!("unexpected line of the client: {line}"))
    }
}

fn started(place: &impl Place, command: Command) -> Result<Process> {
    let mut server = place.start(command)?;
    let line = server.line()?;
    ensure!(line == "listening", "unexpected line of the server: {line}");
    Ok(server)
}

impl Place for Pod {
    fn start(&self, command: Command) -> Result<Process> {
        self.spawn(command)
    }
}

/// The host itself, as the kubelet is.
impl Place for Node {
    fn start(&self, command: Command) -> Result<Process> {
        self.spawn(HostCgroup::System, command)
    }
}

/// A pod with `hostNetwork: true` on the node.
pub struct HostNetworkPod<'a>(pub &'a Node);

impl Place for HostNetworkPod<'_> {
    fn start(&self, command: Command) -> Result<Process> {
        self.0.spawn(HostCgroup::HostNetworkPod, command)
    }
}

/// A process in the pod's namespace whose control group is not the pod's: what a connect hook of the
/// pod's groups does not reach.
pub struct ForeignCgroup<'a>(pub &'a Pod);

impl Place for ForeignCgroup<'_> {
    fn start(&self, command: Command) -> Result<Process> {
        let folder = crate::run::cgroup()?.join(format!("foreign-{}", self.0.uid()));
        self.0.spawn_in(&folder, command)
    }
}

/// One open connection, driven line by line.
pub struct Session {
    process: Process,
}

impl Session {
    /// Sends a line and returns the answer; an error if the connection is gone.
    pub fn exchange(&mut self, line: &str) -> Result<String> {
        self.process.send(line)?;
        let answer = self.process.line()?;
        answer.strip_prefix("> ").map(str::to_owned).with_context(|| format!("the session ended: {answer}"))
    }

    /// What the server sees of this connection.
    pub fn who(&mut self) -> Result<Seen> {
        Ok(serde_json::from_str(&self.exchange("who")?)?)
    }

    /// Waits until the connection ends by the other side and returns how, in words.
    pub fn ended(&mut self) -> Result<String> {
        self.process.line()
    }
}

/// Connections under [`Place::hold`].
pub struct Held {
    process: Process,
}

impl Held {
    /// Stops the exchanges and returns the outcome.
    pub fn finish(mut self) -> Result<Tally> {
        self.process.close_stdin();
        let line = self.process.line()?;
        serde_json::from_str(&line).with_context(|| format!("unexpected line of the client: {line}"))
    }
}

fn peer(command: &str) -> Result<Command> {
    let mut peer = Command::new(process::binary("mesh-peer")?);
    peer.arg(command);
    Ok(peer)
}
