//! `cargo xtask`: everything about this repository that is not `cargo build`.
//!
//! One file per subcommand; this file only names them. It must not hold logic of its own, so that a
//! subcommand can be read without the others.

mod apt_sources;
mod bench;
mod build_ebpf;
mod conformance;
mod demo;
mod image;
mod kube;
mod layers;
mod programs;
mod setup;
mod test;
mod tree;
mod vm;

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
    /// Run mesh-node under foreign control planes: go-control-plane and istiod (needs Go)
    Conformance(conformance::Args),
    /// Show the mesh at work on the Bookinfo services in network namespaces
    Demo(demo::Args),
    /// Measure mesh-node beside Envoy sidecars, HAProxy and no mesh
    Bench(bench::Args),
    /// Make a container image of mesh-node, without docker, and its bill of materials
    Image(image::Args),
    /// Check the order of mesh-node's stages and of the crates
    Layers,
    /// Install what a fresh Debian machine lacks for building, testing and measuring
    Setup(setup::Args),
    /// Run the tests: unit, netns and differential, or one of them
    Test(test::Args),
    /// Run the steering tests in another kernel, under QEMU
    Vm(vm::Args),
}

fn main() {
    let result = match Cli::parse().command {
        Command::BuildEbpf(args) => build_ebpf::run(args),
        Command::Conformance(args) => conformance::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Image(args) => image::run(args),
        Command::Layers => layers::run(&tree::root()),
        Command::Setup(args) => setup::run(args),
        Command::Test(args) => test::run(args),
        Command::Vm(args) => vm::run(args),
    };
    if let Err(error) = result {
        eprintln!("xtask: {error:#}");
        std::process::exit(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dockerfile_and_ci_call_commands_that_there_are() {
        for file in ["deploy/Dockerfile", ".ci/run"] {
            let text = std::fs::read_to_string(tree::root().join(file)).unwrap();
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let calls: Vec<&str> = lines.flat_map(|line| line.split("cargo xtask ").skip(1)).collect();
            assert!(!calls.is_empty(), "{file}");
            for call in calls {
                let words = call.split("&&").next().unwrap_or_default().split_whitespace();
                let parsed = Cli::try_parse_from(std::iter::once("xtask").chain(words));
                assert!(parsed.is_ok(), "{file}: cargo xtask {call}: {:?}", parsed.err());
            }
        }
    }
}
