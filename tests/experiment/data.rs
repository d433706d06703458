//! Real texts, tokenised once and distributed among virtual devices.

use anyhow::{Context, ensure};
use skiff_base::random::Random;
use skiff_data::corpus::{GenerateOptions, generate};
use skiff_data::{Columns, Example, dataset, labels, read, split};
use skiff_models::Pack;
use skiff_trainer::{Examples, Sequence, Target};
use skiff_worker::corpus::Corpus;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the data set that the experiment writes itself.
pub(crate) const GENERATED: &str = "generated";
/// Number of tokens to which texts are cut.
pub(crate) const MAX_TOKENS: u32 = 64;
/// Number of training examples of all devices, drawn from the file.
const MOST_TRAINING: usize = 12_000;
/// Number of test examples of a device, drawn by the mix of its classes.
const TESTED_BY_DEVICE: usize = 24;
/// Number of test examples for the accuracy of the global model.
const TESTED_GLOBALLY: usize = 400;

/// A data set that was asked for, before it is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    /// Name of the set in plans and reports.
    pub(crate) name: String,
    /// Digest of its files, so that the result of a run is only used again for the same texts.
    pub(crate) digest: String,
    /// Folder with its training and test file; `None` for the generated set.
    folder: Option<PathBuf>,
}

impl Source {
    /// Returns the data sets in `folders`, or the generated one if there are none.
    ///
    /// # Errors
    /// A folder has no training and test file, or two folders have the same name.
    pub(crate) fn all(folders: &[PathBuf]) -> anyhow::Result<Vec<Self>> {
        if folders.is_empty() {
            let options = format!("{:?}", GenerateOptions::default());
            return Ok(vec![Self { name: GENERATED.to_owned(), digest: options, folder: None }]);
        }
        let mut sources: Vec<Self> = Vec::new();
        for folder in folders {
            let set = dataset(folder).context("--data takes folders, each with a training and a test file")?;
            ensure!(
                sources.iter().all(|other| other.name != set.name),
                "--data has two folders with the name {}; rename one of them",
                set.name
            );
            let mut hasher = blake3::Hasher::new();
            for part in [&set.train, &set.test] {
                hasher.update(&std::fs::read(part).with_context(|| format!("reading {}", part.display()))?);
            }
            let digest = hasher.finalize().to_hex().to_string();
            sources.push(Self { name: set.name, digest, folder: Some(folder.clone()) });
        }
        Ok(sources)
    }

    /// Returns the folder with the training and the test file. The generated set is first written to `beside`.
    pub(crate) fn ready(&self, beside: &Path) -> anyhow::Result<PathBuf> {
        if let Some(folder) = &self.folder {
            return Ok(folder.clone());
        }
        let folder = beside.join(GENERATED);
        generate(&GenerateOptions::default())?.write(&folder)?;
        Ok(folder)
    }
}

/// A data set, as tokens.
pub(crate) struct Data {
    train: Arc<Vec<Sequence>>,
    test: Arc<Vec<Sequence>>,
    train_classes: Vec<usize>,
    test_classes: Vec<usize>,
}

/// Reads the labels of the data set in `folder`.
pub(crate) fn labels_of(folder: &Path) -> anyhow::Result<Vec<String>> {
    let set = dataset(folder)?;
    Ok(labels(&[read::<Example>(&set.train)?, read::<Example>(&set.test)?].concat()))
}

impl Data {
    /// Reads the data set in `folder` and tokenises it as `pack` does.
    pub(crate) fn load(folder: &Path, pack: &Pack) -> anyhow::Result<Self> {
        let set = dataset(folder)?;
        let read = |path: &Path, most: usize| -> anyhow::Result<Vec<Sequence>> {
            let corpus = Corpus::load(path, &Columns::default(), pack, MAX_TOKENS as usize)?;
            let mut order = split::permutation(corpus.len(), 0);
            order.truncate(most);
            let sequence = |at| corpus.encode(at).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()));
            order.into_iter().map(sequence).collect()
        };
        let (train, test) = (read(&set.train, MOST_TRAINING)?, read(&set.test, usize::MAX)?);
        let classes = |sequences: &[Sequence]| -> Vec<usize> {
            let class = |sequence: &Sequence| if let Target::Class(class) = sequence.target { class } else { 0 };
            sequences.iter().map(class).collect()
        };
        let (train_classes, test_classes) = (classes(&train), classes(&test));
        ensure!(!train.is_empty() && !test.is_empty(), "{} has no examples", folder.display());
        Ok(Self { train: Arc::new(train), test: Arc::new(test), train_classes, test_classes })
    }

    /// Returns the mean length of the longest text in a batch, in tokens, over batches of `batch` texts. A step pays this
    /// length for every text of its batch.
    pub(crate) fn step_tokens(&self, batch: usize) -> usize {
        let lengths: Vec<usize> =
            self.train.chunks(batch).map(|texts| texts.iter().map(|text| text.ids.len()).max().unwrap_or(1)).collect();
        lengths.iter().sum::<usize>().div_ceil(lengths.len().max(1))
    }

    /// Draws training and test texts for each of `devices`. The classes of its test texts have the mix of its training texts.
    pub(crate) fn deal(&self, devices: usize, alpha: f64, seed: u64) -> Vec<(Part, Part)> {
        let mut random = Random::new(seed);
        let shares = split::dirichlet(&self.train_classes, devices, alpha, seed);
        let deal = |indices: Vec<usize>| {
            let mut by_class: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for (at, &class) in self.test_classes.iter().enumerate() {
                by_class.entry(class).or_default().push(at);
            }
            by_class.values_mut().for_each(|texts| random.shuffle(texts));
            let mut tested = Vec::new();
            for _ in 0..TESTED_BY_DEVICE {
                let class = random.choose(&indices).map_or(0, |&at| self.train_classes[at]);
                tested.extend(by_class.get_mut(&class).and_then(Vec::pop));
            }
            (Part::new(&self.train, indices), Part::new(&self.test, tested))
        };
        shares.into_iter().map(deal).collect()
    }

    /// Returns test texts in the data set's own mix.
    pub(crate) fn sample(&self) -> Part {
        let mut order = split::permutation(self.test.len(), 1);
        order.truncate(TESTED_GLOBALLY);
        Part::new(&self.test, order)
    }
}

/// Some of a data set's texts.
pub(crate) struct Part {
    sequences: Arc<Vec<Sequence>>,
    indices: Vec<usize>,
}

impl Part {
    fn new(sequences: &Arc<Vec<Sequence>>, indices: Vec<usize>) -> Self {
        Self { sequences: Arc::clone(sequences), indices }
    }
}

impl Examples for Part {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn encode(&self, at: usize) -> Result<Sequence, Box<dyn Error + Send + Sync>> {
        Ok(self.sequences[self.indices[at]].clone())
    }

    fn length_hint(&self, at: usize) -> usize {
        self.sequences[self.indices[at]].ids.len()
    }
}
