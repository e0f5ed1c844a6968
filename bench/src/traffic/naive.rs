//! The proxy that anyone would write first.

use clap::Parser;

#[derive(Debug, Parser)]
pub struct Args {}

pub fn run(_: &Args) -> anyhow::Result<()> {
    Ok(())
}
