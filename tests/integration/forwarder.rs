//! The forwarder over real sockets on loopback, IPv4 and IPv6.

mod churn;
mod datagrams;
mod descriptors;
mod listeners;
mod lives;
mod node;
mod proxy_protocol;
mod records;
mod switch;
mod spread;
mod tcp;
mod udp;
