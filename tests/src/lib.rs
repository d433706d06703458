//! What the tests of the whole have in common: where things are, and how packs are made for them.
//!
//! - [`places`]: the source tree, its cache, the built binaries
//! - [`packs`]: packs of the golden cases and of MiniLM, in folders of their own
//! - [`brokers`]: Mosquitto on a free port with accounts and access rules, and the embedded broker
//! - [`fleet`]: a coordinator and agents as processes, and a watch on their run
//! - [`compare`]: named tolerances, and a comparison that names the first element that differs
//! - [`checkpoints`]: checkpoints with random weights, of any size
//! - [`results`]: what benchmarks found, for programs

pub mod brokers;
pub mod checkpoints;
pub mod compare;
pub mod fleet;
pub mod packs;
pub mod places;
pub mod results;
