//! What a store keeps, outside of it: for backup, and for moving house.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};

use super::{clock::SystemClock, settings};
use crate::{
    config::Config,
    model::{Clock as _, member::Members, service_instance::ServiceInstance, setting::Setting},
    store::{self, AnyStore, Dump, OpenError},
    telemetry::metrics::Metrics,
};

/// The longest silence of PostgreSQL: nobody stands behind who waits for this.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// All that the store keeps, also while nodes run on it. Nothing is changed.
///
/// # Errors
/// When it cannot be read, or is not of this version.
pub fn export(config: &Config) -> anyhow::Result<Dump> {
    run(async {
        let store = store::open_to_read(&settings(config), Arc::clone(&Metrics::new().store)).await?;
        let dump = store.export().await;
        store.close().await;
        Ok(dump?)
    })
}

/// The live settings that the store keeps, also while nodes run on it; none where there is no store yet. Nothing is changed.
///
/// # Errors
/// When it cannot be read, or is not of this version.
pub fn live_settings(config: &Config) -> anyhow::Result<Vec<Setting>> {
    run(async {
        let store = match store::open_to_read(&settings(config), Arc::clone(&Metrics::new().store)).await {
            Err(OpenError::Missing { .. }) => return Ok(Vec::new()),
            opened => opened?,
        };
        let found = store.settings().await;
        store.close().await;
        Ok(super::live::of_configuration(&found?.1))
    })
}

/// As whom an import notes what it changes.
const IMPORT: &str = "import";

/// What an import has taken over, and what it has left out.
#[derive(Debug)]
pub struct Imported {
    /// What the store holds now.
    pub dump: Dump,
    /// The service instances that the platform knows no more.
    pub forgotten: Vec<ServiceInstance>,
}

/// Fills an empty store with what [`export`] gave and [`Dump::write`] wrote, less the service instances that `is_forgotten` by
/// the platform: as they have been deprovisioned since, their ports rest from now on. Nothing is opened before all of it is
/// found sound, and it is taken over whole or not at all.
///
/// # Errors
/// When it is not sound, or the store cannot be opened, is in use, or is not empty; or when the platform knows none of what
/// there is.
pub fn import(
    config: &Config,
    exported: &[u8],
    is_forgotten: impl Fn(&ServiceInstance) -> bool,
) -> anyhow::Result<Imported> {
    let mut dump = Dump::read(exported)?;
    let forgotten = dump.deprovision(is_forgotten, SystemClock.wall(), IMPORT);
    if dump.instances.is_empty() && !forgotten.is_empty() {
        bail!(
            "the platform knows none of the {} service instances in it: was the listing written by an admin of the same \
             platform?",
            forgotten.len()
        );
    }
    run(async {
        let store = store::open(&settings(config), Arc::clone(&Metrics::new().store), None).await?;
        let filled = fill(&store, &dump, config).await;
        store.close().await;
        filled
    })?;
    Ok(Imported { dump, forgotten })
}

async fn fill(store: &AnyStore, dump: &Dump, config: &Config) -> anyhow::Result<()> {
    if store.import(dump).await? {
        return Ok(());
    }
    // A node that is on a store has left its mark there: it is never empty.
    let members = Members::by_wall_clock(store.members().await?, SystemClock.wall());
    let heard = members.all.iter().find(|known| known.alive && store.serves_many());
    let heard = heard.map(|known| format!(" ({} was heard on it a moment ago)", known.member.id)).unwrap_or_default();
    bail!("the store {} is not empty{heard}, and was left as it is: let store.url name another one", config.store)
}

fn settings(config: &Config) -> store::Settings {
    store::Settings { answer_within: ANSWER_WITHIN, ..settings::store(config) }
}

fn run<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("the store cannot be waited for")?.block_on(work)
}
