//! The device's side of Skiff: trains when told, hands in what it learned, and says how it fares.
//!
//! It decides nothing for the fleet, and the texts it trains on never leave it.
//!
//! Rooms, in the order that a command travels: [`mqtt`] (bytes to messages), [`participant`] (the engine: what to do about
//! them), [`worker`] (the thread that waits for the process that works, whose program is `skiff-worker`), [`store`] (what survives
//! a restart), [`telemetry`] (the device's resources). [`config`] is what an operator can set, [`device`] what the device has for
//! a fleet, [`supervisor`] what systemd is told, [`log`] what people are; [`commands`] are the verbs of `skiff-agent`.

pub mod commands;
pub mod config;
pub mod device;
pub mod log;
pub mod mqtt;
pub mod participant;
pub mod store;
pub mod supervisor;
pub mod telemetry;
pub mod worker;
