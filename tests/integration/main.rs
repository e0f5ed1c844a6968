//! Everything that starts processes or opens sockets, in one binary: it links once.

mod support;

mod admin;
mod announce_http;
mod broker;
mod cli;
mod config;
mod demo;
mod discovery;
mod forwarder;
mod openapi;
mod restart;
mod store;
