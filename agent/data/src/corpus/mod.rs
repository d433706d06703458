//! The demo's own data: commands to a home assistant, generated from a grammar, so that nothing has to be downloaded.
//!
//! - `intents`: the templates, of training and test, as a table
//! - `slots`: the values in them, as a table
//! - `grammar`: turns a template into words
//! - `noise`: manners, typing errors, errors of speech recognition
//!
//! The test part comes from templates that never occur in training. It therefore measures whether the model learnt the
//! meaning rather than the templates.

mod grammar;
mod intents;
mod noise;
mod slots;

use crate::example::Example;
use grammar::Template;
use intents::{INTENTS, Intent};
use skiff_base::random::Random;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// The size and the seed of a corpus.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Random seed; the same seed gives the same corpus on every platform.
    pub seed: u64,
    /// Number of training examples; the numbers of the intents differ by at most one.
    pub train: usize,
    /// Number of test examples.
    pub test: usize,
}

impl Default for GenerateOptions {
    /// Returns 4,800 and 1,000 examples with seed 1.
    fn default() -> Self {
        Self { seed: 1, train: 4_800, test: 1_000 }
    }
}

/// Commands and their intents; no command occurs twice, not even with other capitals or marks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Corpus {
    /// Training examples in drawn order, from the training templates.
    pub train: Vec<Example>,
    /// Test examples in drawn order, from the test templates.
    pub test: Vec<Example>,
}

/// Reason why a corpus could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The grammar ran out of different commands.
    #[error("the grammar has only {found} different commands for {intent}: ask for fewer examples")]
    Exhausted {
        /// The intent.
        intent: &'static str,
        /// Number of different commands that the grammar gave.
        found: usize,
    },
    /// A file could not be written.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Generates a corpus from the grammar.
///
/// # Errors
/// [`CorpusError::Exhausted`] if the grammar has fewer different commands than asked for; the default is far from that.
pub fn generate(options: &GenerateOptions) -> Result<Corpus, CorpusError> {
    let examples = |utterances: Vec<Utterance>| utterances.into_iter().map(|utterance| utterance.example).collect();
    let (train, test) = draw(options)?;
    Ok(Corpus { train: examples(train), test: examples(test) })
}

impl Corpus {
    /// Writes `train.jsonl` and `test.jsonl` into `folder`. Each line is an object with `id`, `label` and `text`, as in HWU64.
    ///
    /// # Errors
    /// [`CorpusError::Write`] with the file.
    pub fn write(&self, folder: &Path) -> Result<(), CorpusError> {
        std::fs::create_dir_all(folder).map_err(|source| CorpusError::Write { path: folder.to_owned(), source })?;
        write_part(&folder.join("train.jsonl"), &self.train)?;
        write_part(&folder.join("test.jsonl"), &self.test)
    }
}

fn write_part(path: &Path, examples: &[Example]) -> Result<(), CorpusError> {
    let lines: String = examples
        .iter()
        .enumerate()
        .map(|(at, Example { text, label, pair: _ })| {
            format!("{}\n", serde_json::json!({"id": (at + 1).to_string(), "label": label, "text": text}))
        })
        .collect();
    std::fs::write(path, lines).map_err(|source| CorpusError::Write { path: path.to_owned(), source })
}

/// An example and the template it comes from.
struct Utterance {
    example: Example,
    #[cfg_attr(not(test), expect(dead_code, reason = "a test checks the test part by it"))]
    template: &'static str,
}

fn draw(options: &GenerateOptions) -> Result<(Vec<Utterance>, Vec<Utterance>), CorpusError> {
    let mut random = Random::new(options.seed);
    let mut known = BTreeSet::new();
    let train = draw_part(options.train, |intent| intent.train, &mut known, &mut random)?;
    let test = draw_part(options.test, |intent| intent.test, &mut known, &mut random)?;
    Ok((train, test))
}

fn draw_part(
    count: usize,
    templates: fn(&Intent) -> &'static [&'static str],
    known: &mut BTreeSet<String>,
    random: &mut Random,
) -> Result<Vec<Utterance>, CorpusError> {
    let mut utterances = Vec::with_capacity(count);
    for at in 0..count {
        let intent = &INTENTS[at % INTENTS.len()];
        let exhausted = CorpusError::Exhausted { intent: intent.name, found: at / INTENTS.len() };
        utterances.push(draw_new(intent, templates(intent), known, random).ok_or(exhausted)?);
    }
    random.shuffle(&mut utterances);
    Ok(utterances)
}

/// Draws an utterance that is not known yet, and adds it to the known ones; `None` after a thousand tries.
fn draw_new(
    intent: &Intent,
    templates: &[&'static str],
    known: &mut BTreeSet<String>,
    random: &mut Random,
) -> Option<Utterance> {
    (0..1_000).find_map(|_| {
        let template: &'static str = random.choose(templates).copied()?;
        let parsed = Template::parse(template);
        let words = parsed.draw(random);
        let text = noise::add(&words, parsed.is_order, random);
        let example = Example { text, pair: None, label: intent.name.to_owned() };
        known.insert(essence(&example.text)).then_some(Utterance { example, template })
    })
}

/// Returns the lowercase letters and digits of a text. Readers see no difference between two commands whose letters and digits
/// are equal.
fn essence(text: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || c.is_whitespace();
    text.to_lowercase().chars().filter(kept).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use crate::example::labels;
    use crate::folder::dataset;
    use crate::reader::read;
    use std::collections::BTreeMap;

    fn small(seed: u64) -> GenerateOptions {
        GenerateOptions { seed, train: 480, test: 120 }
    }

    #[test]
    fn the_test_part_comes_from_templates_that_never_occur_in_training() {
        let (train, test) = draw(&GenerateOptions::default()).unwrap();
        let templates = |part: &[Utterance]| part.iter().map(|utterance| utterance.template).collect::<BTreeSet<_>>();
        assert!(templates(&train).is_disjoint(&templates(&test)));
        let all = |templates: fn(&Intent) -> usize| INTENTS.iter().map(templates).sum::<usize>();
        assert_eq!(templates(&train).len(), all(|intent| intent.train.len()));
        assert_eq!(templates(&test).len(), all(|intent| intent.test.len()));
    }

    #[test]
    fn no_command_occurs_twice_and_every_intent_is_as_frequent() {
        let corpus = generate(&GenerateOptions::default()).unwrap();
        assert_eq!((corpus.train.len(), corpus.test.len()), (4_800, 1_000));
        let distinct: BTreeSet<String> =
            corpus.train.iter().chain(&corpus.test).map(|example| essence(&example.text)).collect();
        assert_eq!(distinct.len(), 5_800);
        for (part, least) in [(&corpus.train, 200), (&corpus.test, 41)] {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            part.iter().for_each(|example| *counts.entry(&example.label).or_default() += 1);
            assert_eq!(counts.len(), 24);
            assert!(counts.values().all(|&count| count == least || count == least + 1), "{counts:?}");
        }
        assert_eq!(labels(&corpus.train), labels(&corpus.test));
    }

    #[test]
    fn the_same_seed_gives_the_same_corpus_and_another_seed_another() {
        let corpus = generate(&small(7)).unwrap();
        assert_eq!(generate(&small(7)).unwrap(), corpus);
        assert_ne!(generate(&small(8)).unwrap(), corpus);
    }

    #[test]
    fn this_seed_gives_these_commands_on_every_platform() {
        let corpus = generate(&GenerateOptions::default()).unwrap();
        let texts: Vec<&str> = corpus.train[..3].iter().map(|example| example.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "ok am i bysy on sunday for me",
                "would you set the thermostat to 72 degrees",
                "you know put orange juice and milk on the packing list"
            ]
        );
    }

    #[test]
    fn a_corpus_five_times_as_large_is_possible() {
        let corpus = generate(&GenerateOptions { seed: 1, train: 24_000, test: 4_800 }).unwrap();
        assert_eq!((corpus.train.len(), corpus.test.len()), (24_000, 4_800));
    }

    #[test]
    fn templates_without_another_command_are_refused_by_the_name_of_their_intent() {
        let error = draw_part(30, |_| &[], &mut BTreeSet::new(), &mut Random::new(1)).err().unwrap();
        assert!(matches!(error, CorpusError::Exhausted { intent: "alarm_set", found: 0 }), "{error}");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let corpus = generate(&small(3)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        corpus.write(folder.path()).unwrap();
        let set = dataset(folder.path()).unwrap();
        assert_eq!((read(&set.train).unwrap(), read(&set.test).unwrap()), (corpus.train, corpus.test));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = generate(&small(1)).unwrap().write(file.path()).unwrap_err();
        assert!(matches!(error, CorpusError::Write { .. }));
    }

    /// Checks that the corpus can be learnt, but not by counting words alone: naive Bayes (Laplace) finds most intents of the
    /// test part and misses some.
    #[test]
    fn counting_words_is_neither_hopeless_nor_enough() {
        let corpus = generate(&GenerateOptions::default()).unwrap();
        let accuracy = naive_bayes_accuracy(&corpus);
        assert!((0.6..0.95).contains(&accuracy), "{accuracy}");
    }

    fn naive_bayes_accuracy(corpus: &Corpus) -> f64 {
        let mut counts: BTreeMap<&str, BTreeMap<String, f64>> = BTreeMap::new();
        let words = |text: &str| essence(text).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for example in &corpus.train {
            for word in words(&example.text) {
                *counts.entry(&example.label).or_default().entry(word).or_default() += 1.0;
            }
        }
        let vocabulary = counts.values().flat_map(BTreeMap::keys).collect::<BTreeSet<_>>().len() as f64;
        let score = |label: &BTreeMap<String, f64>, text: &str| {
            let total: f64 = label.values().sum::<f64>() + vocabulary;
            words(text).iter().map(|word| ((label.get(word).copied().unwrap_or(0.0) + 1.0) / total).ln()).sum::<f64>()
        };
        let right = corpus.test.iter().filter(|example| {
            let best = counts.iter().max_by(|a, b| score(a.1, &example.text).total_cmp(&score(b.1, &example.text)));
            best.is_some_and(|(label, _)| *label == example.label)
        });
        right.count() as f64 / corpus.test.len() as f64
    }
}
