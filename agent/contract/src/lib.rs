//! The contract between the two programs of a device: `skiff-agent`, which listens to the fleet, and `skiff-worker`, which trains.
//!
//! It starts no process and trains nothing: everything here is a value, a function on values, or the reading of one small file.
//!
//! Modules: [`greeting`] (both programs check that they understand each other), [`frames`] (the messages between them), [`work`]
//! (an order and its product), [`settings`] (pack, examples and resources), [`inventory`] (a device's pack and examples, and
//! findings that keep it from training), [`samples`] (a value of every frame, which identifies the layout), [`memory`] (resident
//! memory of a process), [`limits`] (the memory that a device may use), [`log`] (log lines on standard error).

pub mod frames;
pub mod greeting;
pub mod inventory;
pub mod limits;
pub mod log;
pub mod memory;
pub mod samples;
pub mod settings;
pub mod work;

pub use inventory::Inventory;
pub use settings::{ColumnNames, Provider, Setup, Training};
pub use skiff_base::findings::Finding;
pub use work::{Job, Personal, Product, Ticket, Trained, Work};
