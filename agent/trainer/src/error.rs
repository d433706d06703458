//! Reasons for which a training cannot go on.

use crate::batch::BatchError;
use skiff_models::pack::PackError;
use std::error::Error;
use std::io;
use std::path::PathBuf;

/// Reasons for which a training cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// ONNX Runtime refuses a graph.
    #[error("loading the graph {path}; make the pack again with `skiff-pack build`", path = path.display())]
    Session {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ort::Error,
    },
    /// A graph failed.
    #[error("running {graph}")]
    Run {
        /// The graph's name.
        graph: String,
        /// The cause.
        source: ort::Error,
    },
    /// A frozen tensor that ONNX Runtime does not take.
    #[error("mapping the frozen tensor {name:?}; make the pack again with `skiff-pack build`")]
    Frozen {
        /// Its name.
        name: String,
        /// The cause.
        source: ort::Error,
    },
    /// Rows of the vocabulary's table that could not be read.
    #[error("reading the vocabulary's table from the pack")]
    Table {
        /// The cause.
        source: std::io::Error,
    },
    /// A graph's input or output is tied to something that is not there.
    #[error(
        "{graph} has the port {port:?}, which is tied to {binding}: there is none; make the pack again with `skiff-pack build`"
    )]
    Unbound {
        /// The graph file.
        graph: String,
        /// The port's name.
        port: String,
        /// The value that it stands for.
        binding: String,
    },
    /// A graph lacks an output.
    #[error("{graph} has no output tied to {binding}; make the pack again with `skiff-pack build`")]
    NoOutput {
        /// The graph file.
        graph: String,
        /// The value that the output stands for.
        binding: &'static str,
    },
    /// The stages of a pack do not fit together.
    #[error("the pack's stages do not fit together: {what}; make the pack again with `skiff-pack build`")]
    Stages {
        /// The mismatch.
        what: String,
    },
    /// Weights that are not this pack's.
    #[error("the weights do not follow the pack's schema: tensor {name:?}")]
    Weights {
        /// The first that does not fit.
        name: String,
    },
    /// The plan does not fit the pack or the data.
    #[error("{what}")]
    Plan {
        /// The mismatch.
        what: String,
    },
    /// Too many losses or gradients that are NaN or infinite.
    #[error(
        "no finite loss and gradients in {in_a_row} step(s) up to step {step} (the last: loss {loss}, gradient norm {norm}); lower the learning rate"
    )]
    NotFinite {
        /// The last step, from 1.
        step: u32,
        /// Number of skipped steps in a row.
        in_a_row: u32,
        /// The last one's loss.
        loss: f32,
        /// Its gradient norm.
        norm: f64,
    },
    /// An example cannot be brought.
    #[error("reading example {example}")]
    Example {
        /// Its number, from 1.
        example: usize,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The system has no thread to give.
    #[error("starting the thread that brings the examples")]
    Thread(#[source] io::Error),
    /// Examples do not fit the pack.
    #[error("laying out a batch")]
    Batch(#[from] BatchError),
    /// The pack failed.
    #[error(transparent)]
    Pack(#[from] PackError),
}
