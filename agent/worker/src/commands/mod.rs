//! The verbs of `skiff-agent` that train, and the verb `work`, with which the agent starts this program.

pub mod bench;
pub mod export;
mod profile;
pub mod step;
pub mod train;
pub mod work;
