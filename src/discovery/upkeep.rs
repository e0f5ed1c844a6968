//! What happens without a message: backends expire, and lose their authority with the directory.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Discovery;

/// Runs until `shutdown`.
pub async fn run(discovery: Arc<Discovery>, shutdown: CancellationToken) {
    let mut directory = discovery.directory.clone();
    directory.mark_changed();
    // The directory that the table was held against last.
    let mut known = None;
    let mut next_sweep = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = directory.changed() => {
                if changed.is_err() {
                    // Nobody publishes directories any more: the program is ending.
                    return shutdown.cancelled().await;
                }
                let latest = Arc::clone(&directory.borrow_and_update());
                match known.as_deref().and_then(|known| latest.changed_since(known)) {
                    Some(changed) => discovery.backends.retain_authorised_of(&changed, &latest),
                    None => discovery.backends.retain_authorised(&latest),
                }
                discovery.known_refusals().retain(|id| latest.instance(id.as_str()).is_some());
                known = Some(Arc::clone(&latest));
            }
            () = tokio::time::sleep_until(next_sweep) => {
                discovery.backends.sweep(discovery.clock.now());
                discovery.expire_attribution();
                next_sweep = tokio::time::Instant::now() + discovery.settings.load().prune_every;
            }
        }
        discovery.show_counts();
    }
}
