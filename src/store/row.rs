//! Rows as every engine stores them, and their translation into the words of the model.

use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Freed, Operation, PortRow, PortState, Release, Reservation, text::Text};
use crate::model::{
    AppId, BindingId, NodeId, OrganizationId, PlanId, PoolName, Revision, ServiceInstanceId, SpaceId, Timestamp,
    balance::Balance,
    binding::Binding,
    member::{Member, PortFailure, Report},
    observed::Mode,
    parameters::{HealthCheck, ProxyProtocol, Settings, TcpCheck},
    pool::{Pool, PoolNames},
    service_instance::ServiceInstance,
    setting::Setting,
    token::{AnnounceSecret, SECRET_BYTES},
};

/// A row that Harbor cannot have written: the database was changed by hand or is damaged.
pub(super) type BadRow = Box<dyn std::error::Error + Send + Sync>;

/// A row that an operator can find.
pub(super) trait Named {
    /// What it is, and its key.
    fn name(&self) -> String;
}

/// A service instance with its port.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct InstanceRow {
    id: Text,
    plan_id: Text,
    pool: Text,
    port: i64,
    protocol: Text,
    requested_port: Option<i64>,
    settings: Text,
    organization_id: Text,
    space_id: Text,
    name: Option<Text>,
    node_id: Text,
    created_at: i64,
    revision: i64,
}

impl Named for InstanceRow {
    fn name(&self) -> String {
        format!("the service instance {:?}", self.id)
    }
}

impl TryFrom<InstanceRow> for ServiceInstance {
    type Error = BadRow;

    fn try_from(row: InstanceRow) -> Result<Self, BadRow> {
        Ok(Self {
            id: ServiceInstanceId::new(row.id)?,
            plan_id: PlanId::new(row.plan_id)?,
            pool: PoolName::new(row.pool)?,
            port: u16::try_from(row.port)?,
            protocol: row.protocol.parse()?,
            requested_port: row.requested_port.map(u16::try_from).transpose()?,
            settings: settings_from_json(&row.settings)?,
            organization_id: OrganizationId::new(row.organization_id)?,
            space_id: SpaceId::new(row.space_id)?,
            name: row.name.map(String::from),
            node_id: NodeId::new(row.node_id)?,
            created_at: Timestamp(row.created_at),
            revision: revision_from_column(row.revision)?,
        })
    }
}

/// A binding.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct BindingRow {
    id: Text,
    service_instance_id: Text,
    app_id: Option<Text>,
    space_id: Option<Text>,
    announce: i64,
    predecessor_id: Option<Text>,
    created_at: i64,
    revision: i64,
}

impl Named for BindingRow {
    fn name(&self) -> String {
        format!("the binding {:?}", self.id)
    }
}

impl TryFrom<BindingRow> for Binding {
    type Error = BadRow;

    fn try_from(row: BindingRow) -> Result<Self, BadRow> {
        Ok(Self {
            id: BindingId::new(row.id)?,
            service_instance_id: ServiceInstanceId::new(row.service_instance_id)?,
            app_id: row.app_id.map(AppId::new).transpose()?,
            space_id: row.space_id.map(SpaceId::new).transpose()?,
            announce: row.announce != 0,
            predecessor_id: row.predecessor_id.map(BindingId::new).transpose()?,
            created_at: Timestamp(row.created_at),
            revision: revision_from_column(row.revision)?,
        })
    }
}

/// A port that is or was allocated.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct AllocationRow {
    port: i64,
    service_instance_id: Option<Text>,
    released_by: Option<Text>,
    released_at: Option<i64>,
    quarantined_until: Option<i64>,
}

impl TryFrom<AllocationRow> for PortRow {
    type Error = BadRow;

    fn try_from(row: AllocationRow) -> Result<Self, BadRow> {
        let state = match (row.service_instance_id, row.released_by, row.released_at, row.quarantined_until) {
            (Some(_), ..) => PortState::Allocated,
            (None, Some(space_id), Some(at), Some(until)) => PortState::Released(Release {
                space_id: SpaceId::new(space_id)?,
                at: Timestamp(at),
                quarantined_until: Timestamp(until),
            }),
            _ => return Err("it has neither a service instance nor a release".into()),
        };
        Ok(Self { port: u16::try_from(row.port)?, state })
    }
}

/// A reservation.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct ReservationRow {
    pool: Text,
    name: Text,
    first_port: i64,
    last_port: i64,
    protocol: Text,
}

impl Named for ReservationRow {
    fn name(&self) -> String {
        format!("the reservation {:?} of the pool {:?}", self.name, self.pool)
    }
}

impl TryFrom<ReservationRow> for Reservation {
    type Error = BadRow;

    fn try_from(row: ReservationRow) -> Result<Self, BadRow> {
        Ok(Self {
            pool: PoolName::new(row.pool)?,
            name: row.name.into(),
            first_port: u16::try_from(row.first_port)?,
            last_port: u16::try_from(row.last_port)?,
            protocol: row.protocol.parse()?,
        })
    }
}

/// A deleted service instance or binding.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct TombstoneRow {
    /// [`KIND_INSTANCE`] or [`KIND_BINDING`].
    pub(super) kind: Text,
    pub(super) id: Text,
}

impl Named for TombstoneRow {
    fn name(&self) -> String {
        format!("the deletion of {:?}", self.id)
    }
}

/// Kind of a tombstone.
pub(super) const KIND_INSTANCE: &str = "service_instance";

/// Kind of a tombstone.
pub(super) const KIND_BINDING: &str = "binding";

/// A port that was freed.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct FreedRow {
    pool: Text,
    port: i64,
    released_by: Text,
    released_at: i64,
    quarantined_until: i64,
}

impl Named for FreedRow {
    fn name(&self) -> String {
        format!("the last release of port {} of the pool {:?}", self.port, self.pool)
    }
}

impl TryFrom<FreedRow> for Freed {
    type Error = BadRow;

    fn try_from(row: FreedRow) -> Result<Self, BadRow> {
        Ok(Self {
            pool: PoolName::new(row.pool)?,
            port: u16::try_from(row.port)?,
            release: Release {
                space_id: SpaceId::new(row.released_by)?,
                at: Timestamp(row.released_at),
                quarantined_until: Timestamp(row.quarantined_until),
            },
        })
    }
}

/// A live setting, or a change of one.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct SettingRow {
    scope: Text,
    key: Text,
    value: Option<Text>,
    changed_by: Text,
    changed_at: i64,
    revision: i64,
}

impl Named for SettingRow {
    fn name(&self) -> String {
        format!("the setting {:?} of {:?}", self.key, self.scope)
    }
}

impl TryFrom<SettingRow> for Setting {
    type Error = BadRow;

    fn try_from(row: SettingRow) -> Result<Self, BadRow> {
        Ok(Self {
            scope: row.scope.into(),
            key: row.key.into(),
            value: row.value.map(String::from),
            changed_by: row.changed_by.into(),
            changed_at: Timestamp(row.changed_at),
            revision: revision_from_column(row.revision)?,
        })
    }
}

/// A row with the revision that it was marked with.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Marked<T> {
    #[sqlx(flatten)]
    pub(super) row: T,
    revision: i64,
}

impl<T: Named> Named for Marked<T> {
    fn name(&self) -> String {
        self.row.name()
    }
}

impl<T> Marked<T> {
    /// Both, the row read as `A`.
    pub(super) fn read<A>(self) -> Result<(A, Revision), BadRow>
    where
        A: TryFrom<T, Error = BadRow>,
    {
        let revision = self.revision()?;
        Ok((self.row.try_into()?, revision))
    }

    pub(super) fn revision(&self) -> Result<Revision, BadRow> {
        revision_from_column(self.revision)
    }
}

/// The definition of a pool.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct PoolRow {
    name: Text,
    definition: Text,
}

impl Named for PoolRow {
    fn name(&self) -> String {
        format!("the pool {:?}", self.name)
    }
}

impl TryFrom<PoolRow> for Pool {
    type Error = BadRow;

    fn try_from(row: PoolRow) -> Result<Self, BadRow> {
        pool_from_json(&row.definition)
    }
}

/// A provision under way, or one that has failed.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct OperationRow {
    service_instance_id: Text,
    node_id: Text,
    failure: Option<Text>,
    changed_at: i64,
}

impl Named for OperationRow {
    fn name(&self) -> String {
        format!("the operation on {:?}", self.service_instance_id)
    }
}

impl TryFrom<OperationRow> for Operation {
    type Error = BadRow;

    fn try_from(row: OperationRow) -> Result<Self, BadRow> {
        Ok(Self {
            service_instance_id: ServiceInstanceId::new(row.service_instance_id)?,
            node_id: NodeId::new(row.node_id)?,
            failure: row.failure.map(String::from),
            changed_at: Timestamp(row.changed_at),
        })
    }
}

/// A node, without its pools.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct MemberRow {
    id: Text,
    incarnation: Text,
    version: Text,
    mode: Text,
    applied: i64,
    flows: i64,
    failed: i64,
    failures: Text,
    drain: i64,
    joined_at: i64,
    seen_at: i64,
}

impl TryFrom<MemberRow> for Member {
    type Error = BadRow;

    fn try_from(row: MemberRow) -> Result<Self, BadRow> {
        Ok(Self {
            id: NodeId::new(row.id)?,
            incarnation: row.incarnation.into(),
            version: row.version.into(),
            pools: Vec::new(),
            report: Report {
                // A mode that a newer version has is none that takes part.
                mode: Mode::of_word(&row.mode).unwrap_or(Mode::Draining),
                applied: revision_from_column(row.applied)?,
                flows: u64::try_from(row.flows)?,
                failures: failures_from_json(&row.failures)?,
                failed: u64::try_from(row.failed)?,
            },
            drain: row.drain != 0,
            joined_at: Timestamp(row.joined_at),
            seen_at: Timestamp(row.seen_at),
        })
    }
}

/// A pool that a node serves.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct PoolOfNodeRow {
    node_id: Text,
    pool: Text,
}

/// The nodes with their pools; both lists in order of the nodes' ids.
pub(super) fn members(nodes: Vec<MemberRow>, pools: Vec<PoolOfNodeRow>) -> Result<Vec<Member>, BadRow> {
    let mut members = nodes.into_iter().map(Member::try_from).collect::<Result<Vec<_>, _>>()?;
    for PoolOfNodeRow { node_id, pool } in pools {
        if let Some(member) = members.iter_mut().find(|member| *member.id.as_str() == *node_id) {
            member.pools.push(PoolName::new(pool)?);
        }
    }
    Ok(members)
}

/// A [`PortFailure`]. What a newer version adds is left unread: it is told again with every heartbeat.
#[derive(Debug, Serialize, Deserialize)]
struct FailureColumn {
    service_instance_id: String,
    port: u16,
    held: bool,
    reason: String,
    since: i64,
}

pub(super) fn failures_to_json(failures: &[PortFailure]) -> String {
    let column = failures.iter().map(|failure| FailureColumn {
        service_instance_id: failure.service_instance_id.as_str().into(),
        port: failure.port,
        held: failure.held,
        reason: failure.reason.to_string(),
        since: failure.since.0,
    });
    serde_json::to_string(&column.collect::<Vec<_>>()).expect("strings and numbers always have a JSON form")
}

fn failures_from_json(text: &str) -> Result<Vec<PortFailure>, BadRow> {
    let column = serde_json::from_str::<Vec<FailureColumn>>(text)?;
    let failures = column.into_iter().map(|failure| {
        Ok(PortFailure {
            service_instance_id: ServiceInstanceId::new(failure.service_instance_id)?,
            port: failure.port,
            held: failure.held,
            reason: failure.reason.into(),
            since: Timestamp(failure.since),
        })
    });
    failures.collect()
}

/// A [`Pool`] as JSON. A key that is not known is refused: a node that does not understand a pool cannot serve it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PoolColumn {
    name: String,
    ports: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_external: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname_external: Option<String>,
    int_port: u16,
    quarantine_us: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    retired: bool,
}

impl From<&Pool> for PoolColumn {
    fn from(pool: &Pool) -> Self {
        let PoolNames { host, hostname, host_external, hostname_external } = pool.names.clone();
        Self {
            name: pool.name.as_str().into(),
            ports: pool.ports.to_string(),
            host,
            hostname,
            host_external,
            hostname_external,
            int_port: pool.int_port,
            quarantine_us: microseconds(pool.quarantine),
            retired: pool.retired,
        }
    }
}

impl TryFrom<PoolColumn> for Pool {
    type Error = BadRow;

    fn try_from(column: PoolColumn) -> Result<Self, BadRow> {
        Ok(Self {
            name: PoolName::new(column.name)?,
            ports: column.ports.parse()?,
            names: PoolNames {
                host: column.host,
                hostname: column.hostname,
                host_external: column.host_external,
                hostname_external: column.hostname_external,
            },
            int_port: column.int_port,
            quarantine: Duration::from_micros(column.quarantine_us),
            retired: column.retired,
        })
    }
}

pub(super) fn pool_to_json(pool: &Pool) -> String {
    serde_json::to_string(&PoolColumn::from(pool)).expect("strings and numbers always have a JSON form")
}

pub(super) fn pool_from_json(text: &str) -> Result<Pool, BadRow> {
    serde_json::from_str::<PoolColumn>(text)?.try_into()
}

/// A revision as it is stored; the counter starts at 0 and rises by one a change, so it fits for ever.
pub(super) fn revision_to_column(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// A count as it is stored.
pub(super) fn count_to_column(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(super) fn revision_from_column(revision: i64) -> Result<Revision, BadRow> {
    Ok(Revision(u64::try_from(revision)?))
}

/// [`Settings`] as JSON; what is not set is not written. A key that is not known is refused, not lost at the next update.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SettingsColumn {
    #[serde(skip_serializing_if = "Option::is_none")]
    int_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    balance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    match_app: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_timeout_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_connections: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allow: Vec<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_check: Option<CheckColumn>,
}

/// A [`HealthCheck`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum CheckColumn {
    None,
    Tcp { interval_us: u64, timeout_us: u64, rise: u8, fall: u8 },
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl From<&Settings> for SettingsColumn {
    fn from(settings: &Settings) -> Self {
        Self {
            int_port: settings.int_port,
            balance: settings.balance.map(|balance| balance.as_str().into()),
            match_app: settings.match_app,
            idle_timeout_us: settings.idle_timeout.map(microseconds),
            max_connections: settings.max_connections,
            allow: settings.allow.clone(),
            proxy_protocol: settings.proxy_protocol.map(|version| version.as_str().into()),
            health_check: settings.health_check.map(|check| match check {
                HealthCheck::None => CheckColumn::None,
                HealthCheck::Tcp(TcpCheck { interval, timeout, rise, fall }) => CheckColumn::Tcp {
                    interval_us: microseconds(interval),
                    timeout_us: microseconds(timeout),
                    rise,
                    fall,
                },
            }),
        }
    }
}

impl TryFrom<SettingsColumn> for Settings {
    type Error = BadRow;

    fn try_from(column: SettingsColumn) -> Result<Self, BadRow> {
        let unknown = |word: &str| format!("{word:?} is not known in settings");
        Ok(Self {
            int_port: column.int_port,
            balance: column.balance.map(|word| Balance::from_word(&word).ok_or_else(|| unknown(&word))).transpose()?,
            match_app: column.match_app,
            idle_timeout: column.idle_timeout_us.map(Duration::from_micros),
            max_connections: column.max_connections,
            allow: column.allow,
            proxy_protocol: column
                .proxy_protocol
                .map(|word| ProxyProtocol::from_word(&word).ok_or_else(|| unknown(&word)))
                .transpose()?,
            health_check: column.health_check.map(|check| match check {
                CheckColumn::None => HealthCheck::None,
                CheckColumn::Tcp { interval_us, timeout_us, rise, fall } => HealthCheck::Tcp(TcpCheck {
                    interval: Duration::from_micros(interval_us),
                    timeout: Duration::from_micros(timeout_us),
                    rise,
                    fall,
                }),
            }),
        })
    }
}

pub(super) fn settings_to_json(settings: &Settings) -> String {
    serde_json::to_string(&SettingsColumn::from(settings)).expect("strings, numbers and lists always have a JSON form")
}

fn settings_from_json(text: &str) -> Result<Settings, BadRow> {
    serde_json::from_str::<SettingsColumn>(text)?.try_into()
}

pub(super) fn secret_to_hex(secret: &AnnounceSecret) -> String {
    secret.expose().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn secret_from_hex(text: &str) -> Result<AnnounceSecret, BadRow> {
    let mut bytes = [0; SECRET_BYTES];
    if text.len() != 2 * SECRET_BYTES || !text.is_ascii() {
        return Err("the announce secret does not have the right length".into());
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16)?;
    }
    Ok(AnnounceSecret::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(settings: &Settings, json: &str) {
        assert_eq!(settings_to_json(settings), json);
        assert_eq!(settings_from_json(json).unwrap(), *settings);
    }

    #[test]
    fn settings_keep_their_form_in_the_database() {
        check(&Settings::default(), "{}");
        check(
            &Settings {
                int_port: Some(4100),
                balance: Some(Balance::Failover),
                match_app: Some(false),
                idle_timeout: Some(Duration::from_millis(1500)),
                max_connections: Some(7),
                allow: vec!["10.0.0.0/8".parse().unwrap(), "fc00::/7".parse().unwrap()],
                proxy_protocol: Some(ProxyProtocol::V2),
                health_check: Some(HealthCheck::Tcp(TcpCheck::default())),
            },
            r#"{"int_port":4100,"balance":"failover","match_app":false,"idle_timeout_us":1500000,"max_connections":7,"allow":["10.0.0.0/8","fc00::/7"],"proxy_protocol":"v2","health_check":{"type":"tcp","interval_us":10000000,"timeout_us":2000000,"rise":2,"fall":3}}"#,
        );
    }

    #[test]
    fn settings_that_harbor_cannot_have_written_are_refused() {
        for json in ["", "[]", r#"{"balance":"fair"}"#, r#"{"proxy_protocol":"v3"}"#, r#"{"colour":"red"}"#] {
            assert!(settings_from_json(json).is_err(), "{json}");
        }
    }

    #[test]
    fn the_announce_secret_survives_its_column() {
        let secret = AnnounceSecret::new(std::array::from_fn(|index| index as u8 * 8));
        assert_eq!(secret_from_hex(&secret_to_hex(&secret)).unwrap(), secret);
        for text in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            assert!(secret_from_hex(text).is_err(), "{text}");
        }
    }
}
