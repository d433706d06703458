//! The arguments of `skiff-agent bench`.

use anyhow::Context;
use skiff_trainer::{Policy, Provider};
use std::path::PathBuf;

/// Times training steps on random tokens: seconds, share of the machine's peak, memory.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A step is forward, backward and AdamW. GFLOP counts 2 m n k for every matrix product of the plain forward and \
                  backward graphs of the active layers, whatever this implementation leaves out (with --evaluate, of the \
                  evaluation's). The roof is the fastest of up to 48 \
                  products of [1024, 768] and [768, 3072] in the same run.\n\n\
                  Examples:\n  skiff-agent bench --pack minilm.pack\n  skiff-agent bench --pack minilm.pack --active 3 --policy recompute --json\n  \
                  skiff-agent bench --pack minilm.pack --table"
)]
pub struct Arguments {
    /// The pack's folder.
    #[arg(long)]
    pub(super) pack: PathBuf,
    /// Examples in a step.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(super) batch: u16,
    /// Tokens of each example.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) tokens: u16,
    /// Number of layers that run, evenly spread, or `all`.
    #[arg(long, default_value = "all", value_name = "K", conflicts_with = "table")]
    active: String,
    /// Print one line for every number of active layers, from 1.
    #[arg(long)]
    table: bool,
    /// Values that layers keep for the backward pass: keep (all), half (in half precision) or recompute (none).
    #[arg(long, default_value = "keep", value_parser = policy)]
    pub(super) policy: Policy,
    /// Use the graphs of plain ONNX operators.
    #[arg(long)]
    pub(super) plain: bool,
    /// Only evaluate, without training.
    #[arg(long)]
    pub(super) evaluate: bool,
    /// Have ONNX Runtime time every operator: prints a table of them, and writes its traces to this new folder (for
    /// chrome://tracing). Steps take a little longer.
    #[arg(long, value_name = "DIR", conflicts_with = "table")]
    pub(super) profile: Option<PathBuf>,
    /// Number of timed steps, after two that are not timed.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) steps: u16,
    /// Number of threads [default: all processors].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) threads: Option<u16>,
    /// Execution provider, if ONNX Runtime's library has it: cpu, cuda, xnnpack.
    #[arg(long, env = "SKIFF_PROVIDER", value_name = "NAME", default_value_t = Provider::Cpu)]
    pub(super) provider: Provider,
    /// Path of libonnxruntime.so [default: searched for; see `skiff-agent doctor`].
    #[arg(long, env = "SKIFF_ONNXRUNTIME")]
    pub(super) onnxruntime: Option<PathBuf>,
    /// Print each result as one line of JSON.
    #[arg(long)]
    pub(super) json: bool,
}

impl Arguments {
    /// Returns the numbers of active layers to measure.
    pub(super) fn counts(&self, layers: usize) -> anyhow::Result<Vec<usize>> {
        match self.active.as_str() {
            _ if self.table => Ok((1..=layers).collect()),
            "all" => Ok(vec![layers]),
            count => {
                let count = count.parse().ok().filter(|count| (1..=layers).contains(count));
                Ok(vec![count.with_context(|| format!("--active: expected all, or a number from 1 to {layers}"))?])
            }
        }
    }
}

/// Reads a policy from its name.
pub(in crate::commands) fn policy(text: &str) -> Result<Policy, String> {
    let known = Policy::ALL.into_iter().find(|policy| policy.name() == text);
    known.ok_or_else(|| "expected keep, half or recompute".to_owned())
}
