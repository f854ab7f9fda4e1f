//! One of the two proxies as a process.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::bootstrap::ADMIN_PORT;
use crate::process::{self, Process};

/// Which proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Envoy,
    MeshNode,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Envoy => "envoy",
            Kind::MeshNode => "mesh-node",
        }
    }

    fn program(self) -> Result<PathBuf> {
        match self {
            Kind::Envoy => envoy(),
            Kind::MeshNode => process::binary("mesh-node"),
        }
    }

    fn command(self, bootstrap: &Path) -> Result<Command> {
        let mut command = Command::new(self.program()?);
        command.arg("-c").arg(bootstrap).args(["--concurrency", "1"]);
        match self {
            Kind::Envoy => {
                command.args(["-l", "warn", "--disable-hot-restart", "--file-flush-interval-msec", "50"])
            }
            Kind::MeshNode => command.args(["-l", "warn", "--drain-time-s", "1"]),
        };
        Ok(command)
    }
}

/// The Envoy that `MESH_ENVOY` names, or that `cargo xtask setup` installed.
pub fn envoy() -> Result<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.local/envoy/envoy");
    let path = std::env::var_os("MESH_ENVOY").map_or(installed, PathBuf::from);
    if !path.is_file() {
        bail!("no Envoy at {}: run `cargo xtask setup`, or set MESH_ENVOY to its path", path.display());
    }
    Ok(path)
}

/// A running proxy. Dropping it kills it.
pub struct Proxy {
    process: Process,
}

impl Proxy {
    /// Starts the proxy and waits until it is ready.
    pub async fn start(kind: Kind, bootstrap: &str, folder: &Path, ip: IpAddr) -> Result<Proxy> {
        let path = folder.join(format!("{}.json", kind.name()));
        fs::write(&path, bootstrap)?;
        let mut process = Process::spawn(kind.command(&path)?, None)?;
        let until = Instant::now() + process::deadline();
        while !is_ready(ip).await {
            if !process.is_running() {
                bail!("{} ended at its start: {}", kind.name(), process.errors());
            }
            if Instant::now() > until {
                bail!("{} is not ready in time: {}", kind.name(), process.errors());
            }
            // Another process: its admin port is all there is to ask.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Proxy { process })
    }

    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Ends the proxy in order, so that its logs are complete.
    pub fn stop(mut self) -> Result<()> {
        self.process.signal(libc::SIGTERM)?;
        if self.process.wait(Duration::from_secs(5)).is_err() {
            self.process.kill();
        }
        Ok(())
    }

    pub fn errors(&self) -> String {
        self.process.errors()
    }
}

async fn is_ready(ip: IpAddr) -> bool {
    let ask = async {
        let mut admin = TcpStream::connect((ip, ADMIN_PORT)).await?;
        admin.write_all(b"GET /ready HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        admin.read_to_string(&mut answer).await?;
        anyhow::Ok(answer.starts_with("HTTP/1.1 200"))
    };
    tokio::time::timeout(Duration::from_secs(2), ask)
        .await
        .context("no answer")
        .and_then(|r| r)
        .unwrap_or(false)
}
