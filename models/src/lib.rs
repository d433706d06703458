//! Turns a checkpoint into a pack of ONNX training graphs, one set for each stage of the model.
//!
//! It runs no graph, trains nothing and knows no network: the agent does that with the pack it finds here.
//!
//! Rooms, in the order a checkpoint travels:
//! - [`checkpoint`], [`adapter`]: what Hugging Face's libraries write, read and written; [`files`]: how any of it is opened
//! - [`architectures`]: BERT, DeBERTa, Llama and their kin as formulas; [`task`], [`peft`]: what they are tuned for, and how;
//!   [`spans`]: labels of tokens that form spans
//! - [`stage`]: a formula becomes graphs, forward, backward and evaluate; [`design`]: the stages of a whole model;
//!   [`storage`]: formats of frozen tensors; [`layout`]: the facts that a batch needs about the model
//! - [`graph`] (nodes, shapes), [`gradient`] (one rule for each operator), [`lower`] (adjoint operators become plain ones),
//!   [`onnx`] (the writer): the ground under stages
//! - [`pack`]: the folder that devices hold; [`tensors`]: named tensors, their schema; [`memory`]: the memory a step will take;
//!   [`work`]: the arithmetic in a step

pub mod adapter;
pub mod architectures;
pub mod checkpoint;
pub mod design;
pub mod files;
pub mod gradient;
pub mod graph;
pub mod layout;
pub mod lower;
pub mod memory;
pub mod onnx;
pub mod pack;
pub mod peft;
pub mod spans;
pub mod stage;
pub mod storage;
pub mod task;
pub mod tensors;
pub mod work;

pub use pack::Pack;
