//! Fused operators for ONNX Runtime on the processor, for the parts of a training step that cost time beside matrix products.
//!
//! A pack holds its graphs twice: with plain ONNX operators, which any runtime computes, and with these. Each stands for five
//! to twenty plain operators and passes over memory once. Both sets give the same numbers up to rounding.
//!
//! - [`attention`]: attention over rows of tokens, and its gradient. No padding, no matrix of probabilities in memory.
//! - [`elementwise`]: gradients of GELU, softmax, layer norm and RMS norm.
//! - [`product`]: the small matrix product inside attention.
//! - [`operators`]: these as operators of the domain `skiff`, on ONNX Runtime's own threads.
//!
//! Loops are written so that the compiler makes vectors of them, for AVX-512, AVX2 or NEON; see [`vectors`].

pub mod attention;
pub mod elementwise;
pub mod operators;
pub mod product;
pub mod vectors;
