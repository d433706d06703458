//! Everything that determines a pack's graphs: the same [`Design`] always gives the same graphs.

use crate::architectures::{Head, Model};
use crate::graph::GraphError;
use crate::layout::Layout;
use crate::peft::Peft;
use crate::stage::{BatchPart, CompiledStage, FrozenTensor, Stage, StageSpecs, TrainableTensor};
use crate::storage::Storage;
use crate::tensors::Schema;
use serde::{Deserialize, Serialize};

/// A model, its task, and its method of fine-tuning.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Design {
    /// Architecture and sizes.
    pub model: Model,
    /// The task.
    pub head: Head,
    /// Method of fine-tuning.
    pub peft: Peft,
    /// Storage of frozen matrices.
    pub frozen: Storage,
}

/// Graphs of a design, and the tensors that they read.
#[derive(Clone, PartialEq, Debug)]
pub struct Stages {
    /// Stage from tokens to activations.
    pub embed: CompiledStage,
    /// One stage for each kind of layer.
    pub blocks: Vec<CompiledStage>,
    /// Index in `blocks` of each layer's kind.
    pub kinds: Vec<usize>,
    /// Stage from activations to scores and loss.
    pub head: CompiledStage,
    /// Like `blocks`, for the highest layer that runs; see [`StageSpecs::last_blocks`].
    pub last_blocks: Vec<CompiledStage>,
    /// Every frozen tensor once, in the order `embed`, the layers, the head.
    pub frozen: Vec<FrozenTensor>,
    /// Every trainable tensor, ordered by name.
    pub trainable: Vec<TrainableTensor>,
}

impl Design {
    /// Returns what is wrong with the design, if anything. A design from a file may have any values.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let Head { task, labels, .. } = self.head;
        if let Some(problem) = self.model.problem().or_else(|| self.model.peft_problem(&self.peft)) {
            return Some(problem);
        }
        if !self.model.tasks().contains(&task) {
            let tasks = self.model.tasks().iter().map(|task| task.name()).collect::<Vec<_>>().join(", ");
            return Some(format!("{} cannot be tuned for {task}; it can for {tasks}", self.model.name()));
        }
        (task != crate::task::Task::CausalLm && !(1..=MAX_LABELS).contains(&labels))
            .then(|| format!("{labels} labels: expected 1 to {MAX_LABELS}"))
    }

    /// Returns the model's properties that determine the form of a batch.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.model.layout(self.head.task, self.head.labels)
    }

    /// Builds, differentiates and writes all graphs with plain operators. Layers with equal graphs are of one kind.
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub fn stages(&self) -> Result<Stages, GraphError> {
        self.compiled("", &|prefix, layer| Stage::new(&self.peft, self.frozen, prefix, layer), None)
    }

    /// Builds the same graphs with fused operators. They read the same tensors.
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub fn fused_stages(&self) -> Result<Stages, GraphError> {
        let stage = |prefix: &str, layer| Stage::new(&self.peft, self.frozen, prefix, layer).with_fused_operators();
        self.compiled("fused.", &stage, self.model.read_row(self.head.task))
    }

    /// Compiles the stages. The names of the files begin with `stem`. `row` is the row of each example that the head reads, if
    /// the highest layer computes only this row.
    fn compiled<'a>(
        &'a self,
        stem: &str,
        stage: &dyn Fn(&str, Option<usize>) -> Stage<'a>,
        row: Option<BatchPart>,
    ) -> Result<Stages, GraphError> {
        let mut embed = stage(self.model.base(), None);
        let ending = self.model.embed(&mut embed)?;
        let embed = embed.compile(&format!("{stem}embed"), ending)?;

        let compile = |mut block: Stage<'a>, layer: usize, name: &str| {
            let ending = self.model.block(&mut block, layer)?;
            block.compile(&format!("{stem}{name}"), ending)
        };
        let block = |layer: usize, name: &str| compile(stage(&self.model.block_prefix(), Some(layer)), layer, name);
        let (mut blocks, mut kinds) = (Vec::new(), Vec::new());
        let (mut frozen, mut trainable) = (embed.frozen.clone(), Vec::new());
        for layer in 0..self.model.sizes().layers {
            let candidate = block(layer, "block")?;
            frozen.extend(candidate.frozen.clone());
            trainable.extend(candidate.trainable.clone());
            let known = blocks.iter().position(|(first, _): &(CompiledStage, _)| first.files == candidate.files);
            kinds.push(known.unwrap_or(blocks.len()));
            if known.is_none() {
                blocks.push((candidate, layer));
            }
        }
        let mut last_blocks = Vec::new();
        for (at, (_, layer)) in blocks.iter().enumerate() {
            if let Some(row) = row {
                let last = stage(&self.model.block_prefix(), Some(*layer)).for_rows(row);
                last_blocks.push(compile(last, *layer, &named("last_block", at))?);
            }
        }
        let named = |(at, (compiled, layer))| match at {
            0 => Ok(compiled),
            _ => block(layer, &named("block", at)),
        };
        let blocks = blocks.into_iter().enumerate().map(named).collect::<Result<Vec<_>, GraphError>>()?;

        let mut head = stage("", None);
        let ending = self.model.head(&mut head, self.head)?;
        let head = head.compile(&format!("{stem}head"), ending)?;
        trainable.extend(head.trainable.clone());
        trainable.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        for tensor in &head.frozen {
            // A tied head reads the embedding again.
            if frozen.iter().all(|known| known.name != tensor.name) {
                frozen.push(tensor.clone());
            }
        }
        Ok(Stages { embed, blocks, kinds, head, last_blocks, frozen, trainable })
    }
}

impl Stages {
    /// Returns the schema of the trainable tensors.
    #[must_use]
    pub fn schema(&self) -> Schema {
        Schema { tensors: self.trainable.iter().map(|tensor| tensor.spec.clone()).collect() }
    }

    /// Returns the largest rank of LoRA; 1 if no tensor has a rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.trainable.iter().filter_map(|tensor| tensor.spec.rank()).max().unwrap_or(1)
    }

    /// Returns the graph files, without their bytes.
    #[must_use]
    pub fn specs(&self) -> StageSpecs {
        StageSpecs {
            embed: self.embed.spec.clone(),
            blocks: self.blocks.iter().map(|block| block.spec.clone()).collect(),
            last_blocks: self.last_blocks.iter().map(|block| block.spec.clone()).collect(),
            kinds: self.kinds.clone(),
            head: self.head.spec.clone(),
        }
    }

    /// Returns every graph file: its path in the pack, and its bytes.
    pub fn files(&self) -> impl Iterator<Item = &(String, Vec<u8>)> {
        let stages = [&self.embed, &self.head].into_iter().chain(&self.blocks).chain(&self.last_blocks);
        stages.flat_map(|stage| &stage.files)
    }
}

/// Returns the file name for the kind `at`.
fn named(name: &str, at: usize) -> String {
    if at == 0 { name.to_owned() } else { format!("{name}_{at}") }
}

/// Maximum number of classes of a head.
pub const MAX_LABELS: usize = 65_536;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use crate::peft::Lora;
    use crate::task::Task;
    use serde_json::{Value, json};

    /// Returns a `config.json` of each architecture, with its special features switched on.
    fn configs() -> Vec<Value> {
        let mut encoder = json!({
            "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 20,
            "vocab_size": 31, "max_position_embeddings": 16, "type_vocab_size": 2,
        });
        let mut decoder = json!({
            "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 8, "intermediate_size": 20, "vocab_size": 31, "max_position_embeddings": 16,
            "sliding_window": 4, "use_sliding_window": true, "max_window_layers": 1,
        });
        let mut all = Vec::new();
        for kind in ["bert", "roberta", "xlm-roberta", "deberta-v2"] {
            encoder["model_type"] = kind.into();
            all.push(encoder.clone());
        }
        let last = all.last_mut().unwrap();
        for (key, value) in [
            ("relative_attention", json!(true)),
            ("pos_att_type", json!("c2p|p2c")),
            ("position_buckets", json!(4)),
            ("norm_rel_ebd", json!("layer_norm")),
            ("conv_kernel_size", json!(3)),
            ("embedding_size", json!(12)),
        ] {
            last[key] = value;
        }
        for kind in ["llama", "mistral", "qwen2", "qwen3"] {
            decoder["model_type"] = kind.into();
            all.push(decoder.clone());
        }
        all
    }

    fn pefts(model: &Model) -> Vec<Peft> {
        let targets = model.usual_targets().map(str::to_owned).to_vec();
        let lora = Lora { targets, ..Lora::default() };
        let every = Lora { targets: vec!["all-linear".to_owned()], ..lora.clone() };
        let every = match model.peft_problem(&Peft::Lora(every.clone())) {
            None => every,
            Some(_) => Lora { targets: model.linears().into_iter().map(str::to_owned).collect(), ..every },
        };
        let ffa = Lora { freeze_a: true, ..every };
        let all = [Peft::Lora(lora), Peft::Lora(ffa), Peft::Houlsby { width: 5 }, Peft::BitFit];
        all.into_iter().filter(|peft| model.peft_problem(peft).is_none()).collect()
    }

    #[test]
    fn every_architecture_task_peft_and_storage_builds() {
        let mut built = 0;
        for config in configs() {
            let model = Model::read(&config).unwrap();
            for &task in model.tasks() {
                for peft in pefts(&model) {
                    for frozen in [Storage::F32, Storage::F16, Storage::Int8] {
                        let head = Head { task, labels: 3, train_pooler: false };
                        let design = Design { model: model.clone(), head, peft: peft.clone(), frozen };
                        assert_eq!(design.problem(), None);
                        let stages = design.stages().unwrap_or_else(|error| panic!("{design:?}: {error}"));
                        assert_eq!(stages.kinds.len(), 3);
                        let fused = design.fused_stages().unwrap_or_else(|error| panic!("{design:?}: {error}"));
                        assert_eq!(
                            (&fused.trainable, &fused.frozen),
                            (&stages.trainable, &stages.frozen),
                            "{design:?}"
                        );
                        built += 1;
                    }
                }
            }
        }
        assert!(built > 200, "only {built}");
    }

    #[test]
    fn the_rank_is_that_of_the_pair_whether_or_not_a_trains() {
        let config = configs().into_iter().find(|config| config["model_type"] == "bert").unwrap();
        let model = Model::read(&config).unwrap();
        let rank = |peft: Peft| {
            let head = Head { task: Task::SequenceClassification, labels: 2, train_pooler: false };
            Design { model: model.clone(), head, peft, frozen: Storage::F32 }.stages().unwrap().rank()
        };
        let targets = vec!["query".to_owned()];
        let lora = |freeze_a| Peft::Lora(Lora { rank: 6, targets: targets.clone(), freeze_a, ..Lora::default() });
        assert_eq!([rank(lora(false)), rank(lora(true)), rank(Peft::BitFit)], [6, 6, 1]);
    }

    #[test]
    fn layers_are_of_as_few_kinds_as_their_graphs_differ() {
        let kinds = |kind: &str, change: &dyn Fn(&mut Lora)| {
            let config = configs().into_iter().find(|config| config["model_type"] == kind).unwrap();
            let model = Model::read(&config).unwrap();
            let mut lora = Lora { targets: model.usual_targets().map(str::to_owned).to_vec(), ..Lora::default() };
            change(&mut lora);
            let head = Head { task: Task::SequenceClassification, labels: 2, train_pooler: false };
            Design { model, head, peft: Peft::Lora(lora), frozen: Storage::F32 }.stages().unwrap().kinds
        };
        assert_eq!(kinds("bert", &|_| {}), [0, 0, 0]);
        let other_rank = |lora: &mut Lora| lora.rank_pattern = [("layer.1.attention.self.query".to_owned(), 3)].into();
        assert_eq!(kinds("bert", &other_rank), [0, 0, 0]);
        assert_eq!(kinds("bert", &|lora| lora.layers = Some(vec![1])), [0, 1, 0]);
        assert_eq!(kinds("deberta-v2", &|_| {}), [0, 1, 1], "the convolution is beside the first");
        assert_eq!(kinds("qwen2", &|_| {}), [0, 1, 1], "the window begins at layer 1");
        assert_eq!(kinds("mistral", &|_| {}), [0, 0, 0]);
    }
}
