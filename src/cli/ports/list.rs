//! `harbor ports list`

use std::{ops::RangeInclusive, path::PathBuf};

use super::{print_json, run_of_ports, shown};
use crate::{
    admin::wire::ports::{MAX_PAGE, PAGE, Ports, PortsQuery},
    cli::{
        FINE, FOUND_A_PROBLEM, Outcome,
        listing::Listing,
        operator::{Node, Reach},
        print,
    },
};

mod screen;
mod unknown;

/// Show what the ports of all pools are: whose, since when, and how they do on the node that is asked.
///
/// Ports that are free are only counted, or shown as ranges by --free. Of what a node does, such as listeners, backends and
/// open connections, the node that is asked tells its own.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only of this pool.
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,

    /// Only in this state.
    #[arg(long, value_parser = ["allocated", "reserved", "quarantined", "in_conflict"])]
    state: Option<String>,

    /// Only of this very protocol.
    #[arg(long, value_parser = ["tcp", "udp", "both"])]
    protocol: Option<String>,

    /// Only of the organization with this id.
    #[arg(long, value_name = "ID")]
    org: Option<String>,

    /// Only of the space with this id.
    #[arg(long, value_name = "ID")]
    space: Option<String>,

    /// Only of this service instance.
    #[arg(long, value_name = "ID")]
    service_instance: Option<String>,

    /// Only this port, or those of a range as 35000-35099.
    #[arg(long, value_name = "PORT", value_parser = run_of_ports)]
    port: Option<RangeInclusive<u16>>,

    /// Only what has this in its name, service instance or reservation.
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,

    /// Show which ports are free instead.
    #[arg(long)]
    free: bool,

    /// How many at the most.
    #[arg(long, value_name = "N", default_value_t = PAGE as u64, value_parser = clap::value_parser!(u64).range(1..=MAX_PAGE as u64))]
    limit: u64,

    /// All of them.
    #[arg(long, conflicts_with = "limit")]
    all: bool,

    /// Show those of service instances that are not in this listing of the platform; the exit code is 1 when there are some.
    ///
    /// It is made by `cf curl "/v3/service_instances?per_page=5000"`, by an admin; several pages may follow one another, also of
    /// several platforms. One that is cut short is refused. What is younger than the file, or than the newest in it, is only
    /// counted: it may have come later. Nothing is deleted.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["state", "free", "limit"])]
    unknown_to: Option<PathBuf>,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

impl List {
    pub async fn run(self, config: Option<PathBuf>) -> Outcome {
        let known = self.unknown_to.as_deref().map(Listing::load).transpose()?;
        let all = self.all || known.is_some();
        let limit = if all { MAX_PAGE } else { usize::try_from(self.limit).unwrap_or(MAX_PAGE) };
        let mut query = PortsQuery {
            pool: self.pool,
            state: self.state.or_else(|| known.is_some().then(|| "allocated".into())),
            protocol: self.protocol,
            organization: self.org,
            space: self.space,
            service_instance: self.service_instance,
            port: self.port.as_ref().map(shown),
            name: self.name,
            free: self.free,
            limit: Some(if self.free { 1 } else { limit }),
            after: None,
        };
        let node = Node::find(self.reach, config)?;
        let mut listed = node.get::<Ports>(&query.in_path()).await?;
        if self.free {
            listed.ports.clear();
            listed.next = None;
        }
        while let Some(after) = listed.next.take_if(|_| all) {
            query.after = Some(after);
            let page = node.get::<Ports>(&query.in_path()).await?;
            listed.ports.extend(page.ports);
            listed.next = page.next;
        }
        match known {
            Some(known) => unknown(&known, listed, self.json),
            None => {
                if self.json {
                    print_json(&listed)?;
                } else if self.free {
                    print(&screen::free(&listed.pools))?;
                } else {
                    print(&screen::table(&listed))?;
                }
                Ok(FINE)
            }
        }
    }
}

fn unknown(known: &Listing, mut listed: Ports, json: bool) -> Outcome {
    let asked = listed.ports.len();
    let too_young = unknown::retain(known, &mut listed.ports);
    let found = listed.ports.len();
    if json {
        print_json(&listed)?;
    } else {
        listed.pools.clear();
        let table = if found == 0 { String::new() } else { screen::table(&listed) };
        print(&(table + &unknown::words(known, &listed.ports, asked, too_young)))?;
    }
    Ok(if found == 0 { FINE } else { FOUND_A_PROBLEM })
}
