//! The device's side of Skiff: it trains on command, uploads its update, and reports its state.
//!
//! It decides nothing for the fleet, and the texts it trains on never leave it.
//!
//! Modules, in the order in which a command passes through them: [`mqtt`] (bytes to messages), [`participant`] (the engine that
//! decides about them), [`executor`] (starts the process `skiff-worker`, which trains, and waits for it), [`store`] (what
//! survives a restart), [`telemetry`] (the device's resources). [`config`] holds the operator's settings, [`device`] what the
//! device offers to a fleet, [`supervisor`] the messages to systemd. [`owner`] is the wish of the device's owner, and [`sent`] the
//! record of everything that left the device. [`commands`] are the verbs of `skiff-agent`, and
//! [`program`] reads its command line.

pub mod commands;
pub mod config;
pub mod device;
pub mod executor;
pub mod mqtt;
pub mod owner;
pub mod participant;
pub mod program;
pub mod sent;
pub mod store;
pub mod supervisor;
pub mod telemetry;
