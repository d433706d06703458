//! The look of all programs: units, folded texts, tables that fit the terminal, bars, and the standard output.
//!
//! It knows nothing of Skiff. Programs tell it texts and numbers, and it lays them out.
//!
//! Modules: [`units`] (sizes, durations and numbers as texts), [`text`] (folding, lists of facts), [`output`] (the standard output,
//! its width, a reader that has left), [`report`] (the lines of `doctor`), `table` (columns by importance), `live` (bars and a status line; plain lines in a pipe),
//! `frame` (a text that is shown anew in its place), `dates` (points in time).

#[cfg(feature = "dates")]
pub mod dates;
#[cfg(feature = "live")]
pub mod frame;
#[cfg(feature = "live")]
pub mod live;
pub mod output;
pub mod report;
#[cfg(feature = "tables")]
pub mod table;
pub mod text;
pub mod units;
