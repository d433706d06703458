//! Reads texts for fine-tuning, distributes them among devices, and generates the texts of the demo.
//!
//! It does not tokenise and does not train. A label is text here; its class number is its place in [`labels`].
//!
//! - [`Record`]: the kinds of examples, one for each kind of task: [`Example`], [`Rated`], [`Tagged`], [`Passage`]
//! - [`Question`], [`Words`]: the same without labels, for files whose answers a model gives
//! - [`format`]: the formats of files, and the common parts of their readers
//! - [`reader`]: CSV, TSV, JSON Lines, CoNLL and plain text, one bounded record at a time
//! - [`encoding`]: guesses the encoding of a text that is not UTF-8
//! - [`Columns`]: names of columns that are not the usual ones
//! - [`index`]: the records of a file that is larger than memory, in any order
//! - [`folder`]: the files in a folder with the training and the test part
//! - [`split`]: Dirichlet and even shares
//! - [`corpus`]: commands to a home assistant, generated from a grammar

mod advice;
mod columns;
pub mod corpus;
mod delimited;
pub mod encoding;
mod error;
mod example;
pub mod folder;
pub mod format;
pub mod index;
mod json_lines;
mod lines;
mod names;
mod question;
pub mod reader;
mod row;
pub mod split;
mod start;

pub use advice::Needs;
pub use columns::{Columns, SEPARATOR};
pub use error::{DataError, Place};
pub use example::{Example, Passage, Rated, Record, Tagged, in_natural_order, labels};
pub use folder::{DataSet, dataset};
pub use format::Format;
pub use index::Index;
pub use names::{LABEL as LABEL_NAMES, WORD_LABELS as WORD_LABEL_NAMES};
pub use question::{Question, Words};
pub use reader::{Reader, open, read};
