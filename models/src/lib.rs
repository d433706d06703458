//! What is trained: a checkpoint becomes a pack of ONNX training graphs, one set for each stage of the model.
//!
//! It runs no graph, trains nothing and knows no network: the agent does that with the pack it finds here.
//!
//! Rooms, in the order a checkpoint travels: [`graph`] (nodes, shapes), [`gradient`] (one rule for each operator),
//! [`architectures`] (BERT as a formula), [`peft`] (what trains, and its names), [`onnx`] (the writer), [`pack`] (the
//! directory that devices hold), [`tensors`] (named tensors and their schema).

pub mod gradient;
pub mod graph;
pub mod tensors;

