//! Reservations: changed together, and noted in the history.

use std::collections::{BTreeMap, BTreeSet};

use super::{decode_id, note_changes, raise_revision};
use crate::{
    model::{
        PoolName, Revision,
        setting::{self, By, SettingChange},
    },
    store::{
        Reservation,
        engine::{Session, Sql, values},
        sql,
        text::Text,
    },
};

/// Releases, then makes reservations. Whether there is something to commit by that; `None` when something stands in the way.
pub(super) async fn change(
    tx: &mut impl Session,
    released: &[(PoolName, String)],
    made: &[Reservation],
    known: &BTreeSet<(PoolName, u16)>,
    by: &By,
) -> Sql<Option<bool>> {
    if !can_have(tx, made, known).await? {
        return Ok(None);
    }
    let revision = raise_revision(tx).await?;
    let mut history = Vec::with_capacity(released.len() + made.len());
    for (pool, name) in released {
        if tx.execute(sql::DELETE_RESERVATION, values![pool.as_str(), name]).await? == 0 {
            return Ok(None);
        }
        history.push(SettingChange { scope: setting::reservations_of(pool), key: name.clone(), value: None });
    }
    for reservation in made {
        let Reservation { pool, name, first_port, last_port, protocol } = reservation;
        let in_the_way = values![pool.as_str(), name, *first_port, *last_port, protocol.as_str()];
        if tx.number(sql::COUNT_RESERVATIONS_IN_THE_WAY, in_the_way).await? > 0 {
            return Ok(None);
        }
        insert(tx, reservation, revision).await?;
        let (scope, key) = (setting::reservations_of(pool), name.clone());
        history.retain(|earlier| (&earlier.scope, &earlier.key) != (&scope, &key));
        history.push(SettingChange { scope, key, value: Some(reservation.told()) });
    }
    if history.is_empty() {
        return Ok(Some(false));
    }
    note_changes(tx, &history, by, revision).await?;
    Ok(Some(true))
}

/// Whether the pools of these are there, and no service instance has one of their ports beside those that are `known`.
async fn can_have(tx: &mut impl Session, made: &[Reservation], known: &BTreeSet<(PoolName, u16)>) -> Sql<bool> {
    let mut spans = BTreeMap::new();
    for Reservation { pool, first_port, last_port, .. } in made {
        let (first, last) = spans.entry(pool).or_insert((*first_port, *last_port));
        (*first, *last) = ((*first).min(*first_port), (*last).max(*last_port));
    }
    for (pool, (first, last)) in spans {
        if tx.number(sql::COUNT_POOL, values![pool.as_str()]).await? == 0 {
            return Ok(false);
        }
        // In one go: they may be thousands.
        let allocated = tx.rows::<(i64,)>(sql::ALLOCATED_PORTS, values![pool.as_str(), first, last]).await?;
        let allocated = allocated.into_iter().map(|(port,)| port).collect::<BTreeSet<_>>();
        for reservation in made.iter().filter(|reservation| reservation.pool == *pool) {
            let ports = i64::from(reservation.first_port)..=i64::from(reservation.last_port);
            let mut ports = allocated.range(ports).filter_map(|port| u16::try_from(*port).ok());
            if ports.any(|port| !known.contains(&(pool.clone(), port))) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// The pools whose reservations have changed.
pub(super) async fn changed_after(tx: &mut impl Session, revision: Revision) -> Sql<Vec<PoolName>> {
    let scopes = tx.rows::<(Text,)>(sql::RESERVATIONS_CHANGED_AFTER, values![revision]).await?;
    let pool = |(scope,): (Text,)| decode_id(PoolName::new(scope.replacen(setting::RESERVATIONS, "", 1)));
    scopes.into_iter().map(pool).collect()
}

/// One more.
pub(super) async fn insert(tx: &mut impl Session, reservation: &Reservation, revision: Revision) -> Sql<()> {
    let Reservation { pool, name, first_port, last_port, protocol } = reservation;
    let inserted = values![pool.as_str(), name, *first_port, *last_port, protocol.as_str(), revision];
    tx.execute(sql::INSERT_RESERVATION, inserted).await?;
    Ok(())
}
