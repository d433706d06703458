//! The coordinator: orders devices to train and evaluate in a run of federated training, merges their updates, and keeps
//! a journal that survives `kill -9`.
//!
//! It runs no model and sees no training data: devices report the accuracy, and updates are only averaged.
//!
//! Modules. Pure: [`run`] (the engine, with the configurator and the sharing of layers), [`merge`] (the mean and its
//! alternatives), [`fleet`] (the known devices). On a disk: [`store`] (journal and signing key), [`transfers`] (weights out,
//! updates in), [`arrivals`] (checking updates), [`results`] (the weights of a run), [`hub`] (joins all of them). [`doors`]: MQTT
//! for devices, a socket for the operator. Shell: [`serve`] (clock, link and sockets around the hub). For everybody: [`config`],
//! [`views`] (makes what operators see) and [`board`] (the newest views, and the changes that each watcher has not seen).
//! [`stalls`] finds devices that are silent for too long. [`release`] is reserved for later.
//!
//! Requests of operators, their replies and the views are the crate `skiff-api`. The command line is the crate `skiff-cli`, the demo and its embedded broker are `skiff-demo`.

pub mod arrivals;
pub mod board;
pub mod config;
pub mod doors;
pub mod fleet;
pub mod hub;
pub mod merge;
pub mod release;
pub mod results;
pub mod run;
pub mod serve;
pub mod stalls;
pub mod store;
pub mod transfers;
pub mod views;
