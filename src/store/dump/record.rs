//! A part of a dump as JSON. A key that is not known is refused: what it says would be lost.

use serde::{Deserialize, Serialize};

use crate::{
    model::{
        self, AppId, BindingId, NodeId, OrganizationId, PlanId, PoolName, Protocol, Revision, ServiceInstanceId,
        SpaceId, Timestamp, id::BadId, service_instance::ServiceInstance,
    },
    store::{
        self, Release, dump,
        row::{BadRow, PoolColumn, SettingsColumn},
    },
};

/// One line of a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    AnnounceSecret(String),
    FormerAnnounceSecret(String),
    Pool(Pool),
    Reservation(Reservation),
    ServiceInstance(Instance),
    Binding(Binding),
    LastRelease(LastRelease),
    Operation(Operation),
    DeletedServiceInstance(Deleted),
    DeletedBinding(Deleted),
    Setting(Setting),
    SettingChange(Setting),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pool {
    definition: PoolColumn,
    revision: u64,
}

impl Pool {
    pub(super) fn of((pool, revision): &(model::pool::Pool, Revision)) -> Self {
        Self { definition: PoolColumn::from(pool), revision: revision.0 }
    }

    pub(super) fn revive(self) -> Result<(model::pool::Pool, Revision), BadRow> {
        Ok((self.definition.try_into()?, Revision(self.revision)))
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reservation {
    pool: String,
    name: String,
    first_port: u16,
    last_port: u16,
    #[serde(default = "both")]
    protocol: String,
    revision: u64,
}

/// What reservations are for that were written before they said so.
fn both() -> String {
    Protocol::Both.as_str().into()
}

impl Reservation {
    pub(super) fn of((reservation, revision): &(store::Reservation, Revision)) -> Self {
        let store::Reservation { pool, name, first_port, last_port, protocol } = reservation;
        Self {
            pool: pool.to_string(),
            name: name.clone(),
            first_port: *first_port,
            last_port: *last_port,
            protocol: protocol.as_str().into(),
            revision: revision.0,
        }
    }

    pub(super) fn revive(self) -> Result<(store::Reservation, Revision), BadRow> {
        let Self { pool, name, first_port, last_port, protocol, revision } = self;
        let (pool, protocol) = (PoolName::new(pool)?, protocol.parse()?);
        Ok((store::Reservation { pool, name, first_port, last_port, protocol }, Revision(revision)))
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Instance {
    id: String,
    plan_id: String,
    pool: String,
    port: u16,
    protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    requested_port: Option<u16>,
    settings: SettingsColumn,
    organization_id: String,
    space_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    node_id: String,
    #[serde(with = "moment")]
    created_at: Timestamp,
    revision: u64,
}

impl Instance {
    pub(super) fn of(instance: &ServiceInstance) -> Self {
        Self {
            id: instance.id.to_string(),
            plan_id: instance.plan_id.to_string(),
            pool: instance.pool.to_string(),
            port: instance.port,
            protocol: instance.protocol.as_str().into(),
            requested_port: instance.requested_port,
            settings: SettingsColumn::from(&instance.settings),
            organization_id: instance.organization_id.to_string(),
            space_id: instance.space_id.to_string(),
            name: instance.name.clone(),
            node_id: instance.node_id.to_string(),
            created_at: instance.created_at,
            revision: instance.revision.0,
        }
    }

    pub(super) fn revive(self) -> Result<ServiceInstance, BadRow> {
        Ok(ServiceInstance {
            id: ServiceInstanceId::new(self.id)?,
            plan_id: PlanId::new(self.plan_id)?,
            pool: PoolName::new(self.pool)?,
            port: self.port,
            protocol: self.protocol.parse()?,
            requested_port: self.requested_port,
            settings: self.settings.try_into()?,
            organization_id: OrganizationId::new(self.organization_id)?,
            space_id: SpaceId::new(self.space_id)?,
            name: self.name,
            node_id: NodeId::new(self.node_id)?,
            created_at: self.created_at,
            revision: Revision(self.revision),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Binding {
    id: String,
    service_instance_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    space_id: Option<String>,
    announce: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    predecessor_id: Option<String>,
    #[serde(with = "moment")]
    created_at: Timestamp,
    revision: u64,
}

impl Binding {
    pub(super) fn of(binding: &model::binding::Binding) -> Self {
        Self {
            id: binding.id.to_string(),
            service_instance_id: binding.service_instance_id.to_string(),
            app_id: binding.app_id.as_ref().map(ToString::to_string),
            space_id: binding.space_id.as_ref().map(ToString::to_string),
            announce: binding.announce,
            predecessor_id: binding.predecessor_id.as_ref().map(ToString::to_string),
            created_at: binding.created_at,
            revision: binding.revision.0,
        }
    }

    pub(super) fn revive(self) -> Result<model::binding::Binding, BadRow> {
        Ok(model::binding::Binding {
            id: BindingId::new(self.id)?,
            service_instance_id: ServiceInstanceId::new(self.service_instance_id)?,
            app_id: self.app_id.map(AppId::new).transpose()?,
            space_id: self.space_id.map(SpaceId::new).transpose()?,
            announce: self.announce,
            predecessor_id: self.predecessor_id.map(BindingId::new).transpose()?,
            created_at: self.created_at,
            revision: Revision(self.revision),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LastRelease {
    pool: String,
    port: u16,
    space_id: String,
    #[serde(with = "moment")]
    at: Timestamp,
    #[serde(with = "moment")]
    quarantined_until: Timestamp,
    revision: u64,
}

impl LastRelease {
    pub(super) fn of(last: &dump::LastRelease) -> Self {
        let dump::LastRelease { pool, port, release, revision } = last;
        Self {
            pool: pool.to_string(),
            port: *port,
            space_id: release.space_id.to_string(),
            at: release.at,
            quarantined_until: release.quarantined_until,
            revision: revision.0,
        }
    }

    pub(super) fn revive(self) -> Result<dump::LastRelease, BadRow> {
        Ok(dump::LastRelease {
            pool: PoolName::new(self.pool)?,
            port: self.port,
            release: Release {
                space_id: SpaceId::new(self.space_id)?,
                at: self.at,
                quarantined_until: self.quarantined_until,
            },
            revision: Revision(self.revision),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Operation {
    service_instance_id: String,
    node_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    #[serde(with = "moment")]
    changed_at: Timestamp,
}

impl Operation {
    pub(super) fn of(operation: &store::Operation) -> Self {
        Self {
            service_instance_id: operation.service_instance_id.to_string(),
            node_id: operation.node_id.to_string(),
            failure: operation.failure.clone(),
            changed_at: operation.changed_at,
        }
    }

    pub(super) fn revive(self) -> Result<store::Operation, BadRow> {
        Ok(store::Operation {
            service_instance_id: ServiceInstanceId::new(self.service_instance_id)?,
            node_id: NodeId::new(self.node_id)?,
            failure: self.failure,
            changed_at: self.changed_at,
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Deleted {
    id: String,
    revision: u64,
}

impl Deleted {
    pub(super) fn of(id: &impl ToString, revision: Revision) -> Self {
        Self { id: id.to_string(), revision: revision.0 }
    }

    pub(super) fn revive<Id>(self, new: fn(String) -> Result<Id, BadId>) -> Result<(Id, Revision), BadRow> {
        Ok((new(self.id)?, Revision(self.revision)))
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Setting {
    scope: String,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    changed_by: String,
    #[serde(with = "moment")]
    changed_at: Timestamp,
    revision: u64,
}

impl Setting {
    pub(super) fn of(setting: &model::setting::Setting) -> Self {
        let model::setting::Setting { scope, key, value, changed_by, changed_at, revision } = setting.clone();
        Self { scope, key, value, changed_by, changed_at, revision: revision.0 }
    }

    pub(super) fn revive(self) -> model::setting::Setting {
        let Self { scope, key, value, changed_by, changed_at, revision } = self;
        model::setting::Setting { scope, key, value, changed_by, changed_at, revision: Revision(revision) }
    }
}

/// A moment as RFC 3339 writes it, to the microsecond; or, where that has no words for it, the microseconds themselves.
mod moment {
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer, de::Error as _};
    use time::{OffsetDateTime, format_description::well_known::Rfc3339};

    use crate::model::Timestamp;

    const NANOSECONDS: i128 = 1_000;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Words(String),
        Microseconds(i64),
    }

    pub(super) fn serialize<S: Serializer>(moment: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        let date = OffsetDateTime::from_unix_timestamp_nanos(i128::from(moment.0) * NANOSECONDS).ok();
        match date.and_then(|date| date.format(&Rfc3339).ok()) {
            Some(words) => words.serialize(to),
            None => moment.0.serialize(to),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        let microseconds = match Written::deserialize(from)? {
            Written::Words(words) => {
                let date = OffsetDateTime::parse(&words, &Rfc3339).map_err(D::Error::custom)?;
                date.unix_timestamp_nanos().div_euclid(NANOSECONDS)
            }
            Written::Microseconds(microseconds) => microseconds.into(),
        };
        i64::try_from(microseconds).map(Timestamp).map_err(D::Error::custom)
    }
}
