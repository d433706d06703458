//! The fleet's side: decides what every device does in a run of federated training, merges what comes back, and keeps a
//! journal that survives `kill -9`.
//!
//! It runs no model and sees no data: accuracy is what the devices report, and updates are only averaged.
//!
//! Rooms, in the order a round travels: [`round`] (the engine), [`configurator`] (dropout rates), [`sharing`] (which layers
//! travel), [`aggregate`] (the mean), [`fleet`] (who is there), [`store`] (the journal), [`mqtt`] (messages to events and
//! back), [`serve`] (the shell around them), [`control`] (the socket by which `skiff run` and `skiff fleet` speak to it),
//! [`progress`] (what a watcher sees), [`config`].

pub mod aggregate;
pub mod broker;
pub mod commands;
pub mod config;
pub mod configurator;
pub mod control;
pub mod demo;
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
