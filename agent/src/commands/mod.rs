//! The verbs of `skiff-agent` that run in its own process.

pub mod config;
pub mod doctor;
pub mod export;
pub mod own;
pub mod owner;
pub mod run;
pub mod sent;
