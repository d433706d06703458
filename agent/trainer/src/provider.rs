//! What computes: ONNX Runtime's execution providers, as far as a training may choose one.

use crate::runtime::{Runtime, RuntimeError};
use ort::ep::{CPU, CUDA, ExecutionProvider, ExecutionProviderDispatch, XNNPACK};
use ort::session::Session;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// What computes. An operator that it has not runs on the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Provider {
    /// ONNX Runtime's own kernels for the processor: in every library.
    #[default]
    Cpu,
    /// NVIDIA's cards.
    Cuda,
    /// Kernels for the processors of small devices.
    Xnnpack,
}

/// Not the name of a [`Provider`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected cpu, cuda or xnnpack")]
pub struct UnknownProvider;

impl Provider {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Cuda, Self::Xnnpack];

    /// As it is written in settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Xnnpack => "xnnpack",
        }
    }

    /// Whether the loaded library was built with it.
    fn is_there(self) -> bool {
        let found = match self {
            Self::Cpu => CPU::is_available(),
            Self::Cuda => CUDA::is_available(),
            Self::Xnnpack => XNNPACK::is_available(),
        };
        found.unwrap_or(false)
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

impl Runtime {
    /// The same runtime, whose sessions compute on `provider`.
    ///
    /// # Errors
    /// [`RuntimeError::NoProvider`] where the library was built without it, [`RuntimeError::Provider`] where it does not
    /// start, for want of a driver perhaps.
    pub fn on(mut self, provider: Provider) -> Result<Self, RuntimeError> {
        if !provider.is_there() {
            let there = Provider::ALL.into_iter().filter(|provider| provider.is_there());
            let there: Vec<&str> = there.map(Provider::name).collect();
            let (library, there) = (self.version().to_owned(), there.join(", "));
            return Err(RuntimeError::NoProvider { provider, library, there });
        }
        self.provider = provider;
        Session::builder(self.environment())
            .and_then(|builder| Ok(builder.with_execution_providers(self.providers())?))
            .map_err(|source| RuntimeError::Provider { provider, source })?;
        Ok(self)
    }

    /// What computes.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// The same for a session; the processor needs no saying.
    pub(crate) fn providers(&self) -> Vec<ExecutionProviderDispatch> {
        let chosen = match self.provider {
            Provider::Cpu => return Vec::new(),
            // TF32 is its default where the card has it: products of ten bits, with which gradients are off by as much as a fiftieth.
            Provider::Cuda => CUDA::default().with_tf32(false).build(),
            // It has threads of its own.
            Provider::Xnnpack => match NonZeroUsize::new(self.threads) {
                Some(threads) => XNNPACK::default().with_intra_op_num_threads(threads).build(),
                None => XNNPACK::default().build(),
            },
        };
        vec![chosen.error_on_failure()]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
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

    #[test]
    fn every_library_has_the_processor_and_of_others_that_are_missing_it_is_told_which_are_there() {
        let runtime = Runtime::load(None, 1).unwrap();
        assert_eq!(runtime.provider(), Provider::Cpu);
        assert_eq!(runtime.clone().on(Provider::Cpu).unwrap().provider(), Provider::Cpu);
        for provider in Provider::ALL.into_iter().filter(|provider| !provider.is_there()) {
            let message = runtime.clone().on(provider).unwrap_err().to_string();
            assert!(message.contains(&format!("has no {provider}, only cpu")), "{message}");
            assert!(message.contains(runtime.version()), "{message}");
        }
    }
}
