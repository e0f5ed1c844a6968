//! What the machine says: its port sysctls, descriptor limits, addresses, and who holds a port; and what its service
//! manager is told.
//!
//! Pure parsers with a thin reading of `/proc` over them. Nothing here changes the machine, except that
//! [`raise_descriptor_limit`] takes what this process may have.

mod address;
mod descriptors;
mod holder;
mod local_ports;
mod service_manager;

pub use address::{own_address, own_addresses};
pub use descriptors::{DescriptorLimit, raise_descriptor_limit};
pub use holder::{Holder, SocketState, holder};
pub use local_ports::{LocalPorts, local_ports};
pub use service_manager::{ServiceManager, kept_sockets};
