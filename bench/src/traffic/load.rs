//! One kind of work, sent to one address.

use clap::Parser;

#[derive(Debug, Parser)]
pub struct Args {}

pub fn run(_: &Args) -> anyhow::Result<()> {
    Ok(())
}
