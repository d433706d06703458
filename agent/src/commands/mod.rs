//! The verbs of `skiff-agent`.

pub mod bench;
pub mod doctor;
mod profile;
pub mod run;
pub mod step;
pub mod train;
pub mod work;
