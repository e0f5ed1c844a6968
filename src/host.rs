//! What the machine says: its port sysctls, descriptor limits, addresses, and who holds a port; what of it does not fit
//! the pools; and what its service manager is told.
//!
//! Pure parsers and rules with a thin reading of `/proc` over them. Nothing here changes the machine, except that
//! [`raise_descriptor_limit`] takes what this process may have, and [`reserve_ports`] adds to what is reserved.

mod address;
mod common_ports;
mod descriptors;
mod findings;
mod holder;
mod local_ports;
mod processes;
mod service_manager;
mod survey;

pub use address::{own_address, own_addresses};
pub use descriptors::{DescriptorLimit, raise_descriptor_limit};
pub use findings::{Code, Conntrack, Finding, Machine, NODE_PORTS, Needs, Severity, judge};
pub use holder::{Held, Holder, SocketState, holders_of};
pub use local_ports::{LocalPorts, NotReserved, RESERVED_PORTS, local_ports, reserve_ports};
pub use processes::Process;
pub use service_manager::{ServiceManager, kept_sockets};
pub use survey::survey;
