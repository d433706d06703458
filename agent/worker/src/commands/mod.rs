//! The verbs of `skiff-agent` that train, and the one by which the agent has work done.

pub mod bench;
mod profile;
pub mod step;
pub mod train;
pub mod work;
