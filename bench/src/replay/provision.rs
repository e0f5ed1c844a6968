//! Ports that come and go beside many others.

use harbor::model::Protocol;

use super::{
    Work,
    node::{FIRST_PORT, Node, PORTS},
};

/// Ports that stay.
const OTHERS: u16 = 1_000;
/// Ports that come and go: what one costs depends on where its hash puts it among the others.
const COMING: u16 = PORTS - OTHERS;

/// Which of them is next.
struct Provision(u16);

impl Work for Provision {
    fn step(&mut self, node: &Node) -> anyhow::Result<()> {
        let port = FIRST_PORT + OTHERS + self.0;
        self.0 = (self.0 + 1) % COMING;
        node.add(port..port + 1, Protocol::Tcp)?;
        // A change that comes while the last one is tidied up after costs more.
        node.gate.rest()?;
        node.remove(port)?;
        node.gate.rest()
    }
}

pub fn start(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    node.add(FIRST_PORT..FIRST_PORT + OTHERS, Protocol::Tcp)?;
    Ok(Box::new(Provision(0)))
}
