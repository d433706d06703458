//! Checkpoints with random weights, of any size: speed and memory do not depend on the values.

use crate::places;
use half::f16;
use serde_json::{Map, json};
use skiff_data::random::Random;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// The sizes of a BERT whose other numbers are those of the first release.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Blocks.
    pub layers: usize,
    /// Features of a token.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Features inside the feed-forward part.
    pub intermediate: usize,
}

const VOCABULARY: usize = 30_522;
const POSITIONS: usize = 512;
const SEGMENTS: usize = 2;
/// The standard deviation of BERT's own first values.
const DEVIATION: f32 = 0.02;

/// Writes a checkpoint folder for `sizes` with `MiniLM`'s tokenizer, in 16-bit floating point. It holds one value at a time.
///
/// # Errors
/// The folder cannot be written.
pub fn write(sizes: Sizes, folder: &Path) -> std::io::Result<()> {
    let config = json!({
        "model_type": "bert", "architectures": ["BertModel"], "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "num_hidden_layers": sizes.layers, "hidden_size": sizes.hidden, "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate, "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS,
        "type_vocab_size": SEGMENTS, "pad_token_id": 0,
    });
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), config.to_string())?;
    std::fs::copy(places::minilm().join("tokenizer.json"), folder.join("tokenizer.json"))?;

    let tensors = tensors(sizes);
    let mut header = Map::new();
    let mut begin = 0;
    for (name, shape) in &tensors {
        let end = begin + 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({ "dtype": "F16", "shape": shape, "data_offsets": [begin, end] }));
        begin = end;
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = BufWriter::new(File::create(folder.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut random = Random::new(1);
    for (name, shape) in &tensors {
        for _ in 0..shape.iter().product() {
            let value = match name.as_str() {
                name if name.ends_with(".bias") => 0.0,
                name if name.ends_with("LayerNorm.weight") => 1.0,
                _ => DEVIATION * bell(&mut random),
            };
            file.write_all(&f16::from_f32(value).to_le_bytes())?;
        }
    }
    file.flush()
}

/// The tensors of a BERT, by name, in the order of the file.
fn tensors(sizes: Sizes) -> Vec<(String, Vec<usize>)> {
    let Sizes { hidden, intermediate, .. } = sizes;
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize]| tensors.push((name, shape.to_vec()));
    for (name, rows) in [("word", VOCABULARY), ("position", POSITIONS), ("token_type", SEGMENTS)] {
        add(format!("bert.embeddings.{name}_embeddings.weight"), &[rows, hidden]);
    }
    let mut pair = |name: String, weight: &[usize]| {
        add(format!("{name}.weight"), weight);
        add(format!("{name}.bias"), &weight[..1]);
    };
    pair("bert.embeddings.LayerNorm".to_owned(), &[hidden]);
    for layer in 0..sizes.layers {
        let name = |part: &str| format!("bert.encoder.layer.{layer}.{part}");
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            pair(name(&format!("attention.{part}")), &[hidden, hidden]);
        }
        pair(name("attention.output.LayerNorm"), &[hidden]);
        pair(name("intermediate.dense"), &[intermediate, hidden]);
        pair(name("output.dense"), &[hidden, intermediate]);
        pair(name("output.LayerNorm"), &[hidden]);
    }
    pair("bert.pooler.dense".to_owned(), &[hidden, hidden]);
    tensors
}

/// Nearly normal, of variance 1: the sum of four uniform numbers.
fn bell(random: &mut Random) -> f32 {
    let bits = random.next_u64();
    let uniform = [0, 16, 32, 48].map(|shift| ((bits >> shift) & 0xffff) as f32 / 65_535.0 - 0.5);
    3_f32.sqrt() * uniform.iter().sum::<f32>()
}
