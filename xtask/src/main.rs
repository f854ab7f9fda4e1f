//! `cargo xtask`: everything about this repository that is not `cargo build`.
//!
//! One file per subcommand; this file only names them. It must not hold logic of its own, so that a
//! subcommand can be read without the others.

mod build_ebpf;
mod setup;
mod tree;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "Build, set up, test, demonstrate and measure the mesh")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile the kernel programs to target/bpf/mesh-ebpf.o
    BuildEbpf(build_ebpf::Args),
    /// Install what a fresh Debian machine lacks for building, testing and measuring
    Setup(setup::Args),
}

fn main() {
    let result = match Cli::parse().command {
        Command::BuildEbpf(args) => build_ebpf::run(args),
        Command::Setup(args) => setup::run(args),
    };
    if let Err(error) = result {
        eprintln!("xtask: {error:#}");
        std::process::exit(1);
    }
}
