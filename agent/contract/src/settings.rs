//! Settings of training on a device: the pack, the examples and the resources.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;
use skiff_protocol::messages::Place;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Everything that the worker needs before any work.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// The pack, the examples and the resources of a training.
    pub training: Training,
    /// The device's name, which seeds masks and batches.
    pub device: DeviceId,
    /// The agent's state folder. The worker reads blobs from it, and records in it that the pack's weights are intact.
    pub state: PathBuf,
    /// Resident memory of the agent in bytes, which counts towards the device's memory limit.
    pub agent_bytes: u64,
}

/// The pack, the examples and the resources of a training.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Training {
    /// The pack's folder.
    pub pack: PathBuf,
    /// Examples to train on. Without them the device refuses training orders.
    pub train: Option<PathBuf>,
    /// Examples to evaluate on. Without them the device refuses evaluation orders.
    pub test: Option<PathBuf>,
    /// Names of the examples' columns, in both files.
    pub columns: ColumnNames,
    /// Number of threads; 0 means one for each core.
    pub threads: usize,
    /// Maximum resident memory of agent and worker together; `None` means three quarters of what the system allows. See
    /// [`limits`](crate::limits).
    pub memory: Option<ByteSize>,
    /// The execution provider that computes.
    pub provider: Provider,
    /// ONNX Runtime's library; `None` to search for it.
    pub onnxruntime: Option<PathBuf>,
    /// Layers that are never skipped, ascending.
    pub protected: Vec<u32>,
    /// Class, region and labels of the device.
    pub place: Place,
}

/// Names of the examples' columns that are not the usual ones.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ColumnNames {
    /// Columns of the text, which are joined; for words with labels, the column of the words.
    pub text: Vec<String>,
    /// Column of a pair's second text.
    pub pair: Option<String>,
    /// Column of the prompt before the text.
    pub prompt: Option<String>,
    /// Column of the label, of the numbers, or of the words' labels.
    pub label: Option<String>,
    /// Names of all columns, for files without a header.
    pub header: Vec<String>,
}

/// ONNX Runtime's execution provider that computes. An operator that the provider lacks runs on the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Provider {
    /// ONNX Runtime's own kernels for the processor, which every build of the library contains.
    #[default]
    Cpu,
    /// NVIDIA's graphics cards.
    Cuda,
    /// Kernels for the processors of small devices.
    Xnnpack,
}

/// A text that names no [`Provider`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected cpu, cuda or xnnpack")]
pub struct UnknownProvider;

impl Provider {
    /// Every provider.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Cuda, Self::Xnnpack];

    /// Returns the provider's name in settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Xnnpack => "xnnpack",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Provider {
    type Err = UnknownProvider;

    fn from_str(name: &str) -> Result<Self, UnknownProvider> {
        Self::ALL.into_iter().find(|provider| provider.name() == name).ok_or(UnknownProvider)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_read_from_its_name_and_from_nothing_else() {
        for provider in Provider::ALL {
            assert_eq!(provider.to_string().parse(), Ok(provider));
        }
        for name in ["", "CPU", "tpu"] {
            assert_eq!(name.parse::<Provider>(), Err(UnknownProvider), "{name}");
        }
    }
}
