//! What the tests of the whole have in common: where things are, and how packs are made for them.
//!
//! - [`places`]: the source tree, its cache, the built binaries, the data sets
//! - [`packs`]: packs of the golden cases and of MiniLM, in folders of their own
//! - [`compare`]: named tolerances, and a comparison that names the first element that differs

pub mod compare;
pub mod packs;
pub mod places;
