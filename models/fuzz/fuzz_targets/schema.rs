//! Reads any bytes as the tensors of any schema. They must be refused, or be exactly these tensors. The input holds the schema, a
//! zero byte, and the bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_models::tensors::{Schema, TensorSpec};

fn read(schema: &Schema, bytes: &[u8]) {
    let Ok(tensors) = schema.read(bytes) else { return };
    for (name, tensor) in &tensors {
        let spec = schema.find(name).expect("no other tensors are read");
        assert_eq!(tensor.shape(), spec.shape);
        assert!(tensor.iter().all(|value| value.is_finite()));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let tensor = |name: &str, shape: &[usize]| TensorSpec { name: name.to_owned(), shape: shape.to_vec(), layer: None };
    read(&Schema { tensors: vec![tensor("a", &[2]), tensor("b", &[1, 1])] }, bytes);
    let Some(end) = bytes.iter().position(|byte| *byte == 0) else { return };
    if let Ok(schema) = serde_json::from_slice(&bytes[..end]) {
        read(&schema, &bytes[end + 1..]);
    }
});
