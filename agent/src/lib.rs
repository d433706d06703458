//! The device's side of Skiff: it trains on command, uploads its update, and reports its state.
//!
//! It decides nothing for the fleet, and the texts it trains on never leave it.
//!
//! Rooms, in the order that a command travels: [`mqtt`] (bytes to messages), [`participant`] (the engine that decides about
//! them), [`executor`] (the thread that waits for the process that trains, whose program is `skiff-worker`), [`store`] (what
//! survives a restart), [`telemetry`] (the device's resources). [`config`] holds the operator's settings, [`device`] what the device
//! offers to a fleet, [`supervisor`] the messages to systemd; [`commands`] are the verbs of `skiff-agent`.

pub mod commands;
pub mod config;
pub mod device;
pub mod executor;
pub mod mqtt;
pub mod participant;
pub mod store;
pub mod supervisor;
pub mod telemetry;
