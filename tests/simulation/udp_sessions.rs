//! Simulation of udp_sessions.
