//! Merges updates into new weights, layer by layer, over the devices that shared the layer.
//!
//! A [`Rule`] says how updates are combined: a mean that streams ([`Aggregate`]), or a trimmed mean or a median ([`ordered`]),
//! which read one tensor of all updates at a time. A [`Server`] says how far the weights follow ([`server`]). LoRA updates
//! with fewer ranks than the global weights are padded or projected ([`ranks`]). Updates are read first
//! (`read`, one at a time), and folded into a rule second ([`model`]).

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
