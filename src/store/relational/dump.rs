//! A dump, read from tables and written into empty ones.

use super::{
    bindings_after, current_revision, decode_all, insert_binding, insert_instance, insert_secret, instances_after,
    known_secret,
};
use crate::{
    model::{BindingId, Revision, ServiceInstanceId},
    store::{
        Dump, Freed, LastRelease, Operation, Reservation, Setting,
        engine::{Session, Sql, values},
        row::{self, FreedRow, Marked, OperationRow, PoolRow, ReservationRow, SettingRow, TombstoneRow},
        sql,
    },
};

/// All but nodes, as one transaction sees it.
pub(super) async fn read(tx: &mut impl Session) -> Sql<Dump> {
    let start = Revision::default();
    let mut dump = Dump {
        revision: current_revision(tx).await?,
        announce_secret: known_secret(tx).await?,
        pools: marked(tx.rows::<Marked<PoolRow>>(sql::POOLS, values![]).await?)?,
        reservations: marked(tx.rows::<Marked<ReservationRow>>(sql::ALL_RESERVATIONS, values![]).await?)?,
        instances: instances_after(tx, start).await?,
        bindings: bindings_after(tx, start).await?,
        last_releases: last_releases(tx).await?,
        operations: decode_all::<_, Operation>(tx.rows::<OperationRow>(sql::ALL_OPERATIONS, values![]).await?)?,
        settings: decode_all::<_, Setting>(tx.rows::<SettingRow>(sql::SETTINGS, values![]).await?)?,
        settings_history: decode_all::<_, Setting>(tx.rows::<SettingRow>(sql::SETTINGS_HISTORY, values![]).await?)?,
        ..Dump::default()
    };
    for tombstone in tx.rows::<Marked<TombstoneRow>>(sql::TOMBSTONES_AFTER, values![start]).await? {
        let at = tombstone.revision().map_err(sqlx::Error::Decode)?;
        let TombstoneRow { kind, id } = tombstone.row;
        match &*kind {
            row::KIND_INSTANCE => dump.deleted_instances.push((super::decode_id(ServiceInstanceId::new(id))?, at)),
            _ => dump.deleted_bindings.push((super::decode_id(BindingId::new(id))?, at)),
        }
    }
    Ok(dump)
}

/// All of `dump`, into tables that hold nothing.
pub(super) async fn write(tx: &mut impl Session, dump: &Dump) -> Sql<()> {
    tx.execute(sql::SET_REVISION, values![dump.revision]).await?;
    if let Some(secret) = &dump.announce_secret {
        insert_secret(tx, secret).await?;
    }
    for (pool, at) in &dump.pools {
        tx.execute(sql::PUT_POOL, values![pool.name.as_str(), &row::pool_to_json(pool), *at]).await?;
    }
    for (Reservation { pool, name, first_port, last_port }, at) in &dump.reservations {
        tx.execute(sql::INSERT_RESERVATION, values![pool.as_str(), name, *first_port, *last_port, *at]).await?;
    }
    for instance in &dump.instances {
        insert_instance(tx, instance).await?;
        tx.execute(sql::TAKE_PORT, values![instance.pool.as_str(), instance.port, instance.id.as_str()]).await?;
    }
    for binding in &dump.bindings {
        insert_binding(tx, binding).await?;
    }
    for LastRelease { pool, port, release, revision } in &dump.last_releases {
        let (space, at, until) = (release.space_id.as_str(), release.at, release.quarantined_until);
        tx.execute(sql::PUT_LAST_RELEASE, values![pool.as_str(), *port, space, at, until, *revision]).await?;
    }
    for Operation { service_instance_id: id, node_id, failure, changed_at } in &dump.operations {
        tx.execute(sql::INSERT_OPERATION, values![id.as_str(), node_id.as_str(), *changed_at]).await?;
        if let Some(why) = failure {
            tx.execute(sql::FAIL_OPERATION, values![id.as_str(), why, *changed_at]).await?;
        }
    }
    for (id, at) in &dump.deleted_instances {
        tx.execute(sql::BURY, values![row::KIND_INSTANCE, id.as_str(), *at]).await?;
    }
    for (id, at) in &dump.deleted_bindings {
        tx.execute(sql::BURY, values![row::KIND_BINDING, id.as_str(), *at]).await?;
    }
    insert_settings(tx, sql::INSERT_SETTING, &dump.settings).await?;
    insert_settings(tx, sql::INSERT_SETTING_CHANGE, &dump.settings_history).await
}

async fn last_releases(tx: &mut impl Session) -> Sql<Vec<LastRelease>> {
    let rows = tx.rows::<Marked<FreedRow>>(sql::LAST_RELEASES, values![]).await?;
    let released = marked(rows)?.into_iter();
    Ok(released
        .map(|(Freed { pool, port, release }, revision)| LastRelease { pool, port, release, revision })
        .collect())
}

async fn insert_settings(tx: &mut impl Session, statement: &'static str, settings: &[Setting]) -> Sql<()> {
    for Setting { scope, key, value, changed_by, changed_at, revision } in settings {
        tx.execute(statement, values![scope, key, value, changed_by, *changed_at, *revision]).await?;
    }
    Ok(())
}

fn marked<R, T>(rows: Vec<Marked<R>>) -> Sql<Vec<(T, Revision)>>
where
    T: TryFrom<R, Error = row::BadRow>,
{
    rows.into_iter().map(Marked::read).collect::<Result<_, _>>().map_err(sqlx::Error::Decode)
}
