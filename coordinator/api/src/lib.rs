//! The contract between an operator's programs and the coordinator: requests with their replies, and the views of fleet and runs.
//!
//! It opens no socket and reads no journal: everything here is a value, or a function from values to values. The control socket,
//! the command line, the demo and the tests use it.
//!
//! Modules: [`request`] (requests and their replies), [`version`] (the versions of their format), [`progress`] (the state that
//! watchers see), [`changes`] (the changes that are sent to them), [`details`] (a whole run), [`measures`] (figures of
//! evaluations), [`names`] (names of runs), [`policy`] (which layers devices share), [`removal`] (a removed device).
//!
//! Settings of a run stay in the coordinator, which knows their ranges. They travel as a JSON table with the keys of table `[run]`
//! of the configuration.

pub mod changes;
pub mod details;
pub mod measures;
pub mod names;
pub mod policy;
pub mod progress;
pub mod removal;
pub mod request;
pub mod version;
