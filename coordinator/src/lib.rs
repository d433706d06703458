//! The fleet's side: decides what every device does in a run of federated training, merges what comes back, and keeps a
//! journal that survives `kill -9`.
//!
//! It runs no model and sees no data: accuracy is what the devices report, and updates are only averaged.
//!
//! Rooms. Pure: [`run`] (the engine, with the configurator and who shares which layers), [`merge`] (the mean and its
//! alternatives), [`fleet`] (who is there). With a disk: [`store`] (the journal and the signing key), [`transfers`] (weights
//! out, updates in), [`arrivals`] (updates that are checked), [`hub`] (where all of them meet, told the time). [`doors`]: MQTT and the operator's socket. Shells:
//! [`serve`] (clock, link and sockets around the hub), [`commands`], [`demo`] with its [`broker`]. For everybody:
//! [`config`] and [`progress`] (what a watcher sees). [`release`] is a room for later.

pub mod arrivals;
pub mod broker;
pub mod commands;
pub mod config;
pub mod demo;
pub mod doors;
pub mod fleet;
pub mod hub;
pub mod merge;
pub mod progress;
pub mod release;
pub mod results;
pub mod run;
pub mod serve;
pub mod store;
pub mod transfers;
