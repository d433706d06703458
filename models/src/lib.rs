//! Turns a checkpoint into a pack of ONNX training graphs, one set for each stage of the model.
//!
//! It does not run graphs, train or use the network; the agent does that with the finished pack.
//!
//! Modules, in the order in which they process a checkpoint:
//! - [`checkpoint`], [`adapter`]: the formats of Hugging Face's libraries, read and written; [`files`]: reading of files at
//!   untrusted paths; [`tokenizer`]: the tokenizer with all of its settings applied
//! - [`architectures`]: BERT, DeBERTa, Llama and similar models as formulas; [`task`], [`peft`]: tasks and methods of
//!   fine-tuning; [`spans`]: labels of tokens that form spans
//! - [`stage`]: turns a formula into graphs (forward, backward, evaluate); [`design`]: the stages of a whole model; [`storage`]:
//!   formats of frozen tensors; [`layout`]: the properties that determine the form of a batch
//! - [`graph`] (nodes, shapes), [`gradient`] (one rule for each operator), [`lower`] (adjoint operators become plain ones),
//!   [`onnx`] (the writer): the basis of stages
//! - [`pack`]: the folder for devices; [`tensors`]: named tensors, their schema; [`memory`]: prediction of a step's memory;
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
pub mod tokenizer;
pub mod work;

pub use pack::Pack;
