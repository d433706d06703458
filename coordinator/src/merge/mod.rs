//! Merges updates into new weights, layer by layer, over the devices that shared the layer.
//!
//! A [`Rule`] says how updates are combined. The mean streams ([`Aggregate`]). The trimmed mean and the median read one tensor of
//! all updates at a time ([`ordered`]). A [`Server`] says how far the global weights move towards the result ([`server`]). LoRA
//! updates with fewer ranks than the global weights are padded or projected ([`ranks`]). `read` reads updates one at a time, and
//! [`model`] passes each to the rule.

mod error;
pub mod model;
pub mod ordered;
pub mod ranks;
mod read;
mod rules;
pub mod server;
mod settings;

pub use error::MergeError;
pub use ranks::Ranks;
pub use rules::{Aggregate, AggregateError, MAX_EXAMPLES, MAX_MAGNITUDE, check, distance, shorten};
pub use server::{Adaptive, Server};
pub use settings::{Merging, Rule};

use rules::FRACTION_BITS;
