//! Checkpoints with random weights, of any architecture and size: speed and memory do not depend on the values.

use crate::places;
use half::f16;
use serde_json::{Map, Value, json};
use skiff_base::chain;
use skiff_base::random::Random;
use skiff_models::architectures::{Head, Model};
use skiff_models::design::Design;
use skiff_models::pack::Storage;
use skiff_models::peft::Peft;
use skiff_models::stage::FrozenSource;
use skiff_models::task::Task;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Standard deviation of BERT's initial weights.
const DEVIATION: f32 = 0.02;

/// Returns the `config.json` of a BERT of these sizes. All other numbers are from the first release.
#[must_use]
pub fn bert(layers: usize, hidden: usize, heads: usize, intermediate: usize) -> Value {
    json!({
        "model_type": "bert", "architectures": ["BertModel"], "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": intermediate,
        "vocab_size": 30_522, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0,
    })
}

/// Returns the `config.json` of DeBERTaV2-xxlarge: 1.5 billion parameters.
#[must_use]
pub fn deberta_xxlarge() -> Value {
    json!({
        "model_type": "deberta-v2", "architectures": ["DebertaV2Model"], "hidden_act": "gelu", "layer_norm_eps": 1e-7,
        "num_hidden_layers": 48, "hidden_size": 1536, "num_attention_heads": 24, "intermediate_size": 6144,
        "vocab_size": 128_100, "max_position_embeddings": 512, "type_vocab_size": 0, "pad_token_id": 0,
        "relative_attention": true, "position_buckets": 256, "max_relative_positions": -1, "position_biased_input": false,
        "pos_att_type": "p2c|c2p", "share_att_key": true, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3, "conv_act": "gelu",
    })
}

/// Writes a checkpoint folder for `config` with every tensor that a classifier of sequences reads, in 16-bit floating point, and
/// `MiniLM`'s tokenizer. It holds one value at a time.
///
/// # Errors
/// The folder cannot be written.
///
/// # Panics
/// If `config` describes no known model.
pub fn write(config: &Value, folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), config.to_string())?;
    std::fs::copy(places::minilm().join("tokenizer.json"), folder.join("tokenizer.json"))?;
    // The model's type may name another class.
    std::fs::write(folder.join("tokenizer_config.json"), json!({ "tokenizer_class": "BertTokenizer" }).to_string())?;

    let tensors = tensors(config);
    let mut header = Map::new();
    let mut begin = 0;
    for (name, shape) in &tensors {
        let end = begin + 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({ "dtype": "F16", "shape": shape, "data_offsets": [begin, end] }));
        begin = end;
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = BufWriter::with_capacity(1 << 20, File::create(folder.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut random = Random::new(1);
    for (name, shape) in &tensors {
        let constant = match name {
            name if name.ends_with(".bias") => Some(0.0),
            name if name.ends_with("LayerNorm.weight") => Some(1.0),
            _ => None,
        };
        for _ in 0..shape.iter().product() {
            let value = constant.unwrap_or_else(|| DEVIATION * bell(&mut random));
            file.write_all(&f16::from_f32(value).to_le_bytes())?;
        }
    }
    file.flush()
}

/// Returns name and shape of each tensor that a pack takes from the checkpoint, with a pooler, in the order of the file.
fn tensors(config: &Value) -> Vec<(String, Vec<usize>)> {
    let model = Model::read(config).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let head = Head { task: Task::SequenceClassification, labels: 2, train_pooler: false };
    let design = Design { model, head, peft: Peft::default(), frozen: Storage::F32 };
    let stages = design.stages().unwrap_or_else(|error| panic!("{}", chain(&error)));
    let read = stages.frozen.into_iter().filter(|tensor| tensor.source == FrozenSource::Checkpoint);
    read.map(|tensor| (tensor.name, tensor.shape)).collect()
}

/// Draws a nearly normal number with variance 1: the sum of four uniform numbers.
fn bell(random: &mut Random) -> f32 {
    let bits = random.next_u64();
    let uniform = [0, 16, 32, 48].map(|shift| ((bits >> shift) & 0xffff) as f32 / 65_535.0 - 0.5);
    3_f32.sqrt() * uniform.iter().sum::<f32>()
}
