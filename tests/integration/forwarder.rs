//! The forwarder over real sockets on loopback, IPv4 and IPv6.

mod barred;
mod churn;
mod datagrams;
mod descriptors;
mod health;
mod listeners;
mod lives;
mod node;
mod proxy_protocol;
mod records;
mod spread;
mod succession;
mod switch;
mod tcp;
mod udp;
