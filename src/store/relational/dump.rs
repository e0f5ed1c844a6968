//! A dump, read from tables and written into empty ones.

use super::{current_revision, insert_binding, insert_instance, insert_secrets, known_secret, reservations};
use crate::{
    model::{BindingId, Revision, ServiceInstanceId, setting::Setting},
    store::{
        Dump, Freed, LastRelease, Operation,
        engine::{Session, Sql, values},
        row::{
            self, BadRow, BindingRow, FreedRow, InstanceRow, Marked, Named, OperationRow, PoolRow, ReservationRow,
            SettingRow, TombstoneRow,
        },
        sql,
    },
};

/// All but nodes, as one transaction sees it; a fault when a row cannot be understood, as what is left out would be missed
/// only when it is needed.
pub(super) async fn read(tx: &mut impl Session) -> Sql<Dump> {
    let start = Revision::default();
    let mut dump = Dump {
        revision: current_revision(tx).await?,
        announce_secret: known_secret(tx).await?,
        pools: all(tx.rows(sql::POOLS, values![]).await?, Marked::<PoolRow>::read)?,
        reservations: all(tx.rows(sql::ALL_RESERVATIONS, values![]).await?, Marked::<ReservationRow>::read)?,
        instances: all(tx.rows(sql::INSTANCES_AFTER, values![start]).await?, InstanceRow::try_into)?,
        bindings: all(tx.rows(sql::BINDINGS_AFTER, values![start]).await?, BindingRow::try_into)?,
        last_releases: all(tx.rows(sql::LAST_RELEASES, values![]).await?, last_release)?,
        operations: all(tx.rows(sql::ALL_OPERATIONS, values![]).await?, OperationRow::try_into)?,
        settings: all(tx.rows(sql::SETTINGS, values![]).await?, SettingRow::try_into)?,
        settings_history: all(tx.rows(sql::SETTINGS_HISTORY, values![]).await?, SettingRow::try_into)?,
        ..Dump::default()
    };
    let tombstones = tx.rows(sql::TOMBSTONES_AFTER, values![start]).await?;
    for deleted in all(tombstones, Marked::<TombstoneRow>::read)? {
        match deleted {
            (Deleted::Instance(id), at) => dump.deleted_instances.push((id, at)),
            (Deleted::Binding(id), at) => dump.deleted_bindings.push((id, at)),
        }
    }
    Ok(dump)
}

/// All of `dump`, into tables that hold nothing.
pub(super) async fn write(tx: &mut impl Session, dump: &Dump) -> Sql<()> {
    tx.execute(sql::SET_REVISION, values![dump.revision]).await?;
    if let Some(secret) = &dump.announce_secret {
        insert_secrets(tx, secret).await?;
    }
    for (pool, at) in &dump.pools {
        tx.execute(sql::PUT_POOL, values![pool.name.as_str(), &row::pool_to_json(pool), *at]).await?;
    }
    for (reservation, at) in &dump.reservations {
        reservations::insert(tx, reservation, *at).await?;
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

fn last_release(row: Marked<FreedRow>) -> Result<LastRelease, BadRow> {
    let (Freed { pool, port, release }, revision) = row.read()?;
    Ok(LastRelease { pool, port, release, revision })
}

async fn insert_settings(tx: &mut impl Session, statement: &'static str, settings: &[Setting]) -> Sql<()> {
    for Setting { scope, key, value, changed_by, changed_at, revision } in settings {
        tx.execute(statement, values![scope, key, value, changed_by, *changed_at, *revision]).await?;
    }
    Ok(())
}

/// Every row, or which one stands in the way and what to do.
fn all<R: Named, T>(rows: Vec<R>, read: impl Fn(R) -> Result<T, BadRow>) -> Sql<Vec<T>> {
    let read = |row: R| {
        let name = row.name();
        read(row).map_err(|reason| {
            let advice = "export by the version of Harbor that wrote it, or correct it in the database";
            sqlx::Error::Decode(format!("{name} cannot be understood ({reason}): {advice}").into())
        })
    };
    rows.into_iter().map(read).collect()
}

/// What a tombstone tells of.
enum Deleted {
    Instance(ServiceInstanceId),
    Binding(BindingId),
}

impl TryFrom<TombstoneRow> for Deleted {
    type Error = BadRow;

    fn try_from(TombstoneRow { kind, id }: TombstoneRow) -> Result<Self, BadRow> {
        match &*kind {
            row::KIND_INSTANCE => Ok(Self::Instance(ServiceInstanceId::new(id)?)),
            row::KIND_BINDING => Ok(Self::Binding(BindingId::new(id)?)),
            unknown => Err(format!("{unknown:?} is no kind that is known").into()),
        }
    }
}
