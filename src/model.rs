//! The rules: what a port service is, with no I/O, no clock, no serialisation and no async.
//!
//! Everything here is a value or a pure function of values; time and randomness come in as arguments.
//! Wire formats, rows and sockets live at the edges and are translated into these types there.

pub mod allocation;
pub mod announcement;
pub mod balance;
pub mod binding;
pub mod credentials;
pub mod desired;
pub mod directory;
pub mod effective;
pub mod id;
pub mod member;
pub mod networks;
pub mod observed;
pub mod parameters;
pub mod plan;
pub mod pool;
pub mod port_plan;
pub mod ports;
pub mod protocol;
pub mod registry;
pub mod requester;
pub mod restraint;
pub mod service_instance;
pub mod setting;
pub mod time;
pub mod token;
mod trail;

pub use id::{AppId, BindingId, NodeId, OrganizationId, PlanId, PoolName, ServiceInstanceId, SpaceId};
pub use ports::PortSet;
pub use protocol::{Protocol, Transport};
pub use time::{Clock, Revision, Timestamp};
