//! Reads any bytes as an ONNX model. They must be refused, or give a list of nodes and inputs; both readers must agree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_models::onnx::{input_names, nodes};

fuzz_target!(|bytes: &[u8]| {
    let (nodes, inputs) = (nodes(bytes), input_names(bytes));
    assert_eq!(nodes.is_ok(), inputs.is_ok());
    if let (Ok(nodes), Ok(inputs)) = (nodes, inputs) {
        // Each takes two bytes at least.
        assert!(nodes.len() + inputs.len() <= bytes.len());
    }
});
