//! The store on an SQL engine: what each call reads and writes, once for all of them.
//!
//! A call that changes something has the write lock from its beginning. So it sees what it decides on as it stays until
//! its end, no two of them can stand in each other's way, and none has to be repeated.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;

use super::{
    Bind, CHANGES_KEPT, Change, Changes, Dump, Ending, FAILURES_KEPT, Fault, Feed, Heard, Hint, Operation, PortRow,
    Provision, Reservation, Result, Store,
    engine::{Engine, Session, Sql, values},
    row::{
        self, AllocationRow, BadRow, BindingRow, FreedRow, InstanceRow, MemberRow, OperationRow, PoolOfNodeRow,
        ReservationRow, SettingRow, TombstoneRow,
    },
    secret, sql,
    text::Text,
};
use crate::{
    model::{
        BindingId, NodeId, PoolName, Revision, ServiceInstanceId, Timestamp,
        binding::Binding,
        member::{Member, Report},
        pool::Pool,
        service_instance::ServiceInstance,
        setting::{self, By, Setting, SettingChange},
        token::AnnounceSecret,
    },
    telemetry::metrics::StoreMetrics,
};

mod dump;
mod reservations;

/// Under which name the announce secret is kept.
const ANNOUNCE_SECRET: &str = "announce";

/// Under which name the former one is, while it counts too.
const FORMER_SECRET: &str = "announce.former";

/// What others are told of a change of the desired state.
const DESIRED: Option<Hint> = Some(Hint::Desired);

/// What others are told of a change of what is known of nodes.
const MEMBERS: Option<Hint> = Some(Hint::Members);

/// A store on the engine `E`.
#[derive(Debug)]
pub struct Relational<E> {
    pub(super) engine: E,
    metrics: Arc<StoreMetrics>,
    /// Whether there was a fault since a ping last wrote: what takes no changes, such as a disk that is full or a server
    /// that stands by, can still be read.
    doubted: AtomicBool,
}

impl<E: Engine> Relational<E> {
    pub(super) const fn new(engine: E, metrics: Arc<StoreMetrics>) -> Self {
        Self { engine, metrics, doubted: AtomicBool::new(false) }
    }

    /// Does `work`; counts its fault, and says what was being done.
    async fn run<T>(&self, doing: &'static str, work: impl Future<Output = Sql<T>> + Send) -> Result<T> {
        work.await.map_err(|source| {
            self.metrics.faults.inc();
            self.doubted.store(true, Ordering::Relaxed);
            let source = match source {
                // What was found, without the driver's words before it.
                sqlx::Error::Decode(reason) => reason,
                other => other.into(),
            };
            Fault { doing: format!("{doing} the {} store", E::NAME), source }
        })
    }

    async fn commit<T: Send>(&self, tx: E::Session, hint: Option<Hint>, outcome: T) -> Sql<T> {
        let start = Instant::now();
        tx.commit(hint).await?;
        self.metrics.commit_duration.observe(start.elapsed().as_secs_f64());
        Ok(outcome)
    }
}

/// Ends a transaction that has changed nothing, or is not to.
async fn leave<T: Send>(tx: impl Session, outcome: T) -> Sql<T> {
    tx.roll_back().await?;
    Ok(outcome)
}

#[async_trait]
impl<E: Engine> Store for Relational<E> {
    async fn announce_secret(&self) -> Result<AnnounceSecret> {
        self.run("reading the announce secret from", async {
            let mut tx = self.engine.write().await?;
            if let Some(known) = known_secret(&mut tx).await? {
                return leave(tx, known).await;
            }
            let made = secret::fresh().map_err(|fault| sqlx::Error::Encode(fault.into()))?;
            insert_secrets(&mut tx, &made).await?;
            self.commit(tx, None, made).await
        })
        .await
    }

    async fn rotate_announce_secret(&self, by: &By) -> Result<bool> {
        self.run("rotating the announce secret in", async {
            let mut tx = self.engine.write().await?;
            let made = secret::fresh().map_err(|fault| sqlx::Error::Encode(fault.into()))?;
            let known = known_secret(&mut tx).await?;
            if known.as_ref().is_some_and(|known| known.former().is_some()) {
                return leave(tx, false).await;
            }
            let rotated = known.map_or(made.clone(), |known| made.after(&known));
            tx.execute(sql::DELETE_SECRET, values![ANNOUNCE_SECRET]).await?;
            insert_secrets(&mut tx, &rotated).await?;
            note_secret(&mut tx, by, Some("rotated")).await?;
            self.commit(tx, DESIRED, true).await
        })
        .await
    }

    async fn drop_former_secret(&self, by: &By) -> Result<bool> {
        self.run("dropping the former announce secret from", async {
            let mut tx = self.engine.write().await?;
            if tx.execute(sql::DELETE_SECRET, values![FORMER_SECRET]).await? == 0 {
                return leave(tx, false).await;
            }
            note_secret(&mut tx, by, Some("former dropped")).await?;
            self.commit(tx, DESIRED, true).await
        })
        .await
    }

    async fn everything(&self) -> Result<Changes> {
        self.run("reading everything from", async {
            let mut tx = self.engine.read().await?;
            let everything = Changes {
                revision: current_revision(&mut tx).await?,
                instances: instances_after(&mut tx, Revision::default()).await?,
                bindings: bindings_after(&mut tx, Revision::default()).await?,
                pools: pools_after(&mut tx, Revision::default()).await?,
                settings: Some(all_settings(&mut tx).await?),
                announce_secret: known_secret(&mut tx).await?,
                ..Changes::default()
            };
            leave(tx, everything).await
        })
        .await
    }

    async fn changes_since(&self, revision: Revision) -> Result<Option<Changes>> {
        self.run("reading changes from", async {
            let mut tx = self.engine.read().await?;
            let current = current_revision(&mut tx).await?;
            if revision > current || revision.0 + CHANGES_KEPT < current.0 {
                return leave(tx, None).await;
            }
            let mut changes = Changes {
                revision: current,
                instances: instances_after(&mut tx, revision).await?,
                bindings: bindings_after(&mut tx, revision).await?,
                pools: pools_after(&mut tx, revision).await?,
                dropped_pools: dropped_pools_after(&mut tx, revision).await?,
                freed: decode_all(tx.rows::<FreedRow>(sql::FREED_AFTER, values![revision]).await?)?,
                reserved: reservations::changed_after(&mut tx, revision).await?,
                ..Changes::default()
            };
            if tx.number(sql::COUNT_SETTINGS_CHANGED_AFTER, values![revision]).await? > 0 {
                changes.settings = Some(all_settings(&mut tx).await?);
            }
            if tx.number(sql::COUNT_SECRETS_CHANGED_AFTER, values![revision]).await? > 0 {
                changes.announce_secret = known_secret(&mut tx).await?;
            }
            for tombstone in tx.rows::<TombstoneRow>(sql::TOMBSTONES_AFTER, values![revision]).await? {
                match &*tombstone.kind {
                    row::KIND_INSTANCE => {
                        changes.deleted_instances.push(decode_id(ServiceInstanceId::new(tombstone.id))?)
                    }
                    _ => changes.deleted_bindings.push(decode_id(BindingId::new(tombstone.id))?),
                }
            }
            leave(tx, Some(changes)).await
        })
        .await
    }

    async fn ports(&self, pool: &PoolName) -> Result<Vec<PortRow>> {
        self.run("reading ports from", async {
            let mut tx = self.engine.read().await?;
            let rows = tx.rows::<AllocationRow>(sql::PORTS, values![pool.as_str()]).await?;
            leave(tx, decode_all(rows)?).await
        })
        .await
    }

    async fn reservations(&self, pool: &PoolName) -> Result<Vec<Reservation>> {
        self.run("reading reservations from", async {
            let mut tx = self.engine.read().await?;
            let rows = tx.rows::<ReservationRow>(sql::RESERVATIONS, values![pool.as_str()]).await?;
            leave(tx, decode_all(rows)?).await
        })
        .await
    }

    async fn reservation_changes(&self, pool: &PoolName) -> Result<Vec<Setting>> {
        self.run("reading who has made reservations from", async {
            let mut tx = self.engine.read().await?;
            let rows =
                tx.rows(sql::RESERVATION_CHANGES, values![pool.as_str(), &setting::reservations_of(pool)]).await?;
            leave(tx, decode_all::<SettingRow, _>(rows)?).await
        })
        .await
    }

    async fn change_reservations(
        &self,
        released: &[(PoolName, String)],
        made: &[Reservation],
        known: &BTreeSet<(PoolName, u16)>,
        by: &By,
    ) -> Result<bool> {
        self.run("changing reservations in", async {
            let mut tx = self.engine.write().await?;
            match reservations::change(&mut tx, released, made, known, by).await? {
                Some(true) => self.commit(tx, DESIRED, true).await,
                changed => leave(tx, changed.is_some()).await,
            }
        })
        .await
    }

    async fn settings(&self) -> Result<(Revision, Vec<Setting>)> {
        self.run("reading live settings from", async {
            let mut tx = self.engine.read().await?;
            let settings = (current_revision(&mut tx).await?, all_settings(&mut tx).await?);
            leave(tx, settings).await
        })
        .await
    }

    async fn change_settings(&self, changes: &[SettingChange], by: &By, read_at: Revision) -> Result<Option<Revision>> {
        self.run("changing live settings in", async {
            let mut tx = self.engine.write().await?;
            if tx.number(sql::COUNT_SETTINGS_CHANGED_AFTER, values![read_at]).await? > 0 {
                return leave(tx, None).await;
            }
            let revision = raise_revision(&mut tx).await?;
            for SettingChange { scope, key, value } in changes {
                if value.is_some() {
                    let put = values![scope, key, value, &by.who, by.at, revision];
                    tx.execute(sql::PUT_SETTING, put).await?;
                } else {
                    tx.execute(sql::DELETE_SETTING, values![scope, key]).await?;
                }
            }
            note_changes(&mut tx, changes, by, revision).await?;
            self.commit(tx, DESIRED, Some(revision)).await
        })
        .await
    }

    async fn settings_history(&self, limit: usize) -> Result<Vec<Setting>> {
        self.run("reading the history of settings from", async {
            let mut tx = self.engine.read().await?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = tx.rows::<SettingRow>(sql::LAST_SETTING_CHANGES, values![limit]).await?;
            leave(tx, decode_all(rows)?).await
        })
        .await
    }

    async fn instance(&self, id: &ServiceInstanceId) -> Result<Option<ServiceInstance>> {
        self.run("reading a service instance from", async {
            let mut tx = self.engine.read().await?;
            let found = instance_by_id(&mut tx, id).await?;
            leave(tx, found).await
        })
        .await
    }

    async fn instances_at(&self, pool: &PoolName, ports: RangeInclusive<u16>) -> Result<Vec<ServiceInstance>> {
        self.run("reading service instances from", async {
            let mut tx = self.engine.read().await?;
            let rows = tx.rows(sql::INSTANCES_AT, values![pool.as_str(), *ports.start(), *ports.end()]).await?;
            leave(tx, decode_known::<InstanceRow, _>(rows)).await
        })
        .await
    }

    async fn binding(&self, instance: &ServiceInstanceId, id: &BindingId) -> Result<Option<Binding>> {
        self.run("reading a binding from", async {
            let mut tx = self.engine.read().await?;
            let found = binding_by_id(&mut tx, id).await?;
            leave(tx, found.filter(|binding| binding.service_instance_id == *instance)).await
        })
        .await
    }

    async fn provision(&self, instance: &ServiceInstance, open_later: bool, now: Timestamp) -> Result<Provision> {
        self.run("provisioning in", async {
            let mut tx = self.engine.write().await?;
            if let Some(known) = instance_by_id(&mut tx, &instance.id).await? {
                return leave(tx, Provision::Exists(known)).await;
            }
            let instance = ServiceInstance { revision: raise_revision(&mut tx).await?, ..instance.clone() };
            insert_instance(&mut tx, &instance).await?;
            if !take_port(&mut tx, &instance, now).await? {
                return leave(tx, Provision::PortTaken).await;
            }
            unbury(&mut tx, row::KIND_INSTANCE, instance.id.as_str()).await?;
            tx.execute(sql::FORGET_OPERATION, values![instance.id.as_str()]).await?;
            if open_later {
                let operation = values![instance.id.as_str(), instance.node_id.as_str(), now];
                tx.execute(sql::INSERT_OPERATION, operation).await?;
            }
            self.commit(tx, DESIRED, Provision::Created(instance)).await
        })
        .await
    }

    async fn move_port(
        &self,
        id: &ServiceInstanceId,
        from: u16,
        to: u16,
        by: Option<&NodeId>,
        now: Timestamp,
    ) -> Result<Change> {
        self.run("moving a port in", async {
            let mut tx = self.engine.write().await?;
            let Some(known) = instance_by_id(&mut tx, id).await?.filter(|known| known.port == from) else {
                return leave(tx, Change::Stale).await;
            };
            if let Some(by) = by
                && !is_opened_by(&mut tx, id, by).await?
            {
                return leave(tx, Change::Stale).await;
            }
            if from == to {
                return leave(tx, Change::PortTaken).await;
            }
            let moved = ServiceInstance { port: to, revision: raise_revision(&mut tx).await?, ..known };
            give_back_port(&mut tx, id).await?;
            if !take_port(&mut tx, &moved, now).await? {
                return leave(tx, Change::PortTaken).await;
            }
            tx.execute(sql::MARK_INSTANCE, values![id.as_str(), moved.revision]).await?;
            self.commit(tx, DESIRED, Change::Done(moved)).await
        })
        .await
    }

    async fn update(&self, instance: &ServiceInstance) -> Result<Change> {
        self.run("updating in", async {
            let mut tx = self.engine.write().await?;
            let known = instance_by_id(&mut tx, &instance.id).await?;
            let Some(known) = known.filter(|known| known.revision == instance.revision) else {
                return leave(tx, Change::Stale).await;
            };
            let changed = ServiceInstance {
                plan_id: instance.plan_id.clone(),
                protocol: instance.protocol,
                settings: instance.settings.clone(),
                name: instance.name.clone(),
                revision: raise_revision(&mut tx).await?,
                ..known
            };
            let settings = row::settings_to_json(&changed.settings);
            let updated = values![
                changed.id.as_str(),
                changed.plan_id.as_str(),
                changed.protocol.as_str(),
                &settings,
                &changed.name,
                changed.revision,
            ];
            tx.execute(sql::UPDATE_INSTANCE, updated).await?;
            self.commit(tx, DESIRED, Change::Done(changed)).await
        })
        .await
    }

    async fn deprovision(
        &self,
        id: &ServiceInstanceId,
        now: Timestamp,
        ending: Ending<'_>,
    ) -> Result<Option<ServiceInstance>> {
        self.run("deprovisioning in", async {
            let mut tx = self.engine.write().await?;
            let Some(gone) = instance_by_id(&mut tx, id).await? else { return leave(tx, None).await };
            if let Ending::Failed { by, .. } = ending
                && !is_opened_by(&mut tx, id, by).await?
            {
                return leave(tx, None).await;
            }
            let revision = raise_revision(&mut tx).await?;
            tx.execute(sql::BURY_BINDINGS_OF, values![id.as_str(), revision]).await?;
            tx.execute(sql::DELETE_BINDINGS_OF, values![id.as_str()]).await?;
            match ending {
                Ending::Rest(until) => {
                    let released = values![id.as_str(), gone.space_id.as_str(), now, until, revision];
                    tx.execute(sql::RELEASE_PORT, released).await?;
                }
                Ending::Unused | Ending::Failed { .. } => give_back_port(&mut tx, id).await?,
            }
            end_operation(&mut tx, id, now, ending).await?;
            end_suspension(&mut tx, &gone, now, revision).await?;
            bury(&mut tx, row::KIND_INSTANCE, id.as_str(), revision).await?;
            tx.execute(sql::DELETE_INSTANCE, values![id.as_str()]).await?;
            drop_tombstones(&mut tx, revision).await?;
            self.commit(tx, DESIRED, Some(gone)).await
        })
        .await
    }

    async fn bind(&self, binding: &Binding) -> Result<Bind> {
        self.run("binding in", async {
            let mut tx = self.engine.write().await?;
            if let Some(known) = binding_by_id(&mut tx, &binding.id).await? {
                return leave(tx, Bind::Exists(known)).await;
            }
            if instance_by_id(&mut tx, &binding.service_instance_id).await?.is_none() {
                return leave(tx, Bind::NoServiceInstance).await;
            }
            let binding = Binding { revision: raise_revision(&mut tx).await?, ..binding.clone() };
            insert_binding(&mut tx, &binding).await?;
            unbury(&mut tx, row::KIND_BINDING, binding.id.as_str()).await?;
            self.commit(tx, DESIRED, Bind::Created(binding)).await
        })
        .await
    }

    async fn unbind(&self, instance: &ServiceInstanceId, id: &BindingId) -> Result<Option<Binding>> {
        self.run("unbinding in", async {
            let mut tx = self.engine.write().await?;
            let known = binding_by_id(&mut tx, id).await?;
            let Some(gone) = known.filter(|known| known.service_instance_id == *instance) else {
                return leave(tx, None).await;
            };
            let revision = raise_revision(&mut tx).await?;
            tx.execute(sql::DELETE_BINDING, values![id.as_str()]).await?;
            bury(&mut tx, row::KIND_BINDING, id.as_str(), revision).await?;
            drop_tombstones(&mut tx, revision).await?;
            self.commit(tx, DESIRED, Some(gone)).await
        })
        .await
    }

    async fn operation(&self, id: &ServiceInstanceId, now: Timestamp) -> Result<Option<Operation>> {
        self.run("reading an operation from", async {
            let mut tx = self.engine.read().await?;
            let told = values![id.as_str(), now.minus(FAILURES_KEPT)];
            let row = tx.row::<OperationRow>(sql::OPERATION, told).await?;
            leave(tx, row.map(Operation::try_from).transpose().map_err(sqlx::Error::Decode)?).await
        })
        .await
    }

    async fn operations(&self) -> Result<Vec<Operation>> {
        self.run("reading operations from", async {
            let mut tx = self.engine.read().await?;
            let rows = tx.rows::<OperationRow>(sql::OPERATIONS, values![]).await?;
            leave(tx, decode_all(rows)?).await
        })
        .await
    }

    async fn take_up(&self, id: &ServiceInstanceId, from: &NodeId, to: &NodeId, now: Timestamp) -> Result<bool> {
        self.run("taking up an operation in", async {
            let mut tx = self.engine.write().await?;
            let taken = values![id.as_str(), from.as_str(), to.as_str(), now];
            let taken = tx.execute(sql::TAKE_UP_OPERATION, taken).await? == 1;
            self.commit(tx, None, taken).await
        })
        .await
    }

    async fn opened(&self, id: &ServiceInstanceId, by: &NodeId) -> Result<bool> {
        self.run("ending an operation in", async {
            let mut tx = self.engine.write().await?;
            let ended = tx.execute(sql::END_OPERATION, values![id.as_str(), by.as_str()]).await? == 1;
            self.commit(tx, None, ended).await
        })
        .await
    }

    async fn pools(&self) -> Result<(Revision, Vec<Pool>)> {
        self.run("reading pools from", async {
            let mut tx = self.engine.read().await?;
            let pools = (current_revision(&mut tx).await?, pools_after(&mut tx, Revision::default()).await?);
            leave(tx, pools).await
        })
        .await
    }

    async fn define_pools(&self, pools: &[Pool], read_at: Revision) -> Result<Option<Revision>> {
        self.run("defining pools in", async {
            let mut tx = self.engine.write().await?;
            for pool in pools {
                if tx.number(sql::COUNT_POOL_AFTER, values![pool.name.as_str(), read_at]).await? > 0 {
                    return leave(tx, None).await;
                }
            }
            let revision = raise_revision(&mut tx).await?;
            for pool in pools {
                let definition = row::pool_to_json(pool);
                tx.execute(sql::PUT_POOL, values![pool.name.as_str(), &definition, revision]).await?;
            }
            self.commit(tx, DESIRED, Some(revision)).await
        })
        .await
    }

    async fn drop_pools(&self, pools: &[PoolName], by: &By, read_at: Revision) -> Result<Option<Revision>> {
        self.run("dropping pools from", async {
            let mut tx = self.engine.write().await?;
            let mut history = Vec::with_capacity(pools.len());
            for pool in pools {
                let is_needed = tx.number(sql::COUNT_NEEDS_OF_POOL, values![pool.as_str(), read_at]).await? > 0;
                if is_needed || tx.execute(sql::DELETE_POOL, values![pool.as_str()]).await? == 0 {
                    return leave(tx, None).await;
                }
                history.push(SettingChange { scope: setting::BLOCKS.into(), key: pool.to_string(), value: None });
            }
            let revision = raise_revision(&mut tx).await?;
            note_changes(&mut tx, &history, by, revision).await?;
            self.commit(tx, DESIRED, Some(revision)).await
        })
        .await
    }

    async fn join(&self, member: &Member) -> Result<()> {
        self.run("joining in", async {
            let Member { id, incarnation, version, pools, report, drain, joined_at, seen_at } = member;
            let mut tx = self.engine.write().await?;
            let failures = row::failures_to_json(&report.failures);
            let node = values![
                id.as_str(),
                incarnation,
                version,
                report.mode.as_str(),
                report.applied,
                report.flows,
                report.failed,
                &failures,
                *drain,
                *joined_at,
                *seen_at,
            ];
            tx.execute(sql::PUT_NODE, node).await?;
            tx.execute(sql::DELETE_POOLS_OF_NODE, values![id.as_str()]).await?;
            for pool in pools {
                tx.execute(sql::INSERT_POOL_OF_NODE, values![id.as_str(), pool.as_str()]).await?;
            }
            self.commit(tx, MEMBERS, ()).await
        })
        .await
    }

    async fn report(&self, node: &NodeId, incarnation: &str, report: &Report, now: Timestamp) -> Result<Heard> {
        self.run("reporting to", async {
            let mut tx = self.engine.note().await?;
            let failures = row::failures_to_json(&report.failures);
            let said = values![
                node.as_str(),
                incarnation,
                report.mode.as_str(),
                report.applied,
                report.flows,
                report.failed,
                &failures,
                now,
            ];
            if tx.execute(sql::REPORT, said).await? == 0 {
                let is_known = tx.text(sql::INCARNATION_OF_NODE, values![node.as_str()]).await?.is_some();
                return leave(tx, if is_known { Heard::Superseded } else { Heard::Gone }).await;
            }
            self.commit(tx, MEMBERS, Heard::Kept).await
        })
        .await
    }

    async fn set_drain(&self, node: &NodeId, drain: bool) -> Result<bool> {
        self.run("noting a drain in", async {
            let mut tx = self.engine.write().await?;
            let set = tx.execute(sql::SET_DRAIN, values![node.as_str(), drain]).await? == 1;
            self.commit(tx, MEMBERS, set).await
        })
        .await
    }

    async fn remove_node(&self, node: &NodeId) -> Result<bool> {
        self.run("removing a node from", async {
            let mut tx = self.engine.write().await?;
            tx.execute(sql::DELETE_POOLS_OF_NODE, values![node.as_str()]).await?;
            let gone = tx.execute(sql::DELETE_NODE, values![node.as_str()]).await? == 1;
            self.commit(tx, MEMBERS, gone).await
        })
        .await
    }

    async fn members(&self) -> Result<Vec<Member>> {
        self.run("reading nodes from", async {
            let mut tx = self.engine.read().await?;
            let nodes = tx.rows::<MemberRow>(sql::MEMBERS, values![]).await?;
            let pools = tx.rows::<PoolOfNodeRow>(sql::POOLS_OF_NODES, values![]).await?;
            leave(tx, row::members(nodes, pools).map_err(sqlx::Error::Decode)?).await
        })
        .await
    }

    async fn feed(&self) -> Result<Box<dyn Feed>> {
        self.run("hearing of changes in", self.engine.feed()).await
    }

    async fn export(&self) -> Result<Dump> {
        self.run("exporting", async {
            let mut tx = self.engine.read().await?;
            let dump = dump::read(&mut tx).await?;
            leave(tx, dump).await
        })
        .await
    }

    async fn import(&self, dump: &Dump) -> Result<bool> {
        self.run("importing into", async {
            let mut tx = self.engine.write().await?;
            if tx.number(sql::COUNT_ANYTHING, values![]).await? > 0 {
                return leave(tx, false).await;
            }
            dump::write(&mut tx, dump).await?;
            self.commit(tx, DESIRED, true).await
        })
        .await
    }

    async fn ping(&self) -> Result<()> {
        self.run("asking", async {
            if !self.doubted.load(Ordering::Relaxed) {
                let mut tx = self.engine.read().await?;
                current_revision(&mut tx).await?;
                return leave(tx, ()).await;
            }
            let mut tx = self.engine.write().await?;
            // There and back: SQLite writes nothing that is what it was before.
            let revision = raise_revision(&mut tx).await?;
            tx.execute(sql::SET_REVISION, values![Revision(revision.0 - 1)]).await?;
            tx.commit(None).await?;
            self.doubted.store(false, Ordering::Relaxed);
            Ok(())
        })
        .await
    }

    fn serves_many(&self) -> bool {
        E::SERVES_MANY
    }

    fn losses(&self) -> u64 {
        self.engine.losses()
    }

    async fn hand_over(&self) -> Result<Option<OwnedFd>> {
        self.run("handing over", self.engine.hand_over()).await
    }

    async fn take_back(&self) -> Result<()> {
        self.run("taking back", self.engine.take_back()).await
    }

    async fn close(&self) {
        self.engine.close().await;
    }
}

fn decode_all<R, T>(rows: Vec<R>) -> Sql<Vec<T>>
where
    T: TryFrom<R, Error = BadRow>,
{
    rows.into_iter().map(T::try_from).collect::<std::result::Result<_, _>>().map_err(sqlx::Error::Decode)
}

/// The rows that this version understands. One of a newer version that has a word which this one does not know is left
/// alone: everything else goes on.
fn decode_known<R, T>(rows: Vec<R>) -> Vec<T>
where
    T: TryFrom<R, Error = BadRow>,
{
    rows.into_iter().filter_map(|row| known(T::try_from(row))).collect()
}

fn known<T>(decoded: std::result::Result<T, BadRow>) -> Option<T> {
    decoded
        .inspect_err(|reason| {
            tracing::error!(%reason, "a row of the store is left alone, as it cannot be understood: is another node newer?");
        })
        .ok()
}

/// An id of a row, which was an id when it was written.
fn decode_id<T>(read: std::result::Result<T, crate::model::id::BadId>) -> Sql<T> {
    read.map_err(|bad| sqlx::Error::Decode(bad.into()))
}

async fn known_secret(tx: &mut impl Session) -> Sql<Option<AnnounceSecret>> {
    let read = |digits: Option<String>| digits.map(|digits| row::secret_from_hex(&digits)).transpose();
    let known = read(tx.text(sql::SECRET, values![ANNOUNCE_SECRET]).await?).map_err(sqlx::Error::Decode)?;
    let former = read(tx.text(sql::SECRET, values![FORMER_SECRET]).await?).map_err(sqlx::Error::Decode)?;
    Ok(match (known, former) {
        (Some(known), Some(former)) => Some(known.after(&former)),
        (known, _) => known,
    })
}

/// Beside no other.
async fn insert_secrets(tx: &mut impl Session, secret: &AnnounceSecret) -> Sql<()> {
    tx.execute(sql::INSERT_SECRET, values![ANNOUNCE_SECRET, &row::secret_to_hex(secret)]).await?;
    if let Some(former) = secret.former() {
        tx.execute(sql::INSERT_SECRET, values![FORMER_SECRET, &row::secret_to_hex(&former)]).await?;
    }
    Ok(())
}

/// Has everybody read the secret again.
async fn note_secret(tx: &mut impl Session, by: &By, what: Option<&str>) -> Sql<()> {
    let revision = raise_revision(tx).await?;
    let (scope, key) = (setting::SECRETS.to_owned(), ANNOUNCE_SECRET.to_owned());
    let change = SettingChange { scope, key, value: what.map(Into::into) };
    note_changes(tx, &[change], by, revision).await
}

async fn all_settings(tx: &mut impl Session) -> Sql<Vec<Setting>> {
    decode_all(tx.rows::<SettingRow>(sql::SETTINGS, values![]).await?)
}

/// Adds to the history what is changed with `revision`, and drops what it no longer keeps.
async fn note_changes(tx: &mut impl Session, changes: &[SettingChange], by: &By, revision: Revision) -> Sql<()> {
    for SettingChange { scope, key, value } in changes {
        let noted = values![scope, key, value, &by.who, by.at, revision];
        tx.execute(sql::INSERT_SETTING_CHANGE, noted).await?;
    }
    let told = Revision(revision.0.saturating_sub(CHANGES_KEPT));
    tx.execute(sql::DROP_SETTING_CHANGES, values![setting::HISTORY_KEPT as u64, told]).await?;
    Ok(())
}

/// A service instance that is gone is not suspended either.
async fn end_suspension(tx: &mut impl Session, gone: &ServiceInstance, now: Timestamp, revision: Revision) -> Sql<()> {
    if tx.execute(sql::DELETE_SETTING, values![setting::SUSPENDED, gone.id.as_str()]).await? == 0 {
        return Ok(());
    }
    let change = SettingChange { scope: setting::SUSPENDED.into(), key: gone.id.to_string(), value: None };
    note_changes(tx, &[change], &By::deprovision(now), revision).await
}

async fn current_revision(tx: &mut impl Session) -> Sql<Revision> {
    row::revision_from_column(tx.number(sql::REVISION, values![]).await?).map_err(sqlx::Error::Decode)
}

async fn raise_revision(tx: &mut impl Session) -> Sql<Revision> {
    row::revision_from_column(tx.number(sql::RAISE_REVISION, values![]).await?).map_err(sqlx::Error::Decode)
}

async fn instance_by_id(tx: &mut impl Session, id: &ServiceInstanceId) -> Sql<Option<ServiceInstance>> {
    let row = tx.row::<InstanceRow>(sql::INSTANCE, values![id.as_str()]).await?;
    row.map(ServiceInstance::try_from).transpose().map_err(sqlx::Error::Decode)
}

async fn binding_by_id(tx: &mut impl Session, id: &BindingId) -> Sql<Option<Binding>> {
    let row = tx.row::<BindingRow>(sql::BINDING, values![id.as_str()]).await?;
    row.map(Binding::try_from).transpose().map_err(sqlx::Error::Decode)
}

/// Without its port.
async fn insert_instance(tx: &mut impl Session, instance: &ServiceInstance) -> Sql<()> {
    let settings = row::settings_to_json(&instance.settings);
    let inserted = values![
        instance.id.as_str(),
        instance.plan_id.as_str(),
        instance.protocol.as_str(),
        instance.requested_port,
        &settings,
        instance.organization_id.as_str(),
        instance.space_id.as_str(),
        &instance.name,
        instance.node_id.as_str(),
        instance.created_at,
        instance.revision,
    ];
    tx.execute(sql::INSERT_INSTANCE, inserted).await?;
    Ok(())
}

async fn insert_binding(tx: &mut impl Session, binding: &Binding) -> Sql<()> {
    let inserted = values![
        binding.id.as_str(),
        binding.service_instance_id.as_str(),
        &binding.app_id,
        &binding.space_id,
        binding.announce,
        &binding.predecessor_id,
        binding.created_at,
        binding.revision,
    ];
    tx.execute(sql::INSERT_BINDING, inserted).await?;
    Ok(())
}

async fn instances_after(tx: &mut impl Session, revision: Revision) -> Sql<Vec<ServiceInstance>> {
    Ok(decode_known(tx.rows::<InstanceRow>(sql::INSTANCES_AFTER, values![revision]).await?))
}

async fn bindings_after(tx: &mut impl Session, revision: Revision) -> Sql<Vec<Binding>> {
    Ok(decode_known(tx.rows::<BindingRow>(sql::BINDINGS_AFTER, values![revision]).await?))
}

async fn pools_after(tx: &mut impl Session, revision: Revision) -> Sql<Vec<Pool>> {
    let definitions = tx.rows::<(Text,)>(sql::POOLS_AFTER, values![revision]).await?;
    let pools = definitions.iter().map(|(definition,)| row::pool_from_json(definition));
    Ok(pools.filter_map(known).collect())
}

async fn dropped_pools_after(tx: &mut impl Session, revision: Revision) -> Sql<Vec<PoolName>> {
    let names = tx.rows::<(Text,)>(sql::POOLS_DROPPED_AFTER, values![revision]).await?;
    names.into_iter().map(|(name,)| decode_id(PoolName::new(String::from(name)))).collect()
}

/// Whether an operation on the service instance is under way on that node.
async fn is_opened_by(tx: &mut impl Session, id: &ServiceInstanceId, node: &NodeId) -> Sql<bool> {
    Ok(tx.number(sql::COUNT_OPERATION_ON, values![id.as_str(), node.as_str()]).await? > 0)
}

/// What is told of an operation whose service instance ends.
async fn end_operation(tx: &mut impl Session, id: &ServiceInstanceId, now: Timestamp, ending: Ending<'_>) -> Sql<()> {
    match ending {
        Ending::Failed { why, .. } => tx.execute(sql::FAIL_OPERATION, values![id.as_str(), why, now]).await?,
        Ending::Rest(_) | Ending::Unused => tx.execute(sql::FORGET_OPERATION, values![id.as_str()]).await?,
    };
    tx.execute(sql::DROP_OPERATIONS, values![now.minus(FAILURES_KEPT)]).await?;
    Ok(())
}

/// Gives `instance` its port, if that is free for it.
async fn take_port(tx: &mut impl Session, instance: &ServiceInstance, now: Timestamp) -> Sql<bool> {
    let port = values![instance.pool.as_str(), instance.port];
    if tx.number(sql::COUNT_RESERVATIONS_OF_PORT, port).await? > 0 {
        return Ok(false);
    }
    if let Some(known) = tx.row::<AllocationRow>(sql::PORT, port).await? {
        let known = PortRow::try_from(known).map_err(sqlx::Error::Decode)?;
        let asked_for = instance.requested_port == Some(instance.port);
        if !known.state.is_free_for(&instance.space_id, asked_for, now) {
            return Ok(false);
        }
    }
    let taken = values![instance.pool.as_str(), instance.port, instance.id.as_str()];
    Ok(tx.execute(sql::TAKE_PORT, taken).await? == 1)
}

/// Makes a port that was never used what it was before.
async fn give_back_port(tx: &mut impl Session, id: &ServiceInstanceId) -> Sql<()> {
    tx.execute(sql::FORGET_PORT, values![id.as_str()]).await?;
    tx.execute(sql::GIVE_BACK_PORT, values![id.as_str()]).await?;
    Ok(())
}

async fn bury(tx: &mut impl Session, kind: &'static str, id: &str, revision: Revision) -> Sql<()> {
    tx.execute(sql::BURY, values![kind, id, revision]).await?;
    Ok(())
}

async fn unbury(tx: &mut impl Session, kind: &'static str, id: &str) -> Sql<()> {
    tx.execute(sql::UNBURY, values![kind, id]).await?;
    Ok(())
}

/// Drops the tombstones that [`Store::changes_since`] no longer needs.
async fn drop_tombstones(tx: &mut impl Session, current: Revision) -> Sql<()> {
    let oldest = Revision(current.0.saturating_sub(CHANGES_KEPT));
    tx.execute(sql::DROP_TOMBSTONES, values![oldest]).await?;
    Ok(())
}
