//! Reads examples for a trainer from a file, in the form that the pack's task needs, with the pack's tokenizer and labels.
//!
//! | task | kind of example | target |
//! |---|---|---|
//! | sequence classification | [`Example`]: a text or a pair, and a label | the label's number in the pack |
//! | regression | [`Rated`]: a text or a pair, and numbers | the numbers, as many as the pack has |
//! | token classification | [`Tagged`]: words with a label each | a word's first token has its label's number, no other has one |
//! | causal language model | [`Passage`]: a text, perhaps after a prompt | every token of the text, and the end token |
//!
//! Every example is read and checked when the file is loaded. Its text stays in the file; memory holds only its place. When a
//! batch needs it, it is read again and tokenised, which takes a thousandth of a step's time. Texts beyond the limit are cut at
//! their end; in a pair, the longer text is cut.

use skiff_contract::ColumnNames;
use skiff_data::{Columns, DataError, Example, Index, Passage, Place, Rated, Record, Tagged};
use skiff_models::Pack;
use skiff_models::layout::Layout;
use skiff_models::pack::Manifest;
use skiff_models::task::Task;
use skiff_trainer::{Examples, Sequence, Target};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{Encoding, PostProcessor, PreTokenizerWrapper, Tokenizer, TruncationParams};

/// Maximum number of labels of the pack, and of characters of a wrong label, that an error shows.
const SHOWN: usize = 40;

/// A file's examples.
#[derive(Debug)]
pub struct Corpus {
    index: Index,
    /// Class of each example, for tasks that have one class for each example.
    classes: Vec<u32>,
    known: Known,
    tokenizer: Tokenizer,
    /// Number of rows of the model's segment embedding.
    segments: usize,
}

/// An example whose labels are the pack's numbers.
#[derive(Debug)]
pub(crate) enum Entry {
    Whole { text: String, pair: Option<String>, target: Target },
    Words { words: Vec<String>, labels: Vec<usize> },
    Passage(Passage),
}

/// A reason why a file cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The file is malformed, or has changed since it was loaded.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The pack lacks a label.
    #[error(
        "{place}: the pack does not know the label {label:?}, only {known}; make the pack with all labels of the data"
    )]
    UnknownLabel {
        /// The example.
        place: Place,
        /// The start of its label.
        label: String,
        /// The pack's labels, or the first of them.
        known: String,
    },
    /// An example has more or fewer numbers than the pack expects.
    #[error(
        "{place}: the label has {found} numbers, the pack was made for {expected}; give every example {expected}, or make the pack again"
    )]
    NumberCount {
        /// The example.
        place: Place,
        /// Number of numbers in the example.
        found: usize,
        /// Number of numbers that the pack expects.
        expected: usize,
    },
    /// The pack's tokenizer cannot be read.
    #[error("reading the tokenizer {path}", path = path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The tokenizer's error.
        source: tokenizers::Error,
    },
    /// The tokenizer's own tokens alone fill an example.
    #[error(
        "the tokenizer adds {added} tokens to every example, and the pack takes {limit} at most; make the pack again with the model's own tokenizer"
    )]
    NoRoom {
        /// Number of tokens that it adds.
        added: usize,
        /// Length of the pack's longest example in tokens.
        limit: usize,
    },
    /// A text cannot be tokenised.
    #[error(
        "{place}: the pack's tokenizer refuses the example; make the pack with the model's own tokenizer, or delete the example"
    )]
    Encode {
        /// The example.
        place: Place,
        /// The tokenizer's error.
        source: tokenizers::Error,
    },
    /// A text has no tokens left.
    #[error("{place}: the example has no tokens, because the tokenizer drops all its characters; delete the example")]
    NoTokens {
        /// The example.
        place: Place,
    },
}

impl Corpus {
    /// Reads the file at `path` for `pack`, with `columns` for names that are not the usual ones, and cuts examples to `max_tokens` tokens or the pack's limit. The tokenizer's own
    /// tokens and one token of each text always stay.
    ///
    /// # Errors
    /// A malformed file, labels or numbers that do not fit the pack, a tokenizer that cannot be read.
    pub fn load(path: &Path, columns: &Columns, pack: &Pack, max_tokens: usize) -> Result<Self, CorpusError> {
        let columns = joined_by(pack, columns);
        Self::read(path, &columns, Known::of(pack), &pack.manifest().layout, tokenizer(pack, max_tokens)?)
    }

    fn read(
        path: &Path,
        columns: &Columns,
        known: Known,
        layout: &Layout,
        tokenizer: Tokenizer,
    ) -> Result<Self, CorpusError> {
        let mut classes = Vec::new();
        let index = index(path, columns, &known, &mut |entry| {
            if let Entry::Whole { target: Target::Class(class), .. } = entry {
                classes.push(u32::try_from(class).unwrap_or(u32::MAX));
            }
        })?;
        Ok(Self { index, classes, known, tokenizer, segments: layout.segments })
    }

    /// Returns true if the path still names the loaded file and it has not changed.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.index.is_current()
    }

    fn sequence(&self, at: usize) -> Result<Sequence, CorpusError> {
        let entry = self.entry(at)?;
        let Self { tokenizer, segments, known, .. } = self;
        Ok(sequence(tokenizer, *segments, known.end, entry, &self.index.place(at))?.0)
    }

    fn entry(&self, at: usize) -> Result<Entry, CorpusError> {
        match self.known.task {
            Task::SequenceClassification => self.entry_of::<Example>(at),
            Task::Regression => self.entry_of::<Rated>(at),
            Task::TokenClassification => self.entry_of::<Tagged>(at),
            Task::CausalLm => self.entry_of::<Passage>(at),
        }
    }

    fn entry_of<R: Learnable>(&self, at: usize) -> Result<Entry, CorpusError> {
        self.index.read::<R>(at)?.entry(&self.index.place(at), &self.known)
    }
}

impl Examples for Corpus {
    fn len(&self) -> usize {
        self.index.len()
    }

    fn encode(&self, at: usize) -> Result<Sequence, Box<dyn Error + Send + Sync>> {
        Ok(self.sequence(at)?)
    }

    fn length_hint(&self, at: usize) -> usize {
        self.index.record_bytes(at)
    }

    fn class_hint(&self, at: usize) -> Option<u32> {
        self.classes.get(at).copied()
    }
}

/// Counts the examples of the file at `path` and checks them for `pack`. Keeps none in memory.
///
/// # Errors
/// The errors of [`Corpus::load`], except errors of the tokenizer.
pub fn count(path: &Path, columns: &Columns, pack: &Pack) -> Result<u64, CorpusError> {
    Ok(index(path, &joined_by(pack, columns), &Known::of(pack), &mut |_| {})?.len() as u64)
}

/// Returns the columns with the pack's separator.
pub(crate) fn joined_by(pack: &Pack, columns: &Columns) -> Columns {
    Columns { separator: Some(pack.manifest().separator.clone()), ..columns.clone() }
}

/// Indexes the examples of the file at `path`, checks each of them, and hands it to `take`.
fn index(path: &Path, columns: &Columns, known: &Known, take: &mut dyn FnMut(Entry)) -> Result<Index, CorpusError> {
    match known.task {
        Task::SequenceClassification => index_of::<Example>(path, columns, known, take),
        Task::Regression => index_of::<Rated>(path, columns, known, take),
        Task::TokenClassification => index_of::<Tagged>(path, columns, known, take),
        Task::CausalLm => index_of::<Passage>(path, columns, known, take),
    }
}

fn index_of<R: Learnable>(
    path: &Path,
    columns: &Columns,
    known: &Known,
    take: &mut dyn FnMut(Entry),
) -> Result<Index, CorpusError> {
    Index::build(path, columns, &mut |record: R, place| record.entry(place, known).map(&mut *take))
}

/// Returns the columns of the device's settings.
#[must_use]
pub fn columns(names: &ColumnNames) -> Columns {
    let ColumnNames { text, pair, prompt, label, header } = names.clone();
    Columns { text, pair, prompt, label, header, separator: None }
}

/// A pack's rules for examples: the labels and numbers that it allows, and the end of a text.
#[derive(Debug)]
struct Known {
    task: Task,
    /// Number of numbers of an example, for regression.
    numbers: usize,
    labels: Vec<String>,
    classes: BTreeMap<String, usize>,
    /// Number of the token that ends a language model's texts.
    end: Option<u32>,
}

impl Known {
    fn of(pack: &Pack) -> Self {
        let Manifest { layout, labels, end_token, .. } = pack.manifest();
        Self::new(layout, labels, end_token.as_ref().map(|token| token.id))
    }

    fn new(layout: &Layout, labels: &[String], end: Option<u32>) -> Self {
        let classes = labels.iter().cloned().zip(0..).collect();
        Self { task: layout.task, numbers: layout.classes, labels: labels.to_vec(), classes, end }
    }

    fn class(&self, label: &str, place: &Place) -> Result<usize, CorpusError> {
        self.classes.get(label).copied().ok_or_else(|| CorpusError::UnknownLabel {
            place: place.clone(),
            label: label.chars().take(SHOWN).collect(),
            known: self.shown_labels(),
        })
    }

    fn shown_labels(&self) -> String {
        let shown = self.labels.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
        match self.labels.len().saturating_sub(SHOWN) {
            0 => shown,
            more => format!("{shown} and {more} more"),
        }
    }
}

/// A kind of example that a task takes.
trait Learnable: Record {
    fn entry(self, place: &Place, known: &Known) -> Result<Entry, CorpusError>;
}

impl Learnable for Example {
    fn entry(self, place: &Place, known: &Known) -> Result<Entry, CorpusError> {
        let target = Target::Class(known.class(&self.label, place)?);
        Ok(Entry::Whole { text: self.text, pair: self.pair, target })
    }
}

impl Learnable for Rated {
    fn entry(self, place: &Place, known: &Known) -> Result<Entry, CorpusError> {
        let (found, expected) = (self.numbers.len(), known.numbers);
        if found != expected {
            return Err(CorpusError::NumberCount { place: place.clone(), found, expected });
        }
        Ok(Entry::Whole { text: self.text, pair: self.pair, target: Target::Numbers(self.numbers) })
    }
}

impl Learnable for Tagged {
    fn entry(self, place: &Place, known: &Known) -> Result<Entry, CorpusError> {
        let labels = self.labels.iter().map(|label| known.class(label, place)).collect::<Result<_, _>>()?;
        Ok(Entry::Words { words: self.words, labels })
    }
}

impl Learnable for Passage {
    fn entry(self, _: &Place, _: &Known) -> Result<Entry, CorpusError> {
        Ok(Entry::Passage(self))
    }
}

/// Tokenises an example. `segments` is the number of rows of the model's segment embedding, `last` the token that ends a language
/// model's texts.
///
/// # Errors
/// A text that the tokenizer refuses, or that has no tokens; the error names its place.
pub(crate) fn sequence(
    tokenizer: &Tokenizer,
    segments: usize,
    last: Option<u32>,
    entry: Entry,
    place: &Place,
) -> Result<(Sequence, Encoding), CorpusError> {
    let refused = |source| CorpusError::Encode { place: place.clone(), source };
    let (encoding, target) = encode(tokenizer, entry).map_err(refused)?;
    if encoding.is_empty() {
        return Err(CorpusError::NoTokens { place: place.clone() });
    }
    let types = match segments {
        0 | 1 => vec![0; encoding.len()],
        _ => encoding.get_type_ids().to_vec(),
    };
    let mut sequence = Sequence { ids: encoding.get_ids().to_vec(), types, target };
    end(&mut sequence, last, tokenizer);
    Ok((sequence, encoding))
}

/// Appends the end token to a language model's text, unless the text has it already or was cut. TRL's `SFTTrainer` does the
/// same: it appends the token, and then cuts.
fn end(Sequence { ids, types, target }: &mut Sequence, last: Option<u32>, tokenizer: &Tokenizer) {
    let (Some(end), Target::Next(next)) = (last, target) else { return };
    let room = tokenizer.get_truncation().is_none_or(|cut| ids.len() < cut.max_length);
    if room && ids.last() != Some(&end) {
        ids.push(end);
        types.push(0);
        next.push(Some(end));
    }
}

fn encode(tokenizer: &Tokenizer, entry: Entry) -> tokenizers::Result<(Encoding, Target)> {
    match entry {
        Entry::Whole { text, pair, target } => {
            let encoding = match pair {
                Some(pair) => tokenizer.encode_fast((text, pair), true),
                None => tokenizer.encode_fast(text, true),
            }?;
            Ok((encoding, target))
        }
        Entry::Words { words, labels } => {
            let encoding = tokenizer.encode(words, true)?;
            let target = Target::Tokens(first_tokens(encoding.get_word_ids(), &labels));
            Ok((encoding, target))
        }
        Entry::Passage(Passage { prompt, text }) => {
            let encoding = tokenizer.encode(format!("{prompt}{text}"), true)?;
            let target = Target::Next(after(&encoding, prompt.len()));
            Ok((encoding, target))
        }
    }
}

/// Returns a target for each token: the label of its word for a word's first token, otherwise none. `words` holds the word of
/// each token.
fn first_tokens(words: &[Option<u32>], labels: &[usize]) -> Vec<Option<usize>> {
    let before = std::iter::once(None).chain(words.iter().copied());
    let label = |(word, before): (&Option<u32>, Option<u32>)| {
        word.filter(|_| *word != before).and_then(|word| labels.get(word as usize).copied())
    };
    words.iter().zip(before).map(label).collect()
}

/// Returns a target for each token, beginning with the first token that extends beyond the prompt.
fn after(encoding: &Encoding, prompt_bytes: usize) -> Vec<Option<u32>> {
    let reaches = |(_, end): &(usize, usize)| prompt_bytes == 0 || *end > prompt_bytes;
    let first = encoding.get_offsets().iter().position(reaches).unwrap_or(encoding.len());
    encoding.get_ids().iter().enumerate().map(|(at, &id)| (at >= first).then_some(id)).collect()
}

/// Reads the pack's tokenizer. It cuts at `max_tokens` or the model's limit, and pads nothing.
///
/// # Errors
/// A file that cannot be read, or that adds more tokens of its own than the model can take.
pub fn tokenizer(pack: &Pack, max_tokens: usize) -> Result<Tokenizer, CorpusError> {
    let path = pack.tokenizer_path();
    let tokenizer = Tokenizer::from_file(&path).map_err(|source| CorpusError::Tokenizer { path, source })?;
    prepared(tokenizer, &pack.manifest().layout, max_tokens)
}

/// Leaves room for the tokenizer's own tokens and one token of each text; otherwise there would be nothing to learn from.
fn prepared(mut tokenizer: Tokenizer, layout: &Layout, max_tokens: usize) -> Result<Tokenizer, CorpusError> {
    let texts = match layout.task {
        Task::SequenceClassification | Task::Regression => 2,
        Task::TokenClassification | Task::CausalLm => 1,
    };
    let own = tokenizer.get_post_processor();
    let added = own.map_or(0, |own| own.added_tokens(false).max(own.added_tokens(texts == 2)));
    let limit = layout.max_tokens;
    if limit < added.saturating_add(texts) {
        return Err(CorpusError::NoRoom { added, limit });
    }
    let max_length = max_tokens.clamp(added + texts, limit);
    if layout.task == Task::TokenClassification {
        space_before_words(&mut tokenizer);
    }
    tokenizer.with_padding(None);
    // The pack says at which side long texts are cut; the length is the order's.
    let direction = tokenizer.get_truncation().map_or_else(Default::default, |own| own.direction);
    let cut = TruncationParams { max_length, direction, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(cut)).expect("without a stride, every length that holds the added tokens will do");
    Ok(tokenizer)
}

/// Makes a byte-level tokenizer (RoBERTa's) put a space before each word. It would otherwise treat each word as the start of a
/// text, while most tokens of its vocabulary begin with a space. Transformers likewise requires `add_prefix_space` in this case.
fn space_before_words(tokenizer: &mut Tokenizer) {
    if let Some(PreTokenizerWrapper::ByteLevel(bytes)) = tokenizer.get_pre_tokenizer() {
        let spaced = ByteLevel::new(true, bytes.trim_offsets, bytes.use_regex);
        tokenizer.with_pre_tokenizer(Some(spaced));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::io::Write;

    const LONG: usize = 64;

    fn layout(task: Task) -> Layout {
        Layout {
            task,
            classes: 2,
            heads: 1,
            key_heads: 1,
            vocabulary: 100,
            segments: 2,
            first_position: 0,
            max_tokens: LONG,
            window: None,
            relative: None,
        }
    }

    fn tokenizer_of(parts: &Value) -> Tokenizer {
        let mut whole = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": null,
        });
        for (name, part) in parts.as_object().unwrap() {
            whole[name] = part.clone();
        }
        whole.to_string().parse().unwrap()
    }

    /// BERT's: letters are tokens, a word's later ones with `##`; `[CLS]` 1, `[SEP]` 2, `a` 3, `##a` 4, `b` 5, ...
    fn bert() -> Tokenizer {
        let mut vocabulary = json!({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2});
        for (at, letter) in ('a'..='z').enumerate() {
            vocabulary[letter.to_string()] = (3 + 2 * at).into();
            vocabulary[format!("##{letter}")] = (4 + 2 * at).into();
        }
        let special = |name: &str, segment: u32| json!({"SpecialToken": {"id": name, "type_id": segment}});
        let text = |name: &str, segment: u32| json!({"Sequence": {"id": name, "type_id": segment}});
        tokenizer_of(&json!({
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                "lowercase": true,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [special("[CLS]", 0), text("A", 0), special("[SEP]", 0)],
                "pair": [special("[CLS]", 0), text("A", 0), special("[SEP]", 0), text("B", 1), special("[SEP]", 1)],
                "special_tokens": {
                    "[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
                    "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]},
                },
            },
            "model": {
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocabulary,
            },
        }))
    }

    /// A decoder's: bytes, among them `a` 1, `b` 2 and the space 3, which joins a letter after it (` a` 4, ` b` 5); `<s>` 0.
    fn bytes() -> Tokenizer {
        tokenizer_of(&json!({
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
            },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "vocab": {"<s>": 0, "a": 1, "b": 2, "Ġ": 3, "Ġa": 4, "Ġb": 5},
                "merges": ["Ġ a", "Ġ b"],
            },
        }))
    }

    /// Returns the examples of a file with these bytes.
    fn corpus_with(
        tokenizer: Tokenizer,
        layout: &Layout,
        max_tokens: usize,
        extension: &str,
        content: &str,
    ) -> Result<Corpus, CorpusError> {
        let mut file = tempfile::Builder::new().suffix(extension).tempfile().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        let labels = ["O".to_owned(), "LOC".to_owned()];
        let known = Known::new(layout, &labels, None);
        Corpus::read(file.path(), &Columns::default(), known, layout, prepared(tokenizer, layout, max_tokens)?)
    }

    fn corpus(task: Task, max_tokens: usize, content: &str) -> Result<Corpus, CorpusError> {
        let tokenizer = if task == Task::CausalLm { bytes() } else { bert() };
        corpus_with(tokenizer, &layout(task), max_tokens, ".jsonl", content)
    }

    fn only(task: Task, max_tokens: usize, content: &Value) -> Sequence {
        corpus(task, max_tokens, &content.to_string()).unwrap().sequence(0).unwrap()
    }

    fn refusal(task: Task, content: &str) -> String {
        corpus(task, LONG, content).unwrap_err().to_string()
    }

    #[test]
    fn texts_stay_in_the_file_and_a_file_that_changed_is_named() {
        let mut file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
        let long = "ab ".repeat(10_000);
        let rows: String = (0..100).map(|row| format!("LOC,{row} {long}\n")).collect();
        write!(file, "label,text\n{rows}").unwrap();
        let layout = layout(Task::SequenceClassification);
        let labels = ["O".to_owned(), "LOC".to_owned()];
        let tokenizer = prepared(bert(), &layout, LONG).unwrap();
        let known = Known::new(&layout, &labels, None);
        let corpus = Corpus::read(file.path(), &Columns::default(), known, &layout, tokenizer).unwrap();
        assert!(corpus.index.memory_bytes() <= 3_200 && corpus.is_current());
        assert_eq!(corpus.length_hint(99), "LOC,99 \n".len() + long.len());
        assert_eq!(corpus.sequence(99).unwrap().target, Target::Class(1));
        file.as_file().set_len(1_000).unwrap();
        let message = corpus.encode(99).unwrap_err().to_string();
        assert!(message.contains(".csv, line 101: the file changed"), "{message}");
        assert!(!corpus.is_current());
    }

    #[test]
    fn a_text_has_its_labels_number() {
        let sequence = only(Task::SequenceClassification, LONG, &json!({"text": "ab a", "label": "LOC"}));
        assert_eq!(sequence, Sequence { ids: vec![1, 3, 6, 3, 2], types: vec![0; 5], target: Target::Class(1) });
    }

    #[test]
    fn classes_of_whole_texts_are_known_without_reading_them_again() {
        let rows = "{\"text\": \"a\", \"label\": \"LOC\"}\n{\"text\": \"a\", \"label\": \"O\"}";
        let classes = corpus(Task::SequenceClassification, LONG, rows).unwrap();
        assert_eq!([classes.class_hint(0), classes.class_hint(1)], [Some(1), Some(0)]);
        let words = json!({"tokens": ["a"], "labels": ["O"]}).to_string();
        assert_eq!(corpus(Task::TokenClassification, LONG, &words).unwrap().class_hint(0), None);
    }

    #[test]
    fn the_second_text_of_a_pair_is_the_second_segment() {
        let pair = json!({"text": "ab", "text_pair": "b", "label": "O"});
        let sequence = only(Task::SequenceClassification, LONG, &pair);
        let expected =
            Sequence { ids: vec![1, 3, 6, 2, 5, 2], types: vec![0, 0, 0, 0, 1, 1], target: Target::Class(0) };
        assert_eq!(sequence, expected);
    }

    #[test]
    fn a_model_without_two_segments_sees_none() {
        let pair = json!({"text": "a", "text_pair": "b", "label": "O"}).to_string();
        for segments in [0, 1] {
            let layout = Layout { segments, ..layout(Task::SequenceClassification) };
            let sequence = corpus_with(bert(), &layout, LONG, ".jsonl", &pair).unwrap().sequence(0).unwrap();
            assert_eq!(sequence.types, [0; 5]);
        }
    }

    #[test]
    fn numbers_are_taken_as_they_are() {
        let sequence = only(Task::Regression, LONG, &json!({"text": "a", "text_pair": "b", "label": [0.5, -2]}));
        assert_eq!((sequence.ids.len(), sequence.target), (5, Target::Numbers(vec![0.5, -2.0])));
    }

    #[test]
    fn the_label_of_a_word_is_at_its_first_token() {
        let words = json!({"tokens": ["abc", "B", "a-b"], "labels": ["O", "LOC", "LOC"]});
        let sequence = only(Task::TokenClassification, LONG, &words);
        assert_eq!(sequence.ids, [1, 3, 6, 8, 5, 3, 0, 5, 2]);
        let target = [None, Some(0), None, None, Some(1), Some(1), None, None, None];
        assert_eq!(sequence.target, Target::Tokens(target.into()));
    }

    #[test]
    fn a_word_that_is_dropped_takes_its_label_along() {
        let words = json!({"tokens": ["a", "\u{1}", "b"], "labels": ["O", "LOC", "O"]});
        let sequence = only(Task::TokenClassification, LONG, &words);
        assert_eq!(sequence.target, Target::Tokens(vec![None, Some(0), Some(0), None]));
    }

    #[test]
    fn words_of_a_byte_vocabulary_stand_after_a_space() {
        let layout = layout(Task::TokenClassification);
        let words = "a\tLOC\nab\tO\n";
        let sequence = corpus_with(bytes(), &layout, LONG, ".conll", words).unwrap().sequence(0).unwrap();
        assert_eq!(sequence.ids, [0, 4, 4, 2]);
        assert_eq!(sequence.target, Target::Tokens(vec![None, Some(1), Some(0), None]));
    }

    #[test]
    fn every_token_of_a_plain_text_is_to_be_told() {
        let sequence = only(Task::CausalLm, LONG, &json!({"text": "ab a"}));
        assert_eq!(sequence.ids, [0, 1, 2, 4]);
        assert_eq!(sequence.target, Target::Next(vec![Some(0), Some(1), Some(2), Some(4)]));
    }

    #[test]
    fn nothing_of_a_prompt_is_to_be_told() {
        for (prompt, completion, target) in [
            ("ab", " ab", vec![None, None, None, Some(4), Some(2)]),
            ("ab ", "ab", vec![None, None, None, Some(4), Some(2)]),
            ("a", "b", vec![None, None, Some(2)]),
            ("", "ab", vec![Some(0), Some(1), Some(2)]),
        ] {
            let sequence = only(Task::CausalLm, LONG, &json!({"prompt": prompt, "completion": completion}));
            assert_eq!(sequence.target, Target::Next(target), "{prompt:?} {completion:?}");
        }
    }

    /// Returns the sequence of one example for a language model whose texts end in token 3.
    fn ended(max_tokens: usize, content: &Value) -> Sequence {
        let mut corpus = corpus(Task::CausalLm, max_tokens, &content.to_string()).unwrap();
        corpus.known.end = Some(3);
        corpus.sequence(0).unwrap()
    }

    #[test]
    fn a_text_and_a_completion_end_in_the_end_token_once() {
        let completion = ended(LONG, &json!({"prompt": "ab", "completion": " ab"}));
        assert_eq!(completion.ids.last(), Some(&3));
        assert_eq!(completion.target, Target::Next(vec![None, None, None, Some(4), Some(2), Some(3)]));
        let text = ended(LONG, &json!({"text": "ab a"}));
        assert_eq!((text.ids, text.types.len()), (vec![0, 1, 2, 4, 3], 5));
        let mut again = corpus(Task::CausalLm, LONG, &json!({"text": "ab a"}).to_string()).unwrap();
        again.known.end = Some(4);
        assert_eq!(again.sequence(0).unwrap().ids, [0, 1, 2, 4], "the text ends in it already");
    }

    #[test]
    fn a_text_that_was_cut_or_fills_the_limit_has_no_end_token() {
        assert_eq!(ended(4, &json!({"text": "ab a"})).ids, [0, 1, 2, 4]);
        assert_eq!(ended(3, &json!({"text": "ab a"})).ids, [0, 1, 2]);
        assert_eq!(ended(5, &json!({"text": "ab a"})).ids, [0, 1, 2, 4, 3]);
    }

    #[test]
    fn a_title_and_a_description_are_joined_with_the_packs_separator() {
        let mut file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
        file.write_all(b"label,title,description\nO,ab,a\n").unwrap();
        let layout = layout(Task::SequenceClassification);
        let ids = |separator: &str| {
            let columns = Columns { separator: Some(separator.to_owned()), ..Columns::default() };
            let known = Known::new(&layout, &["O".to_owned()], None);
            let tokenizer = prepared(bert(), &layout, LONG).unwrap();
            Corpus::read(file.path(), &columns, known, &layout, tokenizer).unwrap().sequence(0).unwrap().ids
        };
        assert_eq!(ids(" "), [1, 3, 6, 3, 2]);
        assert_eq!(ids(" b "), [1, 3, 6, 5, 3, 2]);
    }

    #[test]
    fn a_completion_beyond_the_limit_leaves_nothing_to_tell() {
        let sequence = only(Task::CausalLm, 3, &json!({"prompt": "abab", "completion": "ab"}));
        assert_eq!(sequence.target, Target::Next(vec![None; 3]));
    }

    #[test]
    fn what_is_too_long_is_cut_and_keeps_its_added_tokens() {
        let sequence = only(Task::SequenceClassification, 6, &json!({"text": "a b c d e f", "label": "O"}));
        assert_eq!(sequence.ids, [1, 3, 5, 7, 9, 2]);
        let pair = json!({"text": "a", "text_pair": "b c d e f", "label": "O"});
        assert_eq!(only(Task::SequenceClassification, 6, &pair).ids, [1, 3, 2, 5, 7, 2]);
        assert_eq!(only(Task::SequenceClassification, 0, &pair).ids, [1, 3, 2, 5, 2]);
        let words = json!({"tokens": ["ab", "ab"], "labels": ["O", "LOC"]});
        let sequence = only(Task::TokenClassification, 4, &words);
        assert_eq!(sequence.target, Target::Tokens(vec![None, Some(0), None, None]));
    }

    #[test]
    fn the_packs_limit_holds_whatever_is_asked_for() {
        let long = json!({"text": "a ".repeat(3 * LONG), "label": "O"});
        assert_eq!(only(Task::SequenceClassification, usize::MAX, &long).ids.len(), LONG);
    }

    #[test]
    fn a_long_text_is_cut_at_the_side_that_the_tokenizer_says() {
        let mut left = bert();
        let direction = tokenizers::TruncationDirection::Left;
        left.with_truncation(Some(TruncationParams { direction, ..TruncationParams::default() })).unwrap();
        let ids = |tokenizer: Tokenizer| {
            let content = r#"{"label": "O", "text": "abcdefgh"}"#;
            let corpus = corpus_with(tokenizer, &layout(Task::SequenceClassification), 5, ".jsonl", content).unwrap();
            corpus.sequence(0).unwrap().ids
        };
        let whole = bert().encode_fast("abcdefgh", true).unwrap().get_ids().to_vec();
        assert_eq!(ids(bert()), [&whole[..4], &whole[9..]].concat());
        assert_eq!(ids(left), [&whole[..1], &whole[6..]].concat());
    }

    #[test]
    fn a_tokenizer_that_leaves_no_room_for_text_is_refused() {
        let four = |task| Layout { max_tokens: 4, ..layout(task) };
        let error = prepared(bert(), &four(Task::SequenceClassification), 4).unwrap_err();
        assert!(matches!(error, CorpusError::NoRoom { added: 3, limit: 4 }), "{error}");
        prepared(bert(), &four(Task::TokenClassification), 4).unwrap();
    }

    #[test]
    fn an_unknown_label_is_named_with_its_line_and_the_known_ones() {
        let message = refusal(
            Task::SequenceClassification,
            "{\"text\": \"a\", \"label\": \"O\"}\n\n{\"text\": \"a\", \"label\": \"PER\"}",
        );
        assert!(message.contains(".jsonl, line 3") && message.contains("label \"PER\", only O, LOC"), "{message}");
        let message = refusal(Task::TokenClassification, r#"{"tokens": ["a", "b"], "labels": ["O", "PER"]}"#);
        assert!(message.contains(".jsonl, line 1") && message.contains("\"PER\""), "{message}");
    }

    #[test]
    fn another_number_of_numbers_is_named_with_its_line() {
        let message =
            refusal(Task::Regression, "{\"text\": \"a\", \"label\": [1, 2]}\n{\"text\": \"a\", \"label\": 1}");
        assert!(message.contains(".jsonl, line 2") && message.contains("has 1 numbers"), "{message}");
        assert!(message.contains("give every example 2"), "{message}");
    }

    #[test]
    fn a_text_without_tokens_is_named_with_its_line() {
        let bare = tokenizer_of(&json!({
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                "lowercase": true,
            },
            "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
        }));
        let lines = "{\"text\": \"a\"}\n{\"text\": \"\\u0001\"}";
        let corpus = corpus_with(bare, &layout(Task::CausalLm), LONG, ".jsonl", lines).unwrap();
        corpus.sequence(0).unwrap();
        let message = corpus.sequence(1).unwrap_err().to_string();
        assert!(message.contains(".jsonl, line 2: the example has no tokens"), "{message}");
    }

    #[test]
    fn a_text_that_the_tokenizer_refuses_is_named_with_its_line() {
        let no_unknown = tokenizer_of(&json!({
            "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"},
        }));
        let corpus = corpus_with(no_unknown, &layout(Task::CausalLm), LONG, ".txt", "a\n\nb\n").unwrap();
        let message = corpus.sequence(1).unwrap_err().to_string();
        assert!(message.contains(".txt, line 3: the pack's tokenizer refuses"), "{message}");
    }

    #[test]
    fn a_file_of_another_task_is_refused() {
        let words = r#"{"tokens": ["a"], "labels": ["O"]}"#;
        let text = r#"{"text": "a", "label": "O"}"#;
        assert!(refusal(Task::SequenceClassification, words).contains("found the keys"));
        assert!(refusal(Task::Regression, text).contains("expected a finite number"));
        assert!(refusal(Task::TokenClassification, text).contains("found the keys"));
        assert!(refusal(Task::CausalLm, words).contains("found the keys"));
        for task in Task::ALL {
            assert!(refusal(task, "").contains("holds no examples"));
        }
    }

    #[test]
    fn the_real_pairs_are_encoded_whole() {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let (file, tokenizer) = (tree.join("../shared/data/mrpc/test.txt"), tree.join(".cache/minilm/tokenizer.json"));
        if !(file.is_file() && tokenizer.is_file()) {
            // Writes to the stream itself, because the test runner hides the printed lines of a passing test.
            let _ = writeln!(std::io::stderr(), "{} or MiniLM is absent: real pairs are NOT tested", file.display());
            return;
        }
        let layout = Layout { max_tokens: 128, ..layout(Task::SequenceClassification) };
        let labels = ["0".to_owned(), "1".to_owned()];
        let tokenizer = prepared(Tokenizer::from_file(tokenizer).unwrap(), &layout, 128).unwrap();
        let known = Known::new(&layout, &labels, None);
        let corpus = Corpus::read(&file, &Columns::default(), known, &layout, tokenizer).unwrap();
        assert_eq!(corpus.len(), 1_725);
        let mut paraphrases = 0;
        for at in 0..corpus.len() {
            let Sequence { ids, types, target } = corpus.sequence(at).unwrap();
            assert_eq!((ids[0], ids.iter().filter(|&&id| id == 102).count()), (101, 2), "example {at}");
            let second = types.iter().position(|&segment| segment == 1).unwrap();
            assert_eq!(ids[second - 1], 102, "example {at}");
            assert!(types[second..].iter().all(|&segment| segment == 1) && ids.len() <= 128, "example {at}");
            paraphrases += usize::from(target == Target::Class(1));
        }
        assert_eq!(paraphrases, 1_147);
    }

    fn words() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec("[a-z]{1,5}", 1..12)
    }

    /// Draws words of one token each.
    fn letters() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec("[a-z]", 1..40)
    }

    proptest! {
        #[test]
        fn the_labels_at_tokens_are_a_start_of_those_of_the_words(words in words(), max_tokens in 0_usize..LONG) {
            let numbers: Vec<usize> = words.iter().map(|word| word.len() % 2).collect();
            let labels: Vec<&str> = numbers.iter().map(|&number| ["O", "LOC"][number]).collect();
            let example = json!({"tokens": words, "labels": labels});
            let Sequence { ids, types, target } = only(Task::TokenClassification, max_tokens, &example);
            let Target::Tokens(target) = target else { panic!("{target:?}") };
            prop_assert_eq!((types.len(), target.len()), (ids.len(), ids.len()));
            let found: Vec<usize> = target.into_iter().flatten().collect();
            prop_assert_eq!(&found, &numbers[..found.len()]);
            let all = words.iter().map(String::len).sum::<usize>() + 2;
            prop_assert_eq!(ids.len(), all.min(max_tokens.max(3)));
            prop_assert!(all > max_tokens || found.len() == numbers.len());
        }

        #[test]
        fn of_a_pair_the_longer_is_cut(first in letters(), second in letters(), max_tokens in 0_usize..LONG) {
            let pair = json!({"text": first.join(" "), "text_pair": second.join(" "), "label": "O"});
            let types = only(Task::SequenceClassification, max_tokens, &pair).types;
            let kept_second = types.iter().filter(|&&segment| segment == 1).count() - 1;
            let kept_first = types.len() - kept_second - 3;
            let room = max_tokens.max(5) - 3;
            prop_assert_eq!(kept_first + kept_second, room.min(first.len() + second.len()));
            for (kept, length) in [(kept_first, first.len()), (kept_second, second.len())] {
                prop_assert!(kept >= length.min(room / 2), "{} of {} in {}", kept, length, room);
            }
        }

        #[test]
        fn a_completion_is_told_from_its_first_token_to_the_last(prompt in "[ab ]{1,20}", text in "[ab]{1,20}") {
            let Sequence { ids, target, .. } = only(Task::CausalLm, LONG, &json!({"prompt": prompt, "completion": text}));
            let Target::Next(labels) = target else { panic!("{target:?}") };
            let told: Vec<u32> = labels.iter().copied().flatten().collect();
            prop_assert_eq!(told.len(), text.len());
            prop_assert_eq!(&told, &ids[ids.len() - told.len()..]);
            prop_assert!(labels[..ids.len() - told.len()].iter().all(Option::is_none));
        }

        #[test]
        fn as_many_numbers_as_the_pack_has_and_no_others(numbers in proptest::collection::vec(-1e6_f32..1e6, 1..5)) {
            let found = corpus(Task::Regression, LONG, &json!({"text": "a", "label": numbers}).to_string());
            match found {
                Ok(corpus) => prop_assert_eq!(corpus.sequence(0).unwrap().target, Target::Numbers(numbers)),
                Err(CorpusError::NumberCount { found, .. }) => prop_assert!(found == numbers.len() && found != 2),
                Err(error) => panic!("{error}"),
            }
        }
    }
}
