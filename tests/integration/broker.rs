//! The Open Service Broker API over real HTTP: each rule of the contract with its exact status and body.

mod bind;
mod concurrency;
mod delete;
mod fetch;
pub mod fixture;
mod gate;
mod mutated;
mod provision;
mod reload;
mod update;
