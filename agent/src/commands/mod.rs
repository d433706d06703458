//! The verbs of `skiff-agent` that are its own.

pub mod doctor;
pub mod export;
pub mod run;
