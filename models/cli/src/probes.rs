//! Makes texts that show whether two tokenizers agree, from their own vocabulary in each of its scripts.

use std::collections::BTreeMap;
use tokenizers::{Encoding, Tokenizer};

/// Number of words of each script.
const WORDS: usize = 12;
/// Number of added tokens.
const ADDED: usize = 32;
/// Longest word, in bytes. Longer entries are not words.
const LONGEST: usize = 64;

/// First and last character of each script that is probed with its own words. All other characters form one more group.
const SCRIPTS: [(char, char); 16] = [
    ('A', 'Z'),
    ('a', 'z'),
    ('\u{c0}', '\u{24f}'),
    ('\u{370}', '\u{3ff}'),
    ('\u{400}', '\u{52f}'),
    ('\u{590}', '\u{5ff}'),
    ('\u{600}', '\u{6ff}'),
    ('\u{900}', '\u{97f}'),
    ('\u{980}', '\u{dff}'),
    ('\u{e00}', '\u{e7f}'),
    ('\u{1e00}', '\u{1eff}'),
    ('\u{3040}', '\u{309f}'),
    ('\u{30a0}', '\u{30ff}'),
    ('\u{3400}', '\u{9fff}'),
    ('\u{ac00}', '\u{d7af}'),
    ('\u{1f000}', '\u{1ffff}'),
];

/// Result of a comparison.
pub(crate) struct Found {
    /// Number of texts for which the tokens or segments differ.
    pub(crate) different: usize,
    /// The shortest of these texts.
    pub(crate) example: Option<Different>,
}

/// A text on which two tokenizers disagree.
pub(crate) struct Different {
    pub(crate) text: String,
    pub(crate) alone: Vec<u32>,
    pub(crate) resolved: Vec<u32>,
}

/// Returns probe texts: words of the vocabulary in several forms, and added tokens in a sentence.
pub(crate) fn texts(tokenizer: &Tokenizer) -> Vec<String> {
    let mut texts: Vec<String> = words(tokenizer).values().flat_map(|words| of_script(words)).collect();
    let added = tokenizer.get_added_tokens_decoder();
    let mut added: Vec<_> = added.into_iter().map(|(id, token)| (id, token.content)).collect();
    // New tokens have the highest numbers.
    added.sort_unstable_by(|one, other| other.cmp(one));
    for (_, token) in added.into_iter().take(ADDED) {
        texts.extend([token.clone(), format!("a{token}b"), format!("a {token} b"), token.to_lowercase()]);
    }
    texts.extend(
        ["  two  spaces\tand\r\nlines ", "``quotes'' \"1,234.5\" x@y.z", "\u{fb01}\u{bd}\u{2460}\u{ff21}"]
            .map(str::to_owned),
    );
    texts
}

fn of_script(words: &[String]) -> Vec<String> {
    let mut texts = Vec::new();
    for word in words {
        let mut capital = word.chars();
        let capital = capital.next().into_iter().flat_map(char::to_uppercase).chain(capital).collect();
        let accent = format!("{word}\u{301}");
        texts.extend([
            word.clone(),
            word.to_uppercase(),
            capital,
            accent,
            format!("{word},{word}!"),
            format!(" {word}"),
        ]);
    }
    let sentence = words.join(" ");
    texts.extend([sentence.to_uppercase(), sentence]);
    texts
}

/// Returns words of the vocabulary for each script, evenly over the vocabulary.
fn words(tokenizer: &Tokenizer) -> BTreeMap<usize, Vec<String>> {
    let mut entries: Vec<(u32, String)> = tokenizer.get_vocab(false).into_iter().map(|(word, id)| (id, word)).collect();
    entries.sort_unstable();
    let mut all: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (id, entry) in entries {
        let decoded = tokenizer.decode(&[id], false).unwrap_or(entry);
        let word = decoded.trim_start_matches("##").trim_matches(['\u{2581}', ' ']);
        if let Some(first) = word.chars().next().filter(|first| first.is_alphabetic() || *first > '\u{1f000}')
            && word.len() <= LONGEST
            && !word.contains('\u{fffd}')
        {
            all.entry(script(first)).or_default().push(word.to_owned());
        }
    }
    for words in all.values_mut() {
        let step = words.len().div_ceil(WORDS).max(1);
        *words = words.iter().step_by(step).cloned().collect();
    }
    all
}

fn script(letter: char) -> usize {
    SCRIPTS.iter().position(|(first, last)| (*first..=*last).contains(&letter)).unwrap_or(SCRIPTS.len())
}

/// Encodes each text with both tokenizers, and two of them as a pair. A text that one of them cannot encode counts as different.
pub(crate) fn compare(alone: &Tokenizer, resolved: &Tokenizer, texts: &[String]) -> Found {
    let encode = |tokenizer: &Tokenizer, text: &str| {
        let single = tokenizer.encode_fast(text, true).ok()?;
        let pair = tokenizer.encode_fast((text, "a b"), true).ok()?;
        Some([single, pair])
    };
    let parts = |encodings: &[Encoding; 2]| {
        encodings.each_ref().map(|one| (one.get_ids().to_vec(), one.get_type_ids().to_vec()))
    };
    let mut tokenizers = [alone.clone(), resolved.clone()];
    for tokenizer in &mut tokenizers {
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).expect("no truncation is always possible");
    }
    let mut found = Found { different: 0, example: None };
    for text in texts {
        let [alone, resolved] = tokenizers.each_ref().map(|tokenizer| encode(tokenizer, text));
        if alone.as_ref().map(parts) == resolved.as_ref().map(parts) {
            continue;
        }
        found.different += 1;
        if found.example.as_ref().is_none_or(|example| text.len() < example.text.len()) {
            let ids =
                |encodings: Option<[Encoding; 2]>| encodings.map_or_else(Vec::new, |[one, _]| one.get_ids().to_vec());
            found.example = Some(Different { text: text.clone(), alone: ids(alone), resolved: ids(resolved) });
        }
    }
    found
}
