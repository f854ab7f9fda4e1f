//! `cargo xtask bench`: builds everything and hands over to `mesh-bench` of the `tests` crate.

use anyhow::Result;

use crate::programs;

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Arguments of mesh-bench; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub fn run(args: Args) -> Result<()> {
    programs::build_and_run("mesh-bench", "release", &args.args)
}
