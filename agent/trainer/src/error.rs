//! Reasons why a training cannot continue.

use crate::batch::BatchError;
use skiff_models::pack::PackError;
use std::error::Error;
use std::io;
use std::path::PathBuf;

/// Reason why a training cannot continue.
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
    /// ONNX Runtime cannot use a frozen tensor.
    #[error("mapping the frozen tensor {name:?}; make the pack again with `skiff-pack build`")]
    Frozen {
        /// Name of the tensor.
        name: String,
        /// The cause.
        source: ort::Error,
    },
    /// Rows of the vocabulary's table could not be read.
    #[error("reading the vocabulary's table from the pack")]
    Table {
        /// The cause.
        source: std::io::Error,
    },
    /// A port of a graph is bound to a value that does not exist.
    #[error(
        "{graph} has the port {port:?}, bound to {binding}, which does not exist; make the pack again with `skiff-pack build`"
    )]
    Unbound {
        /// The graph file.
        graph: String,
        /// The port's name.
        port: String,
        /// Name of the missing value.
        binding: String,
    },
    /// A graph lacks an output.
    #[error("{graph} has no output bound to {binding}; make the pack again with `skiff-pack build`")]
    NoOutput {
        /// The graph file.
        graph: String,
        /// The value that the output should hold.
        binding: &'static str,
    },
    /// The stages of a pack do not fit together.
    #[error("the pack's stages do not fit together: {what}; make the pack again with `skiff-pack build`")]
    Stages {
        /// The mismatch.
        what: String,
    },
    /// The weights do not belong to this pack.
    #[error("the weights do not follow the pack's schema: tensor {name:?}")]
    Weights {
        /// The first tensor that does not fit.
        name: String,
    },
    /// The plan does not fit the pack or the data.
    #[error("{what}")]
    Plan {
        /// The mismatch.
        what: String,
    },
    /// Too many steps in a row had a loss or gradients that are NaN or infinite.
    #[error(
        "no finite loss and gradients in {in_a_row} step(s) up to step {step} (the last: loss {loss}, gradient norm {norm}); lower the learning rate"
    )]
    NotFinite {
        /// The last step, counted from 1.
        step: u32,
        /// Number of skipped steps in a row.
        in_a_row: u32,
        /// The last step's loss.
        loss: f32,
        /// Gradient norm of the last step.
        norm: f64,
    },
    /// An example cannot be read.
    #[error("reading example {example}")]
    Example {
        /// Number of the example, counted from 1.
        example: usize,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The system cannot start a thread.
    #[error("starting the thread that reads the examples")]
    Thread(#[source] io::Error),
    /// An example does not fit the pack.
    #[error("laying out a batch")]
    Batch(#[from] BatchError),
    /// The pack cannot be used.
    #[error(transparent)]
    Pack(#[from] PackError),
}
