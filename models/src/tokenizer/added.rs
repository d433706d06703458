//! Added tokens, which a tokenizer finds in a text before all others, and their numbers.

use serde_json::{Value, json};
use std::collections::BTreeMap;

/// An added token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Token {
    pub(super) content: String,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    /// Whether the tokenizer finds the token in normalised text. `None` means true unless the token is special.
    pub(super) normalized: Option<bool>,
    pub(super) special: bool,
}

impl Token {
    /// Returns a token that the tokenizer finds in the text before normalisation.
    pub(super) fn special(content: &str) -> Self {
        Self {
            content: content.to_owned(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: None,
            special: true,
        }
    }

    /// Reads a token from an object with `content`.
    pub(super) fn read(value: &Value) -> Option<Self> {
        let flag = |name: &str| match value.get(name) {
            None => Some(None),
            Some(value) => value.as_bool().map(Some),
        };
        Some(Self {
            content: value.get("content")?.as_str()?.to_owned(),
            single_word: flag("single_word")?.unwrap_or(false),
            lstrip: flag("lstrip")?.unwrap_or(false),
            rstrip: flag("rstrip")?.unwrap_or(false),
            normalized: flag("normalized")?,
            special: flag("special")?.unwrap_or(false),
        })
    }
}

/// The added tokens of a tokenizer, numbered like in the tokenizers library: a token of the vocabulary keeps its number, others
/// follow after the last one.
pub(super) struct Added {
    vocabulary: BTreeMap<String, u32>,
    size: u32,
    by_id: BTreeMap<u32, Token>,
    ids: BTreeMap<String, u32>,
}

impl Added {
    /// Returns the added tokens of `tokenizer`. If `keep` is false, the list starts empty and has only the numbers of the
    /// vocabulary.
    pub(super) fn of(tokenizer: &Value, keep: bool) -> Self {
        let vocabulary = vocabulary(tokenizer);
        let size = match tokenizer.pointer("/model/vocab") {
            Some(Value::Array(pieces)) => pieces.len() as u32,
            Some(_) | None => vocabulary.len() as u32,
        };
        let mut added = Self { vocabulary, size, by_id: BTreeMap::new(), ids: BTreeMap::new() };
        if keep {
            added.add(&own(tokenizer));
        }
        added
    }

    /// Adds tokens in their order. A token that exists already gets the new properties.
    pub(super) fn add(&mut self, tokens: &[Token]) {
        let after = self.by_id.keys().next_back().map_or(0, |last| last + 1);
        let mut next = after.max(self.size);
        for token in tokens.iter().filter(|token| !token.content.is_empty()) {
            let id = self.id(&token.content).unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            self.ids.insert(token.content.clone(), id);
            self.by_id.insert(id, token.clone());
        }
    }

    /// Removes tokens with numbers of at least `limit` for which `remove` is true.
    pub(super) fn remove_from(&mut self, limit: u64, remove: impl Fn(&str) -> bool) {
        self.by_id.retain(|id, token| u64::from(*id) < limit || !remove(&token.content));
    }

    /// Returns a token's number.
    pub(super) fn id(&self, content: &str) -> Option<u32> {
        self.ids.get(content).or_else(|| self.vocabulary.get(content)).copied()
    }

    pub(super) fn contains(&self, content: &str) -> bool {
        self.ids.contains_key(content)
    }

    /// Returns the entries of `added_tokens` in `tokenizer.json`.
    pub(super) fn to_json(&self) -> Value {
        let entry = |(id, token): (&u32, &Token)| {
            json!({
                "id": id,
                "content": token.content,
                "single_word": token.single_word,
                "lstrip": token.lstrip,
                "rstrip": token.rstrip,
                "normalized": token.normalized.unwrap_or(!token.special),
                "special": token.special,
            })
        };
        self.by_id.iter().map(entry).collect()
    }
}

/// Returns the numbers of a vocabulary: an object of numbers, or pieces with scores.
fn vocabulary(tokenizer: &Value) -> BTreeMap<String, u32> {
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    match tokenizer.pointer("/model/vocab") {
        Some(Value::Object(words)) => words.iter().filter_map(|(word, id)| Some((word.clone(), number(id)?))).collect(),
        Some(Value::Array(pieces)) => {
            let piece = |(id, piece): (u32, &Value)| Some((piece.get(0)?.as_str()?.to_owned(), id));
            (0..).zip(pieces).filter_map(piece).collect()
        }
        Some(_) | None => BTreeMap::new(),
    }
}

/// Returns the added tokens in a `tokenizer.json`.
fn own(tokenizer: &Value) -> Vec<Token> {
    let tokens = tokenizer.get("added_tokens").and_then(Value::as_array);
    tokens.into_iter().flatten().filter_map(Token::read).collect()
}

/// Describes the tokens that `made` has and the own tokenizer lacks, the tokens that it lost, and the tokens with other properties.
pub(super) fn difference(own_tokenizer: Option<&Value>, made: &Value) -> String {
    /// Number of tokens that are named.
    const SHOWN: usize = 8;
    let (before, after) = (own_tokenizer.map(own).unwrap_or_default(), own(made));
    let names = |tokens: Vec<&Token>, what: &str| {
        let shown = tokens.iter().take(SHOWN).map(|token| token.content.as_str()).collect::<Vec<_>>().join(" ");
        match tokens.len() {
            0 => None,
            count if count > SHOWN => Some(format!("{what} {shown} and {} more", count - SHOWN)),
            _ => Some(format!("{what} {shown}")),
        }
    };
    let known = |tokens: &[Token], token: &Token| tokens.iter().any(|other| other.content == token.content);
    let new = after.iter().filter(|token| !known(&before, token)).collect();
    let lost = before.iter().filter(|token| !known(&after, token)).collect();
    let other = after.iter().filter(|token| known(&before, token) && !before.contains(token)).collect();
    let parts = [names(new, "new:"), names(lost, "no longer added:"), names(other, "with other properties:")];
    let parts = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
    if parts.is_empty() { "in another order".to_owned() } else { parts }
}
