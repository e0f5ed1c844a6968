//! What a store keeps, outside of it: for backup, and for moving house.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};

use super::{clock::SystemClock, settings};
use crate::{
    config::Config,
    model::{Clock as _, member::Members},
    store::{self, AnyStore, Dump},
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

/// Fills an empty store with what [`export`] gave and [`Dump::write`] wrote, and returns that. Nothing is opened before all of
/// it is found sound, and it is taken over whole or not at all.
///
/// # Errors
/// When it is not sound, or the store cannot be opened, is in use, or is not empty.
pub fn import(config: &Config, exported: &[u8]) -> anyhow::Result<Dump> {
    let dump = Dump::read(exported)?;
    run(async {
        let store = store::open(&settings(config), Arc::clone(&Metrics::new().store), None).await?;
        let filled = fill(&store, &dump, config).await;
        store.close().await;
        filled
    })?;
    Ok(dump)
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
