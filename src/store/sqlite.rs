//! The store on SQLite: one file, one process.
//!
//! One connection writes, in transactions that take the write lock at once; a few others read. A commit is on the disk
//! before it is answered.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions as _, Connection as _, Sqlite, SqliteConnection, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    Bind, CHANGES_KEPT, Change, Changes, Ending, FAILURES_KEPT, Fault, Feed, Freed, Heard, Hint, Migrated, OpenError,
    Operation, PortRow, Provision, Reservation, Result, SCHEMA_VERSION, Store,
    feed::Bell,
    files,
    lock::{self, Lock},
    migrations,
    row::{
        self, AllocationRow, BindingRow, FreedRow, InstanceRow, MemberRow, OperationRow, PoolOfNodeRow, ReservationRow,
        TombstoneRow,
    },
    secret, sql,
};
use crate::{
    model::{
        BindingId, NodeId, PoolName, Revision, ServiceInstanceId, Timestamp,
        binding::Binding,
        member::{Member, Report},
        pool::Pool,
        service_instance::ServiceInstance,
        token::AnnounceSecret,
    },
    telemetry::metrics::StoreMetrics,
};

/// Connections that read.
const READERS: u32 = 4;

/// Memory in which each connection keeps pages of the database, in KiB: what it lacks there it reads again from the
/// kernel's memory.
const PAGE_CACHE_KIB: i64 = 256;

/// How long a call waits for a connection before it is a fault.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long SQLite waits for another program, such as a backup, that has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Statements that each connection keeps prepared: more than there are.
const PREPARED_STATEMENTS: usize = 64;

/// Under which name the announce secret is kept.
const ANNOUNCE_SECRET: &str = "announce";

/// What calls to the engine return; rows that cannot be read are its decode errors.
type Sql<T> = std::result::Result<T, sqlx::Error>;

/// A store in a SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    bell: Bell,
    metrics: Arc<StoreMetrics>,
    /// Whether there was a fault since a ping last wrote: a disk that is full can still be read.
    doubted: AtomicBool,
    /// None once closed.
    lock: Mutex<Option<Lock>>,
}

impl SqliteStore {
    /// Opens or makes the database at `path`: takes its lock, then brings its schema up to date.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(path: &Path, metrics: Arc<StoreMetrics>) -> std::result::Result<Self, OpenError> {
        let (path, lock, migrated) = lock_and_migrate(path).await?;
        tracing::info!(path = %path.display(), schema = migrated.to, schema_before = migrated.from, "opened the store");
        let pool = || {
            SqlitePoolOptions::new()
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
                // A full disk makes SQLite end a transaction by itself. The driver goes on counting it, and every later
                // one on the connection would fail, or be part of it.
                .before_acquire(|connection, _| Box::pin(async { Ok(!connection.is_in_transaction()) }))
        };
        let connecting = |source| fault("connecting to the SQLite store", source);
        let writer = pool().max_connections(1).connect_with(options(&path)).await.map_err(connecting)?;
        let reading = options(&path).pragma("query_only", "ON");
        let readers = pool().max_connections(READERS).connect_with(reading).await.map_err(connecting)?;
        let bell = Bell::default();
        Ok(Self { writer, readers, bell, metrics, doubted: AtomicBool::new(false), lock: Mutex::new(Some(lock)) })
    }

    /// A transaction that has the write lock. Dropped before [`SqliteStore::commit`], it changes nothing.
    async fn write(&self) -> Sql<Transaction<'static, Sqlite>> {
        self.writer.begin_with("BEGIN IMMEDIATE").await
    }

    /// `hint` is what others are told.
    async fn commit(&self, transaction: Transaction<'static, Sqlite>, hint: Hint) -> Sql<()> {
        let start = Instant::now();
        transaction.commit().await?;
        self.metrics.commit_duration.observe(start.elapsed().as_secs_f64());
        self.bell.ring(hint);
        Ok(())
    }

    /// Does `work`; counts its fault, and says what was being done.
    async fn run<T>(&self, doing: &'static str, work: impl Future<Output = Sql<T>> + Send) -> Result<T> {
        work.await.map_err(|source| {
            self.metrics.faults.inc();
            self.doubted.store(true, Ordering::Relaxed);
            fault(doing, source)
        })
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn announce_secret(&self) -> Result<AnnounceSecret> {
        self.run("reading the announce secret from the SQLite store", async {
            let mut tx = self.write().await?;
            let known =
                sqlx::query_scalar::<_, String>(sql::SECRET).bind(ANNOUNCE_SECRET).fetch_optional(&mut *tx).await?;
            if let Some(known) = known {
                return row::secret_from_hex(&known).map_err(sqlx::Error::Decode);
            }
            let made = secret::fresh().map_err(|fault| sqlx::Error::Encode(fault.into()))?;
            sqlx::query(sql::INSERT_SECRET)
                .bind(ANNOUNCE_SECRET)
                .bind(row::secret_to_hex(&made))
                .execute(&mut *tx)
                .await?;
            self.commit(tx, Hint::Desired).await?;
            Ok(made)
        })
        .await
    }

    async fn everything(&self) -> Result<Changes> {
        self.run("reading everything from the SQLite store", async {
            let mut tx = self.readers.begin().await?;
            Ok(Changes {
                revision: current_revision(&mut tx).await?,
                instances: instances_after(&mut tx, Revision::default()).await?,
                bindings: bindings_after(&mut tx, Revision::default()).await?,
                pools: pools_after(&mut tx, Revision::default()).await?,
                ..Changes::default()
            })
        })
        .await
    }

    async fn changes_since(&self, revision: Revision) -> Result<Option<Changes>> {
        self.run("reading changes from the SQLite store", async {
            let mut tx = self.readers.begin().await?;
            let current = current_revision(&mut tx).await?;
            if revision > current || revision.0 + CHANGES_KEPT < current.0 {
                return Ok(None);
            }
            let mut changes = Changes {
                revision: current,
                instances: instances_after(&mut tx, revision).await?,
                bindings: bindings_after(&mut tx, revision).await?,
                pools: pools_after(&mut tx, revision).await?,
                freed: freed_after(&mut tx, revision).await?,
                reserved: reserved_after(&mut tx, revision).await?,
                ..Changes::default()
            };
            let tombstones = sqlx::query_as::<_, TombstoneRow>(sql::TOMBSTONES_AFTER)
                .bind(row::revision_to_column(revision))
                .fetch_all(&mut *tx)
                .await?;
            for tombstone in tombstones {
                match tombstone.kind.as_str() {
                    row::KIND_INSTANCE => {
                        changes.deleted_instances.push(decode_id(ServiceInstanceId::new(tombstone.id))?)
                    }
                    _ => changes.deleted_bindings.push(decode_id(BindingId::new(tombstone.id))?),
                }
            }
            Ok(Some(changes))
        })
        .await
    }

    async fn ports(&self, pool: &PoolName) -> Result<Vec<PortRow>> {
        self.run("reading ports from the SQLite store", async {
            let rows =
                sqlx::query_as::<_, AllocationRow>(sql::PORTS).bind(pool.as_str()).fetch_all(&self.readers).await?;
            decode_all(rows)
        })
        .await
    }

    async fn reservations(&self, pool: &PoolName) -> Result<Vec<Reservation>> {
        self.run("reading reservations from the SQLite store", async {
            let rows = sqlx::query_as::<_, ReservationRow>(sql::RESERVATIONS)
                .bind(pool.as_str())
                .fetch_all(&self.readers)
                .await?;
            decode_all(rows)
        })
        .await
    }

    async fn reserve(&self, reservation: &Reservation) -> Result<bool> {
        self.run("reserving ports in the SQLite store", async {
            let mut tx = self.write().await?;
            let in_the_way = sqlx::query_scalar::<_, i64>(sql::COUNT_RESERVATIONS_IN_THE_WAY)
                .bind(reservation.pool.as_str())
                .bind(&reservation.name)
                .bind(i64::from(reservation.first_port))
                .bind(i64::from(reservation.last_port))
                .fetch_one(&mut *tx)
                .await?;
            if in_the_way > 0 {
                return Ok(false);
            }
            let revision = raise_revision(&mut tx).await?;
            sqlx::query(sql::INSERT_RESERVATION)
                .bind(reservation.pool.as_str())
                .bind(&reservation.name)
                .bind(i64::from(reservation.first_port))
                .bind(i64::from(reservation.last_port))
                .bind(row::revision_to_column(revision))
                .execute(&mut *tx)
                .await?;
            self.commit(tx, Hint::Desired).await?;
            Ok(true)
        })
        .await
    }

    async fn instance(&self, id: &ServiceInstanceId) -> Result<Option<ServiceInstance>> {
        self.run("reading a service instance from the SQLite store", async {
            instance_by_id(&mut *self.readers.acquire().await?, id).await
        })
        .await
    }

    async fn binding(&self, instance: &ServiceInstanceId, id: &BindingId) -> Result<Option<Binding>> {
        self.run("reading a binding from the SQLite store", async {
            let found = binding_by_id(&mut *self.readers.acquire().await?, id).await?;
            Ok(found.filter(|binding| binding.service_instance_id == *instance))
        })
        .await
    }

    async fn provision(&self, instance: &ServiceInstance, open_later: bool, now: Timestamp) -> Result<Provision> {
        self.run("provisioning in the SQLite store", async {
            let mut tx = self.write().await?;
            if let Some(known) = instance_by_id(&mut tx, &instance.id).await? {
                return Ok(Provision::Exists(known));
            }
            let instance = ServiceInstance { revision: raise_revision(&mut tx).await?, ..instance.clone() };
            sqlx::query(sql::INSERT_INSTANCE)
                .bind(instance.id.as_str())
                .bind(instance.plan_id.as_str())
                .bind(instance.protocol.as_str())
                .bind(instance.requested_port.map(i64::from))
                .bind(row::settings_to_json(&instance.settings))
                .bind(instance.organization_id.as_str())
                .bind(instance.space_id.as_str())
                .bind(&instance.name)
                .bind(instance.node_id.as_str())
                .bind(instance.created_at.0)
                .bind(row::revision_to_column(instance.revision))
                .execute(&mut *tx)
                .await?;
            if !take_port(&mut tx, &instance, now).await? {
                return Ok(Provision::PortTaken);
            }
            unbury(&mut tx, row::KIND_INSTANCE, instance.id.as_str()).await?;
            sqlx::query(sql::FORGET_OPERATION).bind(instance.id.as_str()).execute(&mut *tx).await?;
            if open_later {
                sqlx::query(sql::INSERT_OPERATION)
                    .bind(instance.id.as_str())
                    .bind(instance.node_id.as_str())
                    .bind(now.0)
                    .execute(&mut *tx)
                    .await?;
            }
            self.commit(tx, Hint::Desired).await?;
            Ok(Provision::Created(instance))
        })
        .await
    }

    async fn move_port(&self, id: &ServiceInstanceId, from: u16, to: u16, now: Timestamp) -> Result<Change> {
        self.run("moving a port in the SQLite store", async {
            let mut tx = self.write().await?;
            let Some(known) = instance_by_id(&mut tx, id).await?.filter(|known| known.port == from) else {
                return Ok(Change::Stale);
            };
            if from == to {
                return Ok(Change::PortTaken);
            }
            let moved = ServiceInstance { port: to, revision: raise_revision(&mut tx).await?, ..known };
            give_back_port(&mut tx, id).await?;
            if !take_port(&mut tx, &moved, now).await? {
                return Ok(Change::PortTaken);
            }
            sqlx::query(sql::MARK_INSTANCE)
                .bind(id.as_str())
                .bind(row::revision_to_column(moved.revision))
                .execute(&mut *tx)
                .await?;
            self.commit(tx, Hint::Desired).await?;
            Ok(Change::Done(moved))
        })
        .await
    }

    async fn update(&self, instance: &ServiceInstance) -> Result<Change> {
        self.run("updating in the SQLite store", async {
            let mut tx = self.write().await?;
            let known = instance_by_id(&mut tx, &instance.id).await?;
            let Some(known) = known.filter(|known| known.revision == instance.revision) else {
                return Ok(Change::Stale);
            };
            let changed = ServiceInstance {
                plan_id: instance.plan_id.clone(),
                protocol: instance.protocol,
                settings: instance.settings.clone(),
                name: instance.name.clone(),
                revision: raise_revision(&mut tx).await?,
                ..known
            };
            sqlx::query(sql::UPDATE_INSTANCE)
                .bind(changed.id.as_str())
                .bind(changed.plan_id.as_str())
                .bind(changed.protocol.as_str())
                .bind(row::settings_to_json(&changed.settings))
                .bind(&changed.name)
                .bind(row::revision_to_column(changed.revision))
                .execute(&mut *tx)
                .await?;
            self.commit(tx, Hint::Desired).await?;
            Ok(Change::Done(changed))
        })
        .await
    }

    async fn deprovision(
        &self,
        id: &ServiceInstanceId,
        now: Timestamp,
        ending: Ending<'_>,
    ) -> Result<Option<ServiceInstance>> {
        self.run("deprovisioning in the SQLite store", async {
            let mut tx = self.write().await?;
            let Some(gone) = instance_by_id(&mut tx, id).await? else { return Ok(None) };
            let revision = raise_revision(&mut tx).await?;
            sqlx::query(sql::BURY_BINDINGS_OF)
                .bind(id.as_str())
                .bind(row::revision_to_column(revision))
                .execute(&mut *tx)
                .await?;
            sqlx::query(sql::DELETE_BINDINGS_OF).bind(id.as_str()).execute(&mut *tx).await?;
            match ending {
                Ending::Rest(until) => {
                    sqlx::query(sql::RELEASE_PORT)
                        .bind(id.as_str())
                        .bind(gone.space_id.as_str())
                        .bind(now.0)
                        .bind(until.0)
                        .bind(row::revision_to_column(revision))
                        .execute(&mut *tx)
                        .await?;
                }
                Ending::Unused | Ending::Failed(_) => give_back_port(&mut tx, id).await?,
            }
            end_operation(&mut tx, id, now, ending).await?;
            bury(&mut tx, row::KIND_INSTANCE, id.as_str(), revision).await?;
            sqlx::query(sql::DELETE_INSTANCE).bind(id.as_str()).execute(&mut *tx).await?;
            drop_tombstones(&mut tx, revision).await?;
            self.commit(tx, Hint::Desired).await?;
            Ok(Some(gone))
        })
        .await
    }

    async fn bind(&self, binding: &Binding) -> Result<Bind> {
        self.run("binding in the SQLite store", async {
            let mut tx = self.write().await?;
            if let Some(known) = binding_by_id(&mut tx, &binding.id).await? {
                return Ok(Bind::Exists(known));
            }
            if instance_by_id(&mut tx, &binding.service_instance_id).await?.is_none() {
                return Ok(Bind::NoServiceInstance);
            }
            let binding = Binding { revision: raise_revision(&mut tx).await?, ..binding.clone() };
            sqlx::query(sql::INSERT_BINDING)
                .bind(binding.id.as_str())
                .bind(binding.service_instance_id.as_str())
                .bind(binding.app_id.as_ref().map(AsRef::<str>::as_ref))
                .bind(binding.space_id.as_ref().map(AsRef::<str>::as_ref))
                .bind(i64::from(binding.announce))
                .bind(binding.predecessor_id.as_ref().map(AsRef::<str>::as_ref))
                .bind(binding.created_at.0)
                .bind(row::revision_to_column(binding.revision))
                .execute(&mut *tx)
                .await?;
            unbury(&mut tx, row::KIND_BINDING, binding.id.as_str()).await?;
            self.commit(tx, Hint::Desired).await?;
            Ok(Bind::Created(binding))
        })
        .await
    }

    async fn unbind(&self, instance: &ServiceInstanceId, id: &BindingId) -> Result<Option<Binding>> {
        self.run("unbinding in the SQLite store", async {
            let mut tx = self.write().await?;
            let known = binding_by_id(&mut tx, id).await?;
            let Some(gone) = known.filter(|known| known.service_instance_id == *instance) else { return Ok(None) };
            let revision = raise_revision(&mut tx).await?;
            sqlx::query(sql::DELETE_BINDING).bind(id.as_str()).execute(&mut *tx).await?;
            bury(&mut tx, row::KIND_BINDING, id.as_str(), revision).await?;
            drop_tombstones(&mut tx, revision).await?;
            self.commit(tx, Hint::Desired).await?;
            Ok(Some(gone))
        })
        .await
    }

    async fn operation(&self, id: &ServiceInstanceId, now: Timestamp) -> Result<Option<Operation>> {
        self.run("reading an operation from the SQLite store", async {
            let row = sqlx::query_as::<_, OperationRow>(sql::OPERATION)
                .bind(id.as_str())
                .bind(now.minus(FAILURES_KEPT).0)
                .fetch_optional(&self.readers)
                .await?;
            row.map(Operation::try_from).transpose().map_err(sqlx::Error::Decode)
        })
        .await
    }

    async fn operations(&self) -> Result<Vec<Operation>> {
        self.run("reading operations from the SQLite store", async {
            decode_all(sqlx::query_as::<_, OperationRow>(sql::OPERATIONS).fetch_all(&self.readers).await?)
        })
        .await
    }

    async fn take_up(&self, id: &ServiceInstanceId, from: &NodeId, to: &NodeId, now: Timestamp) -> Result<bool> {
        self.run("taking up an operation in the SQLite store", async {
            let mut tx = self.write().await?;
            let taken = sqlx::query(sql::TAKE_UP_OPERATION)
                .bind(id.as_str())
                .bind(from.as_str())
                .bind(to.as_str())
                .bind(now.0)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            Ok(taken.rows_affected() == 1)
        })
        .await
    }

    async fn opened(&self, id: &ServiceInstanceId, by: &NodeId) -> Result<bool> {
        self.run("ending an operation in the SQLite store", async {
            let mut tx = self.write().await?;
            let ended = sqlx::query(sql::END_OPERATION).bind(id.as_str()).bind(by.as_str()).execute(&mut *tx).await?;
            tx.commit().await?;
            Ok(ended.rows_affected() == 1)
        })
        .await
    }

    async fn pools(&self) -> Result<(Revision, Vec<Pool>)> {
        self.run("reading pools from the SQLite store", async {
            let mut tx = self.readers.begin().await?;
            Ok((current_revision(&mut tx).await?, pools_after(&mut tx, Revision::default()).await?))
        })
        .await
    }

    async fn define_pools(&self, pools: &[Pool], read_at: Revision) -> Result<Option<Revision>> {
        self.run("defining pools in the SQLite store", async {
            let mut tx = self.write().await?;
            for pool in pools {
                let changed_since = sqlx::query_scalar::<_, i64>(sql::COUNT_POOL_AFTER)
                    .bind(pool.name.as_str())
                    .bind(row::revision_to_column(read_at))
                    .fetch_one(&mut *tx)
                    .await?;
                if changed_since > 0 {
                    return Ok(None);
                }
            }
            let revision = raise_revision(&mut tx).await?;
            for pool in pools {
                sqlx::query(sql::PUT_POOL)
                    .bind(pool.name.as_str())
                    .bind(row::pool_to_json(pool))
                    .bind(row::revision_to_column(revision))
                    .execute(&mut *tx)
                    .await?;
            }
            self.commit(tx, Hint::Desired).await?;
            Ok(Some(revision))
        })
        .await
    }

    async fn join(&self, member: &Member) -> Result<()> {
        self.run("joining in the SQLite store", async {
            let Member { id, process, version, pools, report, drain, joined_at, seen_at } = member;
            let mut tx = self.write().await?;
            sqlx::query(sql::PUT_NODE)
                .bind(id.as_str())
                .bind(process)
                .bind(version)
                .bind(report.mode.as_str())
                .bind(row::revision_to_column(report.applied))
                .bind(row::count_to_column(report.flows))
                .bind(row::count_to_column(report.failed))
                .bind(row::failures_to_json(&report.failures))
                .bind(i64::from(*drain))
                .bind(joined_at.0)
                .bind(seen_at.0)
                .execute(&mut *tx)
                .await?;
            sqlx::query(sql::DELETE_POOLS_OF_NODE).bind(id.as_str()).execute(&mut *tx).await?;
            for pool in pools {
                sqlx::query(sql::INSERT_POOL_OF_NODE).bind(id.as_str()).bind(pool.as_str()).execute(&mut *tx).await?;
            }
            self.commit(tx, Hint::Members).await
        })
        .await
    }

    async fn report(&self, node: &NodeId, process: &str, report: &Report, now: Timestamp) -> Result<Heard> {
        self.run("reporting to the SQLite store", async {
            let mut tx = self.write().await?;
            let speaks =
                sqlx::query_scalar::<_, String>(sql::PROCESS_OF_NODE).bind(node.as_str()).fetch_optional(&mut *tx);
            match speaks.await? {
                None => return Ok(Heard::Gone),
                Some(speaks) if speaks != process => return Ok(Heard::Superseded),
                Some(_) => {}
            }
            sqlx::query(sql::REPORT)
                .bind(node.as_str())
                .bind(report.mode.as_str())
                .bind(row::revision_to_column(report.applied))
                .bind(row::count_to_column(report.flows))
                .bind(row::count_to_column(report.failed))
                .bind(row::failures_to_json(&report.failures))
                .bind(now.0)
                .execute(&mut *tx)
                .await?;
            self.commit(tx, Hint::Members).await?;
            Ok(Heard::Kept)
        })
        .await
    }

    async fn set_drain(&self, node: &NodeId, drain: bool) -> Result<bool> {
        self.run("noting a drain in the SQLite store", async {
            let mut tx = self.write().await?;
            let set = sqlx::query(sql::SET_DRAIN).bind(node.as_str()).bind(i64::from(drain)).execute(&mut *tx).await?;
            self.commit(tx, Hint::Members).await?;
            Ok(set.rows_affected() == 1)
        })
        .await
    }

    async fn remove_node(&self, node: &NodeId) -> Result<bool> {
        self.run("removing a node from the SQLite store", async {
            let mut tx = self.write().await?;
            sqlx::query(sql::DELETE_POOLS_OF_NODE).bind(node.as_str()).execute(&mut *tx).await?;
            let gone = sqlx::query(sql::DELETE_NODE).bind(node.as_str()).execute(&mut *tx).await?;
            self.commit(tx, Hint::Members).await?;
            Ok(gone.rows_affected() == 1)
        })
        .await
    }

    async fn members(&self) -> Result<Vec<Member>> {
        self.run("reading nodes from the SQLite store", async {
            let mut tx = self.readers.begin().await?;
            let nodes = sqlx::query_as::<_, MemberRow>(sql::MEMBERS).fetch_all(&mut *tx).await?;
            let pools = sqlx::query_as::<_, PoolOfNodeRow>(sql::POOLS_OF_NODES).fetch_all(&mut *tx).await?;
            row::members(nodes, pools).map_err(sqlx::Error::Decode)
        })
        .await
    }

    async fn feed(&self) -> Result<Box<dyn Feed>> {
        Ok(self.bell.listen())
    }

    async fn ping(&self) -> Result<()> {
        self.run("asking the SQLite store for an answer", async {
            if !self.doubted.load(Ordering::Relaxed) {
                return current_revision(&mut *self.readers.acquire().await?).await.map(|_| ());
            }
            let mut tx = self.write().await?;
            sqlx::query(sql::CHANGE_NOTHING).execute(&mut *tx).await?;
            tx.commit().await?;
            self.doubted.store(false, Ordering::Relaxed);
            Ok(())
        })
        .await
    }

    fn serves_many(&self) -> bool {
        false
    }

    async fn close(&self) {
        // The last connection folds the log into the database; a reader could not.
        self.readers.close().await;
        self.writer.close().await;
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Brings the database at `path` up to date, and checks all of it.
pub(super) async fn migrate(path: &Path) -> std::result::Result<Migrated, OpenError> {
    let (path, _lock, migrated) = lock_and_migrate(path).await?;
    let checking = |source| fault("checking the SQLite store", source);
    let mut connection = options(&path).connect().await.map_err(checking)?;
    let findings = sqlx::query_scalar::<_, String>("PRAGMA integrity_check(1)")
        .fetch_all(&mut connection)
        .await
        .map_err(checking)?;
    let strays = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut connection).await.map_err(checking)?.len();
    connection.close().await.map_err(checking)?;
    let stray = match strays {
        0 => None,
        1 => Some("1 row refers to one that is not there".to_owned()),
        more => Some(format!("{more} rows refer to some that are not there")),
    };
    match findings.into_iter().find(|finding| finding != "ok").or(stray) {
        Some(finding) => Err(OpenError::Damaged { path, finding }),
        None => Ok(migrated),
    }
}

/// In this order: a second process is refused before it touches the database, and a newer database before it is changed.
async fn lock_and_migrate(path: &Path) -> std::result::Result<(PathBuf, Lock, Migrated), OpenError> {
    let path = files::place(path)?;
    let lock = lock::take(&path)?;
    files::prepare(&path)?;
    let from = schema_version(&path).await?;
    if from > SCHEMA_VERSION {
        return Err(OpenError::Newer { path, found: from, known: SCHEMA_VERSION });
    }
    let connecting = |source| fault("connecting to the SQLite store", source);
    let mut connection = options(&path).connect().await.map_err(connecting)?;
    if let Err(error) = migrations::sqlite().run(&mut connection).await {
        return Err(OpenError::Migrate { path, source: error.into() });
    }
    connection.close().await.map_err(connecting)?;
    Ok((path, lock, Migrated { from, to: SCHEMA_VERSION }))
}

/// The schema's number, without changing anything; 0 for an empty database.
async fn schema_version(path: &Path) -> std::result::Result<i64, OpenError> {
    let reading = |source| fault("reading the schema of the SQLite store", source);
    let read_only = SqliteConnectOptions::new().filename(path).read_only(true).disable_statement_logging();
    let mut connection = read_only.connect().await.map_err(reading)?;
    let tables = sqlx::query_scalar::<_, String>("SELECT name FROM sqlite_master WHERE type = 'table'")
        .fetch_all(&mut connection)
        .await
        .map_err(reading)?;
    let version = if tables.iter().any(|name| name == "_sqlx_migrations") {
        sqlx::query_scalar::<_, Option<i64>>("SELECT max(version) FROM _sqlx_migrations")
            .fetch_one(&mut connection)
            .await
            .map_err(reading)?
            .unwrap_or(0)
    } else if tables.is_empty() {
        0
    } else {
        return Err(OpenError::NotHarbor { path: path.to_path_buf() });
    };
    connection.close().await.map_err(reading)?;
    Ok(version)
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("cache_size", format!("-{PAGE_CACHE_KIB}"))
        .statement_cache_capacity(PREPARED_STATEMENTS)
        .disable_statement_logging()
}

fn fault(doing: &'static str, source: sqlx::Error) -> Fault {
    Fault { doing, source: source.into() }
}

fn decode_all<R, T>(rows: Vec<R>) -> Sql<Vec<T>>
where
    T: TryFrom<R, Error = Box<dyn std::error::Error + Send + Sync>>,
{
    rows.into_iter().map(T::try_from).collect::<std::result::Result<_, _>>().map_err(sqlx::Error::Decode)
}

/// An id of a row, which was an id when it was written.
fn decode_id<T>(read: std::result::Result<T, crate::model::id::BadId>) -> Sql<T> {
    read.map_err(|bad| sqlx::Error::Decode(bad.into()))
}

async fn current_revision(tx: &mut SqliteConnection) -> Sql<Revision> {
    let revision = sqlx::query_scalar::<_, i64>(sql::REVISION).fetch_one(tx).await?;
    row::revision_from_column(revision).map_err(sqlx::Error::Decode)
}

async fn raise_revision(tx: &mut SqliteConnection) -> Sql<Revision> {
    let revision = sqlx::query_scalar::<_, i64>(sql::RAISE_REVISION).fetch_one(tx).await?;
    row::revision_from_column(revision).map_err(sqlx::Error::Decode)
}

async fn instance_by_id(connection: &mut SqliteConnection, id: &ServiceInstanceId) -> Sql<Option<ServiceInstance>> {
    let row = sqlx::query_as::<_, InstanceRow>(sql::INSTANCE).bind(id.as_str()).fetch_optional(connection).await?;
    row.map(ServiceInstance::try_from).transpose().map_err(sqlx::Error::Decode)
}

async fn binding_by_id(connection: &mut SqliteConnection, id: &BindingId) -> Sql<Option<Binding>> {
    let row = sqlx::query_as::<_, BindingRow>(sql::BINDING).bind(id.as_str()).fetch_optional(connection).await?;
    row.map(Binding::try_from).transpose().map_err(sqlx::Error::Decode)
}

async fn instances_after(tx: &mut SqliteConnection, revision: Revision) -> Sql<Vec<ServiceInstance>> {
    let after = row::revision_to_column(revision);
    decode_all(sqlx::query_as::<_, InstanceRow>(sql::INSTANCES_AFTER).bind(after).fetch_all(tx).await?)
}

async fn bindings_after(tx: &mut SqliteConnection, revision: Revision) -> Sql<Vec<Binding>> {
    let after = row::revision_to_column(revision);
    decode_all(sqlx::query_as::<_, BindingRow>(sql::BINDINGS_AFTER).bind(after).fetch_all(tx).await?)
}

async fn pools_after(tx: &mut SqliteConnection, revision: Revision) -> Sql<Vec<Pool>> {
    let after = row::revision_to_column(revision);
    let definitions = sqlx::query_scalar::<_, String>(sql::POOLS_AFTER).bind(after).fetch_all(tx).await?;
    let pools = definitions.iter().map(|definition| row::pool_from_json(definition));
    pools.collect::<std::result::Result<_, _>>().map_err(sqlx::Error::Decode)
}

async fn freed_after(tx: &mut SqliteConnection, revision: Revision) -> Sql<Vec<Freed>> {
    let after = row::revision_to_column(revision);
    decode_all(sqlx::query_as::<_, FreedRow>(sql::FREED_AFTER).bind(after).fetch_all(tx).await?)
}

async fn reserved_after(tx: &mut SqliteConnection, revision: Revision) -> Sql<Vec<PoolName>> {
    let after = row::revision_to_column(revision);
    let pools = sqlx::query_scalar::<_, String>(sql::POOLS_RESERVED_AFTER).bind(after).fetch_all(tx).await?;
    pools.into_iter().map(|pool| decode_id(PoolName::new(pool))).collect()
}

/// What is told of an operation whose service instance ends.
async fn end_operation(
    tx: &mut SqliteConnection,
    id: &ServiceInstanceId,
    now: Timestamp,
    ending: Ending<'_>,
) -> Sql<()> {
    match ending {
        Ending::Failed(why) => sqlx::query(sql::FAIL_OPERATION).bind(id.as_str()).bind(why).bind(now.0),
        Ending::Rest(_) | Ending::Unused => sqlx::query(sql::FORGET_OPERATION).bind(id.as_str()),
    }
    .execute(&mut *tx)
    .await?;
    sqlx::query(sql::DROP_OPERATIONS).bind(now.minus(FAILURES_KEPT).0).execute(tx).await?;
    Ok(())
}

/// Gives `instance` its port, if that is free for it.
async fn take_port(tx: &mut SqliteConnection, instance: &ServiceInstance, now: Timestamp) -> Sql<bool> {
    let (pool, port) = (instance.pool.as_str(), i64::from(instance.port));
    let reserved =
        sqlx::query_scalar::<_, i64>(sql::COUNT_RESERVATIONS_OF_PORT).bind(pool).bind(port).fetch_one(&mut *tx).await?;
    if reserved > 0 {
        return Ok(false);
    }
    let known = sqlx::query_as::<_, AllocationRow>(sql::PORT).bind(pool).bind(port).fetch_optional(&mut *tx).await?;
    if let Some(known) = known {
        let known = PortRow::try_from(known).map_err(sqlx::Error::Decode)?;
        let asked_for = instance.requested_port == Some(instance.port);
        if !known.state.is_free_for(&instance.space_id, asked_for, now) {
            return Ok(false);
        }
    }
    let taken = sqlx::query(sql::TAKE_PORT).bind(pool).bind(port).bind(instance.id.as_str()).execute(&mut *tx).await?;
    Ok(taken.rows_affected() == 1)
}

/// Makes a port that was never used what it was before.
async fn give_back_port(tx: &mut SqliteConnection, id: &ServiceInstanceId) -> Sql<()> {
    sqlx::query(sql::FORGET_PORT).bind(id.as_str()).execute(&mut *tx).await?;
    sqlx::query(sql::GIVE_BACK_PORT).bind(id.as_str()).execute(&mut *tx).await?;
    Ok(())
}

async fn bury(tx: &mut SqliteConnection, kind: &'static str, id: &str, revision: Revision) -> Sql<()> {
    let revision = row::revision_to_column(revision);
    sqlx::query(sql::BURY).bind(kind).bind(id).bind(revision).execute(tx).await?;
    Ok(())
}

async fn unbury(tx: &mut SqliteConnection, kind: &'static str, id: &str) -> Sql<()> {
    sqlx::query(sql::UNBURY).bind(kind).bind(id).execute(tx).await?;
    Ok(())
}

/// Drops the tombstones that [`Store::changes_since`] no longer needs.
async fn drop_tombstones(tx: &mut SqliteConnection, current: Revision) -> Sql<()> {
    let oldest = Revision(current.0.saturating_sub(CHANGES_KEPT));
    sqlx::query(sql::DROP_TOMBSTONES).bind(row::revision_to_column(oldest)).execute(tx).await?;
    Ok(())
}

#[cfg(test)]
mod tests;
