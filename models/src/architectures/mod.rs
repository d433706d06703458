//! Models as formulas: each architecture describes its stages with the graph's operators.

pub mod bert;
