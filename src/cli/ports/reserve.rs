//! `harbor ports reserve`

use std::{ops::RangeInclusive, path::PathBuf};

use hyper::Method;

use super::{DEFAULT_POOL, print_json, run_of_ports, shown};
use crate::{
    admin::wire::{
        in_path,
        ports::{RESERVATIONS_PATH, Step, WantedPorts},
    },
    cli::{
        FINE, Failure, Outcome,
        operator::{Node, Reach},
        print,
    },
    model::registry::{NAME_RULE, is_name},
};

/// Hold a port or a run of ports of a pool back under a name.
///
/// No service instance is given one of them from then on, not even by asking for it, until the name is released. Without PORT
/// they are chosen by the name, the same on every cluster, unless a service instance is in the way. A name that has these very
/// ports already keeps them.
#[derive(Debug, clap::Args)]
pub struct Reserve {
    /// The name: small letters, digits and dashes.
    name: String,

    /// A port, or a run of them as 25090-25099 [default: chosen by the name].
    #[arg(value_name = "PORT", value_parser = run_of_ports)]
    port: Option<RangeInclusive<u16>>,

    /// For what. A port is held back as a whole; a name of TCP and one of UDP may have the same.
    #[arg(long, default_value = "both", value_parser = ["tcp", "udp", "both"])]
    protocol: String,

    /// How many in a row are chosen [default: 1].
    #[arg(long, value_name = "N", conflicts_with = "port", value_parser = clap::value_parser!(u16).range(1..))]
    ports: Option<u16>,

    /// Of which pool or block.
    #[arg(long, value_name = "POOL", default_value = DEFAULT_POOL)]
    pool: String,

    /// Take a PORT that a service instance has, too: it keeps it, and nobody gets it after.
    #[arg(long, requires = "port")]
    when_free: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

impl Reserve {
    pub async fn run(self, config: Option<PathBuf>) -> Outcome {
        if !is_name(&self.name) {
            return Err(Failure::Usage(format!("{:?} is no name for ports: {NAME_RULE}", self.name)));
        }
        if self.port.is_none() && run_of_ports(&self.name).is_ok() {
            return Err(Failure::Usage(format!(
                "{0:?} would be the name: write `harbor ports reserve NAME {0}` for these ports, or a name with a letter",
                self.name
            )));
        }
        let wanted = WantedPorts {
            port: self.port.as_ref().map(shown),
            count: self.ports,
            protocol: Some(self.protocol),
            when_free: self.when_free,
        };
        let path = format!("{RESERVATIONS_PATH}/{}/{}", in_path(&self.pool), in_path(&self.name));
        let step = Node::find(self.reach, config)?.ask_with::<Step>(Method::PUT, &path, &wanted).await?;
        if self.json {
            print_json(&step)?;
        } else {
            print(&words(&step))?;
        }
        Ok(FINE)
    }
}

fn words(step: &Step) -> String {
    let Step { pool, name, change, after, .. } = step;
    let held = after.as_ref().map(ToString::to_string).unwrap_or_default();
    let already = if change == "keep" { " already" } else { "" };
    let mut text = format!("{name} has {held} of the pool {pool}{already}\n");
    text.extend(notes(step));
    text
}

/// What else is to be known of ports that a name gets.
pub(super) fn notes(step: &Step) -> impl Iterator<Item = String> {
    let moved = step.moved_from.map(|port| {
        format!(
            "  its name comes to {port}, where a service instance is in the way: on another cluster it may be there\n"
        )
    });
    let (name, allocated) = (&step.name, &step.allocated);
    let kept = (!allocated.is_empty()).then(|| {
        let ports = allocated.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        format!("  service instances keep {ports} until they are deleted; {name} has them after that\n")
    });
    moved.into_iter().chain(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::wire::ports::Held;

    #[test]
    fn what_a_name_has_is_a_sentence_and_what_is_to_be_known_another() {
        let held = Held { port: 25_090, last_port: 25_099, protocol: "tcp".into() };
        let step = Step {
            pool: "default".into(),
            name: "metrics".into(),
            change: "add".into(),
            before: None,
            after: Some(held),
            moved_from: None,
            allocated: vec![],
        };
        assert_eq!(words(&step), "metrics has 25090-25099 (tcp) of the pool default\n");
        let kept = Step { change: "keep".into(), ..step.clone() };
        assert_eq!(words(&kept), "metrics has 25090-25099 (tcp) of the pool default already\n");
        assert_eq!(
            words(&Step { moved_from: Some(25_000), allocated: vec![25_090, 25_092], ..step }),
            "metrics has 25090-25099 (tcp) of the pool default\n  \
             its name comes to 25000, where a service instance is in the way: on another cluster it may be there\n  \
             service instances keep 25090, 25092 until they are deleted; metrics has them after that\n"
        );
    }
}
