//! The app behind the proxies.

use clap::Parser;

#[derive(Debug, Parser)]
pub struct Args {}

pub fn run(_: &Args) -> anyhow::Result<()> {
    Ok(())
}
