//! Simulation of tcp_relay.
