//! The program that trains on a device for its agent: it turns an order into an update.
//!
//! The agent starts it as a process, talks to it in the frames of `skiff-contract`, and ends it when there is nothing to do. It knows
//! no fleet and no network.
//!
//! Rooms: [`inventory`] and [`examination`] (what there is to train with), [`workshop`] (what is opened for work), [`order`] (an order
//! becomes an update, by `skiff-trainer`), `sharing` (the layers that are handed in), [`corpus`] (the device's own texts as the trainer takes them),
//! [`memory`] (how steps stay below a limit); [`commands`] are its verbs.

#[cfg(debug_assertions)]
mod barrier;
pub mod commands;
pub mod corpus;
pub mod examination;
pub mod inventory;
pub mod memory;
pub mod order;
mod sharing;
pub mod workshop;
