//! The verbs of `skiff-agent`.

pub mod bench;
pub mod doctor;
pub mod run;
pub mod step;
pub mod train;
