//! `cargo xtask setup`: installs what a fresh Debian machine lacks.

use anyhow::Result;

#[derive(clap::Args, Default)]
pub struct Args {}

pub fn run(_args: Args) -> Result<()> {
    Ok(())
}
