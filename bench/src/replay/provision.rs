//! Ports that come and go beside many others.

use harbor::model::Protocol;

use super::{
    Work,
    node::{FIRST_PORT, Node},
};

/// Ports that stay.
const OTHERS: u16 = 1_000;

struct Provision;

impl Work for Provision {
    fn step(&mut self, node: &Node) -> anyhow::Result<()> {
        let port = FIRST_PORT + OTHERS;
        node.add(port..port + 1, Protocol::Tcp)?;
        node.remove(port)
    }
}

pub fn start(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    node.add(FIRST_PORT..FIRST_PORT + OTHERS, Protocol::Tcp)?;
    Ok(Box::new(Provision))
}
