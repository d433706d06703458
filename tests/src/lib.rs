//! Common parts of the tests of the whole: places, packs, brokers, processes.
//!
//! - [`places`]: the source tree, its cache, the built binaries
//! - [`packs`]: packs of the golden cases and of MiniLM, in folders of their own
//! - [`brokers`]: Mosquitto on a free port with accounts and access rules, and the embedded broker
//! - [`fleet`]: a coordinator and agents as processes, and a watch on their run
//! - [`compare`]: named tolerances, and a comparison that names the first element that differs
//! - [`checkpoints`]: checkpoints with random weights, of any size
//! - [`terminal`]: a terminal of any width for a program, and its screen
//! - [`results`]: results of benchmarks, for programs
//! - [`wait`]: waits for facts that stay true

pub mod brokers;
pub mod checkpoints;
pub mod compare;
pub mod fleet;
pub mod packs;
pub mod places;
pub mod results;
pub mod terminal;
pub mod wait;

use std::time::Duration;

/// Longest wait of a test. Nothing takes longer, even if all cores are busy. A test that waits longer has found a fault.
pub const PATIENCE: Duration = Duration::from_secs(300);
