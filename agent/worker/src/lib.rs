//! The program that trains on a device for its agent: it turns an order into an update.
//!
//! The agent starts it as a process, talks to it in the frames of `skiff-contract`, and ends it when there is nothing to do. It knows
//! no fleet and no network.
//!
//! Modules: [`inventory`] and [`examination`] (the pack, the examples and the memory), [`workshop`] (keeps them open between
//! orders), [`order`] (turns an order into an update with `skiff-trainer`), `sharing` (chooses the layers to upload), [`corpus`]
//! (tokenises the device's own texts), [`questions`] (answers of a model to
//! texts), [`memory`] (how steps stay below a limit); [`commands`] are its verbs, and [`program`] reads its command line.

#[cfg(debug_assertions)]
mod barrier;
pub mod commands;
pub mod corpus;
pub mod examination;
pub mod inventory;
pub mod memory;
pub mod order;
pub mod program;
pub mod questions;
mod sharing;
pub mod workshop;
