//! What works on a device for its agent: an order becomes an update.
//!
//! The agent starts it as a process, and ends it when there is nothing to do ([`skiff_agent::worker`]); it knows no fleet and no
//! network. Rooms: [`inventory`] and [`examination`] (what there is to train with), [`workshop`] (an order becomes an update, by
//! `skiff-trainer`), [`corpus`] (the device's own texts as it takes them), [`memory`] (how steps stay below a limit); [`commands`]
//! are its verbs.

#[cfg(debug_assertions)]
mod barrier;
pub mod commands;
pub mod corpus;
pub mod examination;
pub mod inventory;
pub mod memory;
pub mod workshop;
