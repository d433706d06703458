//! Text for fine-tuning: reads it, shares it out among devices, and writes the demo's own.
//!
//! It does not tokenise and does not train; a label is text here, and its number is the place that [`labels`] gives it.
//!
//! - [`Record`]: the kinds of examples, one for each kind of task: [`Example`], [`Rated`], [`Tagged`], [`Passage`]
//! - [`format`]: the formats of files, and what all their readers share
//! - [`reader`]: CSV, TSV, JSON Lines, CoNLL and plain text, one bounded record at a time
//! - [`index`]: the same file again in any order, one record at a time, where it is larger than memory
//! - [`folder`]: which files of a folder are its training and its test part
//! - [`split`]: Dirichlet and even shares
//! - [`corpus`]: commands to a home assistant, written from a grammar

pub mod corpus;
mod delimited;
mod error;
mod example;
pub mod folder;
pub mod format;
pub mod index;
mod json_lines;
mod lines;
pub mod reader;
mod row;
pub mod split;

pub use error::{DataError, Place};
pub use example::{Example, Passage, Rated, Record, Tagged, labels};
pub use folder::{DataSet, dataset};
pub use format::Format;
pub use index::Index;
pub use reader::{Reader, open, read};
