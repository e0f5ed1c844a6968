//! The forwarder over real sockets on loopback, IPv4 and IPv6.

mod descriptors;
mod listeners;
mod node;
mod proxy_protocol;
mod records;
mod tcp;
mod udp;
