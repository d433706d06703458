//! The device's side of Skiff: trains when told, hands in what it learned, and says how it fares.
//!
//! It decides nothing for the fleet, and the texts it trains on never leave it.
//!
//! Rooms, in the order that a command travels: [`mqtt`] (bytes to messages), [`participant`] (the engine: what to do
//! about them), [`worker`] (the thread that trains), [`store`] (what survives a restart), [`telemetry`] (the device's
//! resources). [`config`] is what an operator can set; [`commands`] are the verbs of `skiff-agent`.

pub mod config;
pub mod mqtt;
pub mod participant;
pub mod store;
pub mod telemetry;
pub mod worker;
