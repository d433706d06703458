//! The screen of a run, which `skiff run watch` and `skiff-demo` share.
//!
//! The verbs of the program `skiff` are not here; they are modules of the program. Module: [`watch`].

pub mod watch;
