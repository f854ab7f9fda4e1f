//! The servers of the bench: what every path ends at, and the one-hop proxy that runs beside.
//!
//! One nginx with one worker in each server pod, the same for every path. The ports are by protocol,
//! because nginx of this age cannot tell h2c from HTTP/1.1 on one port.

use std::fs;
use std::path::Path as FilePath;
use std::process::Command;

use anyhow::{Context, Result};

use mesh_tests::netns::{HostCgroup, Node, Pod};
use mesh_tests::process::{self, Process};

use crate::rows::SMALL;

/// The ports a server pod listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Http1,
    Http2,
    Grpc,
    Bulk,
}

impl Port {
    pub const ALL: [Port; 4] = [Port::Http1, Port::Http2, Port::Grpc, Port::Bulk];

    pub fn number(self) -> u16 {
        match self {
            Port::Http1 => 8080,
            Port::Http2 => 8081,
            Port::Grpc => 8082,
            Port::Bulk => 8083,
        }
    }

    /// Whether an L7 proxy speaks HTTP on this port.
    pub fn is_http(self) -> bool {
        self != Port::Bulk
    }
}

/// Sizes of the answers; each is served under its number.
const SIZES: [u32; 4] = [SMALL, 1024, 65536, 1 << 20];

/// Writes the documents and the configuration that all nginx of a run share.
pub fn write_nginx(folder: &FilePath) -> Result<()> {
    let documents = folder.join("documents");
    fs::create_dir_all(&documents).context("cannot make the folder of documents")?;
    for size in SIZES {
        fs::write(documents.join(size.to_string()), "x".repeat(size as usize))?;
    }
    let small = "x".repeat(SMALL as usize);
    let config = format!(
        "daemon off; master_process off; worker_processes 1; pid /dev/null; error_log stderr crit;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n\
           access_log off; sendfile on; tcp_nopush on; tcp_nodelay on;\n\
           keepalive_requests 1000000000; keepalive_timeout 1h;\n\
           open_file_cache max=16;\n\
           default_type application/octet-stream;\n\
           client_body_temp_path {tmp}; proxy_temp_path {tmp}; fastcgi_temp_path {tmp};\n\
           uwsgi_temp_path {tmp}; scgi_temp_path {tmp};\n\
           server {{\n\
             listen 0.0.0.0:{http1} backlog=4096; listen 0.0.0.0:{http2} http2 backlog=4096;\n\
             location = /{SMALL} {{ return 200 \"{small}\"; }}\n\
             location / {{ root {documents}; }}\n\
           }}\n\
         }}\n",
        tmp = folder.join("nginx-tmp").display(),
        documents = documents.display(),
        http1 = Port::Http1.number(),
        http2 = Port::Http2.number(),
    );
    fs::write(folder.join("nginx.conf"), config).context("cannot write nginx.conf")
}

/// Starts everything that a server pod runs.
pub fn start(pod: &Pod, folder: &FilePath) -> Result<Vec<Process>> {
    let mut nginx = Command::new("nginx");
    nginx.arg("-e").arg("stderr").arg("-c").arg(folder.join("nginx.conf"));
    let own = process::binary("mesh-bench")?;
    let mut sink = Command::new(&own);
    sink.args(["bulk-sink", &format!("0.0.0.0:{}", Port::Bulk.number())]);
    let mut grpc = Command::new(&own);
    grpc.args(["grpc-server", &format!("0.0.0.0:{}", Port::Grpc.number())]);
    [nginx, sink, grpc].into_iter().map(|command| pod.spawn(command)).collect()
}

/// Starts HAProxy on `node` as one hop towards `server`.
pub fn start_haproxy(node: &Node, server: &Pod, folder: &FilePath) -> Result<Process> {
    let address = server.v4();
    let mut config = String::from(
        "global\n  nbthread 2\n  maxconn 8192\n\
         defaults\n  mode http\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n",
    );
    for (port, proto) in [(Port::Http1, ""), (Port::Http2, " proto h2")] {
        let number = port.number();
        config +=
            &format!("listen p{number}\n  bind :{number}{proto}\n  server s {address}:{number}{proto}\n");
    }
    let file = folder.join(format!("haproxy-{}.cfg", node.netns().name()));
    fs::write(&file, config).context("cannot write HAProxy's configuration")?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file);
    node.spawn(HostCgroup::System, command)
}
