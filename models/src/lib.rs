//! What is trained: a checkpoint becomes a pack of ONNX training graphs, one set for each stage of the model.
//!
//! It runs no graph, trains nothing and knows no network: the agent does that with the pack it finds here.
//!
//! Rooms, in the order a checkpoint travels: [`graph`] (nodes, shapes), [`gradient`] (one rule for each operator),
//! [`architectures`] (BERT as a formula), [`peft`] (what trains, and its names), [`stage`] (forward, backward and evaluate
//! cuts), [`onnx`] (the writer), [`pack`] (the directory that devices hold), [`tensors`] (named tensors, their schema).

pub mod architectures;
pub mod gradient;
pub mod design;
pub mod graph;
pub mod layout;
pub mod onnx;
pub mod pack;
pub mod peft;
pub mod stage;
pub mod task;
pub mod tensors;

pub use pack::Pack;
