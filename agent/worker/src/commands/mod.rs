//! The verbs of `skiff-agent` that train, and the one by which the agent has work done.

pub mod bench;
pub mod export;
mod profile;
pub mod step;
pub mod train;
pub mod work;
