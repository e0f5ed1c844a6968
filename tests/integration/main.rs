//! Everything that starts processes or opens sockets, in one binary: it links once.

mod support;

mod admin;
mod announce_http;
mod announcer;
mod broker;
mod cli;
mod cluster;
mod config;
mod crash;
mod data;
mod discovery;
mod docs;
mod end_to_end;
mod failover;
mod forwarder;
#[path = "../histories/driver.rs"]
mod histories;
mod hot_restart;
mod live_settings;
mod logs;
mod metrics;
mod openapi;
mod outages;
mod package;
mod ports;
mod postgres;
mod soak;
mod store;
