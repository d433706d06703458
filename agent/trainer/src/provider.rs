//! ONNX Runtime's execution providers that a training may choose.

use crate::runtime::{Runtime, RuntimeError};
use ort::ep::{CPU, CUDA, ExecutionProvider, ExecutionProviderDispatch, XNNPACK};
use ort::session::Session;
use skiff_contract::Provider;
use std::num::NonZeroUsize;

/// Returns true if the loaded library contains this provider.
fn is_there(provider: Provider) -> bool {
    let found = match provider {
        Provider::Cpu => CPU::is_available(),
        Provider::Cuda => CUDA::is_available(),
        Provider::Xnnpack => XNNPACK::is_available(),
    };
    found.unwrap_or(false)
}

impl Runtime {
    /// Returns this runtime with sessions that compute on `provider`.
    ///
    /// # Errors
    /// [`RuntimeError::NoProvider`] if the library was built without it, [`RuntimeError::Provider`] if it does not start, for
    /// example because the driver is missing.
    pub fn on(mut self, provider: Provider) -> Result<Self, RuntimeError> {
        if !is_there(provider) {
            let there = Provider::ALL.into_iter().filter(|provider| is_there(*provider));
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

    /// Returns the provider that computes the graphs.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// Returns the providers to request for a session: none for the processor, which every session has.
    pub(crate) fn providers(&self) -> Vec<ExecutionProviderDispatch> {
        let chosen = match self.provider {
            Provider::Cpu => return Vec::new(),
            // Cards with TF32 use it by default. Its products have ten bits, and gradients are off by up to a fiftieth.
            Provider::Cuda => CUDA::default().with_tf32(false).build(),
            // XNNPACK has its own threads.
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
    fn a_missing_provider_is_refused_with_those_that_the_library_has() {
        let runtime = Runtime::load(None, 1).unwrap();
        assert_eq!(runtime.provider(), Provider::Cpu);
        assert_eq!(runtime.clone().on(Provider::Cpu).unwrap().provider(), Provider::Cpu);
        for provider in Provider::ALL.into_iter().filter(|provider| !is_there(*provider)) {
            let message = runtime.clone().on(provider).unwrap_err().to_string();
            assert!(message.contains(&format!("has no {provider}, only cpu")), "{message}");
            assert!(message.contains(runtime.version()), "{message}");
        }
    }
}
