//! The fleet's side: decides what every device does in a run of federated training, merges what comes back, and keeps a
//! journal that survives `kill -9`.
//!
//! It runs no model and sees no data: accuracy is what the devices report, and updates are only averaged.
//!
//! Rooms. Pure: [`round`] (the engine), [`configurator`] (dropout rates), [`sharing`] (which layers travel), [`aggregate`]
//! (the mean), [`fleet`] (who is there), [`mqtt`] (messages to facts and back). With a disk: [`store`] (the journal),
//! [`transfers`] (weights out, updates in), [`model`] (reading and merging tensors), [`keys`], [`hub`] (where all of them
//! meet, told the time). Shells: [`serve`] (clock, link and sockets around the hub), [`control`] (the socket by which
//! `skiff run` and `skiff fleet` speak to it), [`commands`], [`demo`] with its [`broker`]. For everybody: [`config`] and
//! [`progress`] (what a watcher sees), [`explain`] (why a device was told what).

pub mod aggregate;
pub mod broker;
pub mod commands;
pub mod config;
pub mod configurator;
pub mod control;
pub mod demo;
pub mod explain;
pub mod fleet;
pub mod hub;
pub mod keys;
pub mod model;
pub mod mqtt;
pub mod progress;
pub mod round;
pub mod serve;
pub mod sharing;
pub mod store;
pub mod transfers;
