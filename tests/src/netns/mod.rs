//! The network of a small cluster out of namespaces, with the addresses a cluster has.
//!
//! Addresses are fixed by index, so that a test reads like a picture; tests do not disturb each other,
//! because every node and pod is a namespace of its own:
//!
//! | what | IPv4 | IPv6 |
//! | --- | --- | --- |
//! | node `n` | `192.168.77.n` | `fd77::n` |
//! | pod `p` on node `n` | `10.244.n.p`, p ≥ 2 | `fd10:244:n::p` |
//! | gateway of bridged pods | `10.244.n.1` | `fd10:244:n::1` |
//! | services, by convention | `10.96.0.0/16` | `fd10:96::/112` |

mod link;
mod node;
mod pod;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

pub use link::Link;
pub use node::{HostCgroup, Node};
pub use pod::{Network, Pod, PodSpec};

use crate::{process, run, sys};

/// A named network namespace under `/run/netns`, removed when dropped.
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    pub fn new(label: &str) -> Result<Netns> {
        run::prepare()?;
        let name = run::unique(label);
        process::run("ip", &["netns", "add", &name])?;
        let path = format!("/run/netns/{name}");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                process::run("ip", &["netns", "del", &name]).ok();
                return Err(error).with_context(|| format!("opening {path}"));
            }
        };
        let netns = Netns { name, file };
        // Duplicate address detection would delay every address by seconds.
        netns.sysctl(&[
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/router_solicitations", "0"),
        ])?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The name that `ip netns exec` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.name))
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs `ip` commands (one per line, without the leading `ip`) inside.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "-batch", "-"]);
        process::run_with_input(command, &format!("{batch}\n"))
    }

    /// The output of one `ip` command inside.
    pub fn ip_output(&self, args: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]).args(args.split_whitespace());
        process::output_of(&mut command, None)
    }

    /// Writes values below `/proc/sys` of this namespace.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in values {
                fs::write(format!("/proc/sys/{key}"), value)
                    .with_context(|| format!("setting {key}={value}"))?;
            }
            Ok(())
        })?
    }

    /// Reads a value below `/proc/sys` of this namespace.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        self.run(|| fs::read_to_string(format!("/proc/sys/{key}")).map(|v| v.trim().to_owned()))?
            .with_context(|| format!("reading {key}"))
    }

    /// A counter of the namespace's TCP, as `TCPSynRetrans` of `/proc/net/netstat` or `RetransSegs` of
    /// `/proc/net/snmp`.
    pub fn tcp_counter(&self, name: &str) -> Result<u64> {
        // The thread's own: `/proc/net` is that of the process.
        let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let text = self.run(|| Ok::<_, std::io::Error>(read("netstat")? + &read("snmp")?))??;
        // Lines in pairs: the names, then the values.
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
        let found = lines.chunks_exact(2).filter(|pair| pair[0][0].starts_with("Tcp")).find_map(|pair| {
            let at = pair[0].iter().position(|n| *n == name)?;
            pair[1].get(at)?.parse().ok()
        });
        found.with_context(|| format!("the kernel counts no {name}"))
    }

    /// Runs `work` on a thread inside this namespace; see [`sys::in_netns`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        sys::in_netns(&self.file, work)
    }

    /// Runs a tool inside to its end, with `input`, and returns its output. The control group is the
    /// caller's.
    pub fn tool(&self, mut command: Command, input: Option<&str>) -> Result<String> {
        sys::place(&mut command, &self.file, None)?;
        process::output_of(&mut command, input)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = process::run("ip", &["netns", "del", &self.name]) {
            eprintln!("removing {}: {error:#}", self.name);
        }
    }
}
