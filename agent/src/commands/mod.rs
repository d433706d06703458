//! The verbs of `skiff-agent` that are its own.

pub mod doctor;
pub mod run;
