//! The verbs of `skiff-agent` that train, and the verb `work`, with which the agent starts this program.

pub mod bench;
pub mod evaluate;
pub mod export;
mod figures;
mod model;
pub mod predict;
mod profile;
pub mod step;
pub mod train;
pub mod work;
