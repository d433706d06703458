//! Fused operators for ONNX Runtime on the processor, for the slow parts of a training step other than matrix products.
//!
//! A pack contains its graphs twice: with plain ONNX operators, which any runtime computes, and with fused ones. A fused
//! operator replaces five to twenty plain operators and passes over memory once. Both sets give the same numbers up to
//! rounding.
//!
//! - [`attention`]: attention over rows of tokens, and its gradient. No padding, no matrix of probabilities in memory.
//! - [`elementwise`]: gradients of GELU, softmax, layer norm and RMS norm.
//! - [`product`]: the small matrix product inside attention.
//! - [`operators`]: all of these as operators of the domain `skiff`, on ONNX Runtime's own threads.
//!
//! The loops are written so that the compiler can vectorise them for AVX-512, AVX2 or NEON; see [`vectors`].

pub mod attention;
pub mod elementwise;
pub mod operators;
pub mod product;
pub mod vectors;
