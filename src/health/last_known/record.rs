//! The file's form: JSON with wall-clock times, since no other clock outlives a process.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    backends::{Backend, BackendState},
    model::{
        AppId, BindingId, ServiceInstanceId, Timestamp, Transport,
        announcement::{AnnouncedState, Authority, Endpoint, Origin},
    },
};

/// Raised when the form changes; a file of another version is not read.
pub(super) const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Contents {
    pub version: u32,
    /// In the order of first announcement.
    pub backends: Vec<Record>,
}

/// One backend. Times are microseconds since the epoch.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    service_instance_id: String,
    transport: String,
    address: SocketAddr,
    authority: RecordedAuthority,
    app_id: Option<String>,
    private_instance_id: Option<String>,
    updated_at_ns: Option<i64>,
    draining: bool,
    since: i64,
    expires_at: i64,
    time_to_live_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RecordedAuthority {
    App(String),
    Binding(String),
    Trusted,
}

impl Contents {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let contents: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if contents.version != VERSION {
            return Err(format!("it has version {}, and this Harbor reads version {VERSION}", contents.version));
        }
        Ok(contents)
    }
}

impl Record {
    pub(super) fn of(id: &ServiceInstanceId, state: &BackendState, now: Instant, wall: Timestamp) -> Self {
        let backend = &state.backend;
        Self {
            service_instance_id: id.to_string(),
            transport: backend.endpoint.transport.as_str().into(),
            address: backend.endpoint.address,
            authority: match &backend.authority {
                Authority::App(app) => RecordedAuthority::App(app.to_string()),
                Authority::Binding(binding) => RecordedAuthority::Binding(binding.to_string()),
                Authority::Trusted => RecordedAuthority::Trusted,
            },
            app_id: state.origin.app_id.as_ref().map(ToString::to_string),
            private_instance_id: state.origin.private_instance_id.as_ref().map(ToString::to_string),
            updated_at_ns: state.origin.updated_at_ns,
            draining: state.state == AnnouncedState::Draining,
            since: state.since.0,
            expires_at: wall.plus(state.expires_at.saturating_duration_since(now)).0,
            time_to_live_ms: u64::try_from(state.time_to_live.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The backend, unless its time is over or something in it makes no sense.
    pub(super) fn revive(self, now: Instant, wall: Timestamp) -> Option<(ServiceInstanceId, BackendState)> {
        let time_to_live = Duration::from_millis(self.time_to_live_ms);
        // A clock that was set back must not make it live longer than an announcement would.
        let left = Timestamp(self.expires_at).since(wall).min(time_to_live);
        if left.is_zero() {
            return None;
        }
        let transport = Transport::of_word(&self.transport)?;
        let authority = match self.authority {
            RecordedAuthority::App(app) => Authority::App(AppId::new(app).ok()?),
            RecordedAuthority::Binding(binding) => Authority::Binding(BindingId::new(binding).ok()?),
            RecordedAuthority::Trusted => Authority::Trusted,
        };
        let origin = Origin {
            app_id: self.app_id.map(AppId::new).transpose().ok()?,
            private_instance_id: self.private_instance_id.map(Arc::from),
            updated_at_ns: self.updated_at_ns,
        };
        let endpoint = Endpoint { transport, address: self.address };
        let state = BackendState {
            backend: Arc::new(Backend::new(endpoint, authority, origin.clone(), now)),
            origin,
            state: if self.draining { AnnouncedState::Draining } else { AnnouncedState::Up },
            state_since: now,
            time_to_live,
            expires_at: now.checked_add(left)?,
            since: Timestamp(self.since).min(wall),
        };
        Some((ServiceInstanceId::new(self.service_instance_id).ok()?, state))
    }
}
