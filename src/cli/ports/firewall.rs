//! `harbor ports firewall`

use std::path::PathBuf;

use anyhow::anyhow;
use clap::ValueEnum;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::print_json;
use crate::{
    admin::wire::ports::{MAX_PAGE, PortPool, Ports, PortsQuery},
    cli::{
        FINE, Failure, Outcome, clean,
        operator::{Node, Reach},
        print,
    },
};

mod iptables;
mod nft;
mod rules;

use rules::Rules;

/// Print the firewall rules that let clients in to a pool's ports.
///
/// For the whole range, TCP and UDP, they need not change again, unless the range does; a port that a service instance has
/// beside it is among them. With --allocated they are for the ports that service instances have now, with their protocols
/// and, where they allow some networks alone, these and the balancers in `forwarder.proxy_from`, and have to be made anew as
/// ports come and go. Nothing is loaded.
#[derive(Debug, clap::Args)]
pub struct Firewall {
    /// For which firewall.
    #[arg(long, value_enum, default_value_t = Format::Nft)]
    format: Format,

    /// Only of this pool or block [default: all pools that a node serves].
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,

    /// Only the ports that service instances have now.
    #[arg(long)]
    allocated: bool,

    /// Only what comes in by this network interface.
    #[arg(long, value_name = "NAME", value_parser = interface)]
    interface: Option<String>,

    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table of nftables, for `nft -f`.
    Nft,
    /// A chain for `iptables-restore --noflush` and `ip6tables-restore --noflush` alike.
    Iptables,
    /// For other tools.
    Json,
}

impl Firewall {
    pub async fn run(self, config: Option<PathBuf>) -> Outcome {
        let mut query = PortsQuery {
            pool: self.pool.clone(),
            state: Some("allocated".into()),
            limit: Some(MAX_PAGE),
            ..PortsQuery::default()
        };
        let node = Node::find(self.reach, config)?;
        let mut listed = node.get::<Ports>(&query.in_path()).await?;
        while let Some(after) = listed.next.take() {
            query.after = Some(after);
            let page = node.get::<Ports>(&query.in_path()).await?;
            listed.ports.extend(page.ports);
            listed.next = page.next;
        }
        let is_meant = |known: &PortPool| self.pool.is_some() || known.served;
        listed.pools.retain(is_meant);
        listed.ports.retain(|port| listed.pools.iter().any(|known| known.pool.name == port.pool));
        let made_at = OffsetDateTime::now_utc().replace_nanosecond(0).expect("zero is in range").format(&Rfc3339);
        let made_at = made_at.map_err(|error| Failure::Problem(error.into()))?;
        let rules = Rules::of(&listed, self.allocated, self.interface, made_at)
            .map_err(|bad| Failure::Problem(anyhow!("the node tells ports that are none: {}", clean(&bad))))?;
        match self.format {
            Format::Nft => print(&nft::text(&rules))?,
            Format::Iptables => print(&iptables::text(&rules))?,
            Format::Json => print_json(&rules)?,
        }
        Ok(FINE)
    }
}

/// What the kernel takes as a name, and no firewall as anything else.
fn interface(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    if (1..=15).contains(&name.len()) && name.chars().all(fits) {
        Ok(name.into())
    } else {
        Err("an interface has a name of 1 to 15 letters, digits, dots, dashes and underscores".into())
    }
}
