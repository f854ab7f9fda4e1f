//! `mesh-node`: see `app.rs` for what runs.

use std::process::ExitCode;

use mesh_node::app;
use mesh_node::config::Cli;

fn main() -> ExitCode {
    match app::run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.to_string().lines() {
                eprintln!("mesh-node: {line}");
            }
            ExitCode::FAILURE
        }
    }
}
