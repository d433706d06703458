//! Examples that a trainer can take: read from a file as the pack's task needs them, with the pack's tokenizer and labels.
//!
//! | task | kind of example | target |
//! |---|---|---|
//! | sequence classification | [`Example`]: a text or a pair, and a label | the label's number in the pack |
//! | regression | [`Rated`]: a text or a pair, and numbers | the numbers, as many as the pack has |
//! | token classification | [`Tagged`]: words with a label each | a word's first token has its label's number, no other has one |
//! | causal language model | [`Passage`]: a text, perhaps after a prompt | every token of the text |
//!
//! Texts are kept as text and tokenised as a batch needs them: a thousandth of a step's time, and nothing to hold. What is
//! longer than the limit is cut at its end; of a pair, the longer text is.

use skiff_data::{DataError, Example, Passage, Place, Rated, Record, Tagged};
use skiff_models::Pack;
use skiff_models::layout::Layout;
use skiff_models::task::Task;
use skiff_trainer::{Examples, Sequence, Target};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{Encoding, PostProcessor, PreTokenizerWrapper, Tokenizer, TruncationParams};

/// How many of the pack's labels, and characters of a wrong one, an error shows.
const SHOWN: usize = 40;

/// A file's examples.
#[derive(Debug)]
pub struct Corpus {
    entries: Vec<Entry>,
    tokenizer: Tokenizer,
    /// Rows of the model's segment embedding.
    segments: usize,
}

/// An example, its labels as the pack's numbers.
#[derive(Debug)]
enum Entry {
    Whole { text: String, pair: Option<String>, target: Target },
    Words { words: Vec<String>, labels: Vec<usize> },
    Passage(Passage),
}

/// Why a file cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The file is malformed.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A label the pack does not have.
    #[error(
        "{place}: the pack does not know the label {label:?}, only {known}; make the pack with all labels of the data"
    )]
    UnknownLabel {
        /// The example.
        place: Place,
        /// The start of its label.
        label: String,
        /// The pack's, the first of them where they are many.
        known: String,
    },
    /// More or fewer numbers than the pack has.
    #[error(
        "{place}: the label has {found} numbers, the pack was made for {expected}; give every example {expected}, or make the pack again"
    )]
    NumberCount {
        /// The example.
        place: Place,
        /// How many it has.
        found: usize,
        /// How many the pack has.
        expected: usize,
    },
    /// The pack's tokenizer cannot be read.
    #[error("reading the tokenizer {path}", path = path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        source: tokenizers::Error,
    },
    /// The tokenizer fills an example before there is any text in it.
    #[error(
        "the tokenizer adds {added} tokens to every example, and the pack takes {limit} at most; make the pack again with the model's own tokenizer"
    )]
    NoRoom {
        /// How many it adds.
        added: usize,
        /// The pack's longest example.
        limit: usize,
    },
    /// A text cannot be tokenised.
    #[error("tokenising example {example}")]
    Encode {
        /// Which, from 1.
        example: usize,
        /// Why.
        source: tokenizers::Error,
    },
    /// A text of which nothing is left.
    #[error("example {example} has no tokens: the tokenizer drops every character of it; delete it")]
    NoTokens {
        /// Which, from 1.
        example: usize,
    },
}

impl Corpus {
    /// Reads the file at `path` for `pack`; examples are cut to `max_tokens` tokens, or what the pack takes at most.
    ///
    /// # Errors
    /// A malformed file, a label that is not the pack's, a tokenizer that cannot be read.
    pub fn load(path: &Path, pack: &Pack, max_tokens: usize) -> Result<Self, CorpusError> {
        let manifest = pack.manifest();
        Self::read(path, &manifest.layout, &manifest.labels, tokenizer(pack, max_tokens)?)
    }

    fn read(path: &Path, layout: &Layout, labels: &[String], tokenizer: Tokenizer) -> Result<Self, CorpusError> {
        let mut entries = Vec::new();
        for_each(path, layout, labels, &mut |entry| entries.push(entry))?;
        Ok(Self { entries, tokenizer, segments: layout.segments })
    }
}

impl Examples for Corpus {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn encode(&self, at: usize) -> Result<Sequence, Box<dyn Error + Send + Sync>> {
        let example = at + 1;
        let (encoding, target) =
            encode(&self.tokenizer, &self.entries[at]).map_err(|source| CorpusError::Encode { example, source })?;
        if encoding.is_empty() {
            return Err(CorpusError::NoTokens { example }.into());
        }
        let types = match self.segments {
            0 | 1 => vec![0; encoding.len()],
            _ => encoding.get_type_ids().to_vec(),
        };
        Ok(Sequence { ids: encoding.get_ids().to_vec(), types, target })
    }

    fn length_hint(&self, at: usize) -> usize {
        match &self.entries[at] {
            Entry::Whole { text, pair, .. } => text.len() + pair.as_ref().map_or(0, String::len),
            Entry::Words { words, .. } => words.iter().map(|word| word.len() + 1).sum(),
            Entry::Passage(Passage { prompt, text }) => prompt.len() + text.len(),
        }
    }
}

/// Counts the examples of the file at `path` and checks them for `pack`, keeping none.
///
/// # Errors
/// As [`Corpus::load`], but for the tokenizer.
pub fn count(path: &Path, pack: &Pack) -> Result<u64, CorpusError> {
    let mut count = 0;
    for_each(path, &pack.manifest().layout, &pack.manifest().labels, &mut |_| count += 1)?;
    Ok(count)
}

/// Hands each example of the file to `take`, as the task needs it.
fn for_each(path: &Path, layout: &Layout, labels: &[String], take: &mut dyn FnMut(Entry)) -> Result<(), CorpusError> {
    let classes = Classes::new(labels);
    match layout.task {
        Task::SequenceClassification => each(path, take, |Example { text, pair, label }, place| {
            Ok(Entry::Whole { text, pair, target: Target::Class(classes.number(&label, place)?) })
        }),
        Task::Regression => each(path, take, |Rated { text, pair, numbers }, place| {
            let (found, expected) = (numbers.len(), layout.classes);
            if found != expected {
                return Err(CorpusError::NumberCount { place: place.clone(), found, expected });
            }
            Ok(Entry::Whole { text, pair, target: Target::Numbers(numbers) })
        }),
        Task::TokenClassification => each(path, take, |Tagged { words, labels }, place| {
            let labels = labels.iter().map(|label| classes.number(label, place)).collect::<Result<_, _>>()?;
            Ok(Entry::Words { words, labels })
        }),
        Task::CausalLm => each(path, take, |passage, _| Ok(Entry::Passage(passage))),
    }
}

fn each<R: Record>(
    path: &Path,
    take: &mut dyn FnMut(Entry),
    entry: impl Fn(R, &Place) -> Result<Entry, CorpusError>,
) -> Result<(), CorpusError> {
    let mut reader = skiff_data::open::<R>(path)?;
    while let Some(record) = reader.next() {
        take(entry(record?, reader.place())?);
    }
    Ok(())
}

/// The pack's labels and their numbers.
struct Classes<'a> {
    labels: &'a [String],
    numbers: BTreeMap<&'a str, usize>,
}

impl<'a> Classes<'a> {
    fn new(labels: &'a [String]) -> Self {
        Self { labels, numbers: labels.iter().enumerate().map(|(number, label)| (label.as_str(), number)).collect() }
    }

    fn number(&self, label: &str, place: &Place) -> Result<usize, CorpusError> {
        self.numbers.get(label).copied().ok_or_else(|| CorpusError::UnknownLabel {
            place: place.clone(),
            label: label.chars().take(SHOWN).collect(),
            known: self.known(),
        })
    }

    fn known(&self) -> String {
        let shown = self.labels.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
        match self.labels.len().saturating_sub(SHOWN) {
            0 => shown,
            more => format!("{shown} and {more} more"),
        }
    }
}

fn encode(tokenizer: &Tokenizer, entry: &Entry) -> tokenizers::Result<(Encoding, Target)> {
    match entry {
        Entry::Whole { text, pair, target } => {
            let encoding = match pair {
                Some(pair) => tokenizer.encode_fast((text.as_str(), pair.as_str()), true),
                None => tokenizer.encode_fast(text.as_str(), true),
            }?;
            Ok((encoding, target.clone()))
        }
        Entry::Words { words, labels } => {
            let encoding = tokenizer.encode(words.as_slice(), true)?;
            let target = Target::Tokens(first_tokens(encoding.get_word_ids(), labels));
            Ok((encoding, target))
        }
        Entry::Passage(Passage { prompt, text }) => {
            let encoding = tokenizer.encode(format!("{prompt}{text}"), true)?;
            let target = Target::Next(after(&encoding, prompt.len()));
            Ok((encoding, target))
        }
    }
}

/// The label of each word at its first token, `words` being the word that each token is of.
fn first_tokens(words: &[Option<u32>], labels: &[usize]) -> Vec<Option<usize>> {
    let before = std::iter::once(None).chain(words.iter().copied());
    let label = |(word, before): (&Option<u32>, Option<u32>)| {
        word.filter(|_| *word != before).and_then(|word| labels.get(word as usize).copied())
    };
    words.iter().zip(before).map(label).collect()
}

/// Every token from the first that reaches beyond the prompt's bytes; without a prompt, from the first.
fn after(encoding: &Encoding, prompt_bytes: usize) -> Vec<Option<u32>> {
    let reaches = |(_, end): &(usize, usize)| prompt_bytes == 0 || *end > prompt_bytes;
    let first = encoding.get_offsets().iter().position(reaches).unwrap_or(encoding.len());
    encoding.get_ids().iter().enumerate().map(|(at, &id)| (at >= first).then_some(id)).collect()
}

/// The pack's tokenizer, cutting at `max_tokens` (or what the model can take) and padding nothing.
///
/// # Errors
/// A file that cannot be read, or that adds more tokens of its own than the model can take.
pub fn tokenizer(pack: &Pack, max_tokens: usize) -> Result<Tokenizer, CorpusError> {
    let path = pack.tokenizer_path();
    let failed = |source| CorpusError::Tokenizer { path: path.clone(), source };
    let tokenizer = Tokenizer::from_file(&path).map_err(failed)?;
    prepared(tokenizer, &pack.manifest().layout, max_tokens)?.map_err(failed)
}

/// Its own tokens and one of each text fit in always, or there would be nothing to learn from.
fn prepared(
    mut tokenizer: Tokenizer,
    layout: &Layout,
    max_tokens: usize,
) -> Result<tokenizers::Result<Tokenizer>, CorpusError> {
    let texts = match layout.task {
        Task::SequenceClassification | Task::Regression => 2,
        Task::TokenClassification | Task::CausalLm => 1,
    };
    let added = tokenizer.get_post_processor().map_or(0, |own| own.added_tokens(texts == 2));
    let limit = layout.max_tokens;
    if limit < added.saturating_add(texts) {
        return Err(CorpusError::NoRoom { added, limit });
    }
    let max_length = max_tokens.clamp(added + texts, limit);
    if layout.task == Task::TokenClassification {
        space_before_words(&mut tokenizer);
    }
    tokenizer.with_padding(None);
    let cut = TruncationParams { max_length, ..TruncationParams::default() };
    Ok(tokenizer.with_truncation(Some(cut)).map(|_| ()).map(|()| tokenizer))
}

/// Given word by word, a byte-level vocabulary (RoBERTa's) would take each for the start of a text, and most of its
/// tokens begin with a space. Transformers likewise insists on `add_prefix_space` there.
fn space_before_words(tokenizer: &mut Tokenizer) {
    if let Some(PreTokenizerWrapper::ByteLevel(bytes)) = tokenizer.get_pre_tokenizer() {
        let spaced = ByteLevel::new(true, bytes.trim_offsets, bytes.use_regex);
        tokenizer.with_pre_tokenizer(Some(spaced));
    }
}
