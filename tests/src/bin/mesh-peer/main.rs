//! The two ends of a test connection, as a program, because a socket belongs to the control group of
//! the process that made it. What the commands print is read by `mesh_tests::peer`.

mod client;
mod echo;
mod kinds;
mod load;
mod many;
mod mixed;
mod puppet;
mod server;
mod sockets;
mod streams;
mod visit;

use std::io::Read;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use mesh_tests::peer::Kind;
use mesh_tests::soak::Protocol;

#[derive(Parser)]
#[command(about = "Test servers and clients that report the addresses they see")]
enum Command {
    /// Accept connections and report them; prints `listening` once it does.
    Serve {
        #[arg(long, required = true)]
        listen: Vec<SocketAddr>,
        #[arg(long)]
        name: String,
        #[arg(long, value_enum)]
        mode: Mode,
    },
    /// One connection, one exchange; prints the outcome as one line of JSON.
    Call(client::CallArgs),
    /// One connection; lines of standard input are sent, answers are printed after `> `.
    Session {
        #[arg(long)]
        to: SocketAddr,
    },
    /// Many connections that exchange lines until the end of standard input.
    Hold {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        connections: usize,
        /// Between the exchanges of a connection
        #[arg(long)]
        pause_ms: u64,
    },
    /// Connections that ask for many bytes each and read none of them, until the end of standard input.
    Hoard {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        connections: usize,
    },
    /// Many short connections.
    Churn {
        #[arg(long, required = true)]
        to: Vec<SocketAddr>,
        #[arg(long)]
        count: u64,
    },
    /// Serve HTTP/1.1, HTTP/2, gRPC and lines over TCP; a line of standard input asks for the number of open
    /// connections.
    Mixed,
    /// Exchanges of one protocol until the end of standard input; a line of it asks for the tally so far.
    Load {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        protocol: String,
        #[arg(long)]
        concurrency: usize,
    },
    /// Serve transfers in which every byte is checked.
    StreamsServe {
        #[arg(long)]
        listen: SocketAddr,
        /// Use sockets as threads do
        #[arg(long)]
        blocking: bool,
    },
    /// Make such transfers; prints a tally.
    StreamsCall(streams::CallArgs),
    /// Accept connections and never read from them.
    Deaf {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Send back what comes, as an event loop.
    EchoServe {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Connections of an event loop that take the turns that standard input says.
    EchoCall {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        connections: usize,
    },
    /// Write until nothing more is taken; prints the number of bytes.
    Flood {
        #[arg(long)]
        to: SocketAddr,
        /// Bytes of each write
        #[arg(long)]
        message: usize,
    },
    /// Connections with sockets of a kind that is never accelerated; prints a tally.
    Kinds {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        kind: String,
        #[arg(long)]
        count: u64,
    },
    /// Visit an HTTP server, one new connection for each request; prints a tally.
    Visit(visit::VisitArgs),
    /// Do with sockets what the lines of standard input say, one answer for each.
    Puppet,
    /// Wait for the end of standard input, then remove what dead runs left behind.
    Janitor {
        /// The process whose end the end of standard input means.
        #[arg(long)]
        of: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Report,
    First,
    Http,
}

fn main() -> ExitCode {
    let outcome = match Command::parse() {
        Command::Serve { listen, name, mode } => server::serve(&listen, &name, mode),
        Command::Call(args) => {
            println!("{}", serde_json::json!(client::call(&args)));
            Ok(())
        }
        Command::Session { to } => client::session(to),
        Command::Hold { to, connections, pause_ms } => {
            many::hold(to, connections, Duration::from_millis(pause_ms))
        }
        Command::Hoard { to, connections } => many::hoard(to, connections),
        Command::Churn { to, count } => many::churn(&to, count),
        Command::Mixed => mixed::serve(),
        Command::Load { to, protocol, concurrency } => Protocol::named(&protocol)
            .context("no such protocol")
            .and_then(|protocol| load::load(to, protocol, concurrency)),
        Command::StreamsServe { listen, blocking } => streams::serve(listen, blocking),
        Command::StreamsCall(args) => streams::call(&args),
        Command::Deaf { listen } => streams::deaf(listen),
        Command::EchoServe { listen } => echo::serve(listen),
        Command::EchoCall { to, connections } => echo::call(to, connections),
        Command::Flood { to, message } => streams::flood(to, message),
        Command::Kinds { to, kind, count } => {
            Kind::named(&kind).context("no such kind").and_then(|kind| kinds::call(to, kind, count))
        }
        Command::Visit(args) => visit::visit(&args),
        Command::Puppet => puppet::run(),
        Command::Janitor { of } => {
            std::io::stdin().read_to_end(&mut Vec::new()).ok();
            mesh_tests::run::sweep(Some(of));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
