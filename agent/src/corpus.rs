//! Labelled texts that a trainer can take: read from a file, with the pack's tokenizer and label numbers.
//!
//! Texts are kept as text and tokenised as a batch needs them: a thousandth of a step's time, and nothing to hold.

use skiff_data::DataError;
use skiff_models::Pack;
use skiff_trainer::{Examples, Sequence, Target};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use tokenizers::{Tokenizer, TruncationParams};

/// A file's examples.
#[derive(Debug)]
pub struct Corpus {
    texts: Vec<String>,
    labels: Vec<usize>,
    tokenizer: Tokenizer,
}

/// Why a file cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The file is malformed.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A label the pack does not have.
    #[error("{path}: example {example} has the label {label:?}, which the pack does not know; make the pack with all labels of the data", path = path.display())]
    UnknownLabel {
        /// The data file.
        path: PathBuf,
        /// Which example, from 1.
        example: usize,
        /// Its label.
        label: String,
    },
    /// The pack's tokenizer cannot be read.
    #[error("reading the tokenizer {path}", path = path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        source: tokenizers::Error,
    },
}

impl Corpus {
    /// Reads the file at `path` for `pack`; texts are cut to `max_tokens` tokens.
    ///
    /// # Errors
    /// A malformed file, a label that the pack lacks, a tokenizer that cannot be read.
    pub fn load(path: &Path, pack: &Pack, max_tokens: usize) -> Result<Self, CorpusError> {
        let tokenizer = tokenizer(pack, max_tokens)?;
        let numbers: BTreeMap<&str, usize> =
            pack.manifest().labels.iter().enumerate().map(|(number, label)| (label.as_str(), number)).collect();
        let (mut texts, mut labels) = (Vec::new(), Vec::new());
        for (at, example) in skiff_data::read(path)?.into_iter().enumerate() {
            let unknown =
                || CorpusError::UnknownLabel { path: path.to_owned(), example: at + 1, label: example.label.clone() };
            labels.push(*numbers.get(example.label.as_str()).ok_or_else(unknown)?);
            texts.push(example.text);
        }
        Ok(Self { texts, labels, tokenizer })
    }
}

impl Examples for Corpus {
    fn len(&self) -> usize {
        self.texts.len()
    }

    fn encode(&self, at: usize) -> Result<Sequence, Box<dyn Error + Send + Sync>> {
        let encoding = self.tokenizer.encode_fast(self.texts[at].as_str(), true)?;
        let target = Target::Class(self.labels[at]);
        Ok(Sequence { ids: encoding.get_ids().to_vec(), types: encoding.get_type_ids().to_vec(), target })
    }

    fn length_hint(&self, at: usize) -> usize {
        self.texts[at].len()
    }
}

/// The pack's tokenizer, cutting at `max_tokens` (or what the model can take) and padding nothing.
///
/// # Errors
/// A file that cannot be read.
pub fn tokenizer(pack: &Pack, max_tokens: usize) -> Result<Tokenizer, CorpusError> {
    let path = pack.tokenizer_path();
    let failed = |source| CorpusError::Tokenizer { path: path.clone(), source };
    let mut tokenizer = Tokenizer::from_file(&path).map_err(failed)?;
    let max_length = max_tokens.clamp(2, pack.manifest().model.max_position_embeddings);
    tokenizer.with_padding(None);
    tokenizer.with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() })).map_err(failed)?;
    Ok(tokenizer)
}
