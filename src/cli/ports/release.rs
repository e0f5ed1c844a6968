//! `harbor ports release`

use std::path::PathBuf;

use hyper::Method;

use super::{DEFAULT_POOL, print_json};
use crate::{
    admin::wire::{
        in_path,
        ports::{RESERVATIONS_PATH, Step},
    },
    cli::{
        FINE, Outcome, clean,
        operator::{Node, Reach},
        print,
    },
};

/// Give the ports of a name back.
#[derive(Debug, clap::Args)]
pub struct Release {
    /// The name.
    name: String,

    /// Of which pool or block.
    #[arg(long, value_name = "POOL", default_value = DEFAULT_POOL)]
    pool: String,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

impl Release {
    pub async fn run(self, config: Option<PathBuf>) -> Outcome {
        let path = format!("{RESERVATIONS_PATH}/{}/{}", in_path(&self.pool), in_path(&self.name));
        let step = Node::find(self.reach, config)?.ask::<Step>(Method::DELETE, &path).await?;
        if self.json {
            print_json(&step)?;
        } else {
            let held = step.before.as_ref().map(ToString::to_string).unwrap_or_default();
            print(&format!("{} has given {held} of the pool {} back\n", clean(&step.name), clean(&step.pool)))?;
        }
        Ok(FINE)
    }
}
