//! Fused operators for ONNX Runtime on the processor: what a training step spends its time on beside matrix products.
//!
//! A pack holds its graphs twice: of plain ONNX operators, which any runtime computes, and of these, which stand for five to
//! twenty plain ones each and pass over memory once. Both give the same numbers to rounding.
//!
//! - [`attention`]: attention over rows of tokens, and its gradient. No padding, no matrix of probabilities in memory.
//! - [`elementwise`]: gradients of GELU, softmax, layer norm and RMS norm.
//! - [`product`]: the small matrix product that attention is made of.
//! - [`operators`]: these as operators of the domain `skiff`, on ONNX Runtime's own threads.
//!
//! Loops are written so that the compiler makes vectors of them, for AVX-512, AVX2 or NEON; see [`vectors`].

pub mod attention;
pub mod elementwise;
pub mod operators;
pub mod product;
pub mod vectors;
