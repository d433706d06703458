//! Special and added tokens that the settings name.

use super::TokenizerError;
use super::added::{Added, Token};
use super::class::Class;
use super::defaults;
use super::files::{Extra, Files, Ordered};
use super::named::{Named, STANDARD};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// All tokens that the settings name.
#[derive(Debug)]
pub(super) struct Stated {
    /// Tokens with numbers, from `added_tokens_decoder` or the older files.
    decoder: BTreeMap<i64, Token>,
    /// Standard and model-specific tokens with the names of their settings.
    named: Vec<(String, Named)>,
    /// Tokens without names.
    extra: Vec<Named>,
    /// Contents of the tokens that only the class names.
    by_class: BTreeSet<String>,
}

impl Stated {
    pub(super) fn collect(files: &Files, class: Class) -> Result<Self, TokenizerError> {
        let mut collected = Collected::from_config(files)?;
        if let Some(value) = files.config.get("added_tokens_decoder") {
            collected.decoder = decoder(files, value)?;
        } else {
            collected.merge_older_files(files)?;
        }
        collected.finish(files, class)
    }

    /// Returns the content of a special token, if the folder or the class names one.
    pub(super) fn token(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(other, _)| other == name).map(|(_, named)| named.content())
    }

    /// Returns the content of a special token that the class needs.
    pub(super) fn required(&self, name: &str, files: &Files) -> Result<&str, TokenizerError> {
        self.token(name).ok_or_else(|| files.setting(name, "is null, but the tokenizer's class needs it".to_owned()))
    }

    /// Returns the tokens that transformers adds to a tokenizer with the tokens of `added`.
    pub(super) fn to_add(&self, added: &Added) -> Vec<Token> {
        let mut tokens: Vec<Named> = self.decoder.values().cloned().map(Named::Token).collect();
        let numbered: Vec<&str> = self.decoder.values().map(|token| token.content.as_str()).collect();
        let known = |content: &str| added.contains(content) || numbered.contains(&content);
        for named in self.named.iter().map(|(_, named)| named).chain(&self.extra) {
            if !known(named.content()) && !tokens.contains(named) {
                tokens.push(named.clone());
            }
        }
        let is_named = |token: &Token| self.named.iter().any(|(_, named)| named.content() == token.content);
        let special = |token: Token| Token { special: token.special || is_named(&token), ..token };
        tokens.iter().map(Named::to_token).map(special).collect()
    }

    /// Returns true if the class names the token and the folder does not.
    pub(super) fn is_by_class(&self, content: &str) -> bool {
        self.by_class.contains(content)
    }

    /// Returns every special token without further properties.
    pub(super) fn plain_specials(&self) -> Vec<Token> {
        let all = self.named.iter().map(|(_, named)| named).chain(&self.extra);
        all.map(|named| Token::special(named.content())).collect()
    }
}

/// Tokens collected for [`Stated`]. A standard token may be null, which removes the class's own.
#[derive(Default)]
struct Collected {
    decoder: BTreeMap<i64, Token>,
    standard: BTreeMap<&'static str, Option<Named>>,
    specific: Vec<(String, Named)>,
    extra: Option<Vec<Named>>,
    additional: Option<Vec<Named>>,
}

impl Collected {
    fn from_config(files: &Files) -> Result<Self, TokenizerError> {
        let mut collected = Self::default();
        for (name, value) in &files.config.0 {
            if let Some(name) = STANDARD.into_iter().find(|standard| standard == name) {
                collected.standard.insert(name, nullable(files, "tokenizer_config.json", name, value)?);
            } else if let (true, Value::String(content)) = (name.ends_with("_token"), value) {
                collected.specific.push((name.clone(), Named::Text(content.clone())));
            }
        }
        let extras = &files.extras;
        let chosen = extras.extra_special_tokens.as_ref().filter(|extra| !extra.is_empty());
        match chosen.or(extras.additional_special_tokens.as_ref()) {
            Some(Extra::List(list)) => collected.extra = Some(tokens(files, "extra_special_tokens", list)?),
            Some(Extra::Named(named)) => {
                collected.name_tokens(files, named)?;
                if let Some(Extra::List(list)) = &extras.additional_special_tokens {
                    collected.additional = Some(tokens(files, "additional_special_tokens", list)?);
                }
            }
            // An empty value still replaces the tokens that a class adds by itself.
            None => {
                let stated = |name| files.config.get(name).is_some();
                let any = stated("extra_special_tokens") || stated("additional_special_tokens");
                collected.extra = any.then(Vec::new);
            }
        }
        Ok(collected)
    }

    fn name_tokens(&mut self, files: &Files, named: &Ordered) -> Result<(), TokenizerError> {
        for (name, value) in &named.0 {
            let token = token(files, "tokenizer_config.json", name, value)?;
            self.specific.push((name.clone(), token));
        }
        Ok(())
    }

    /// Reads the files that transformers 4 and older wrote.
    fn merge_older_files(&mut self, files: &Files) -> Result<(), TokenizerError> {
        const FILE: &str = "special_tokens_map.json";
        for (name, value) in files.special_tokens_map.iter().flat_map(|map| &map.0) {
            match (name.as_str(), value) {
                ("additional_special_tokens", Value::Array(list)) => {
                    self.additional = Some(tokens(files, name, list)?);
                }
                ("extra_special_tokens", Value::Array(list)) => {
                    let mut extra = self.extra.take().unwrap_or_default();
                    for value in list {
                        let token = special(files, FILE, name, value)?;
                        if !extra.contains(&token) {
                            extra.push(token);
                        }
                    }
                    self.extra = Some(extra);
                }
                (name, value) => {
                    let standard = STANDARD.into_iter().find(|standard| *standard == name);
                    match (standard, value) {
                        (Some(name), Value::Null) => _ = self.standard.insert(name, None),
                        (Some(name), value) => _ = self.standard.insert(name, Some(special(files, FILE, name, value)?)),
                        (None, Value::String(_) | Value::Object(_)) if name.ends_with("_token") => {
                            self.specific.push((name.to_owned(), special(files, FILE, name, value)?));
                        }
                        (None, _) => {}
                    }
                }
            }
        }
        self.merge_added_tokens(files)?;
        let own = files.tokenizer.as_ref().and_then(|tokenizer| tokenizer.get("added_tokens")?.as_array());
        for value in own.into_iter().flatten() {
            if let (Some(id), Some(token)) = (value.get("id").and_then(Value::as_i64), Token::read(value)) {
                self.decoder.insert(id, token);
            }
        }
        Ok(())
    }

    fn merge_added_tokens(&mut self, files: &Files) -> Result<(), TokenizerError> {
        let is_special = |collected: &Self, content: &str| {
            let standard = collected.standard.values().flatten();
            standard.chain(collected.extra.iter().flatten()).any(|named| named.content() == content)
        };
        for (content, id) in files.added_tokens.iter().flat_map(|map| &map.0) {
            let Some(id) = id.as_i64() else {
                let path = files.path("added_tokens.json");
                let what = format!("has the number {id}; expected a whole number");
                return Err(TokenizerError::Setting { path, setting: content.clone(), what });
            };
            let special = is_special(self, content);
            self.decoder.insert(id, Token { special, normalized: Some(!special), ..Token::special(content) });
        }
        Ok(())
    }

    fn finish(mut self, files: &Files, class: Class) -> Result<Stated, TokenizerError> {
        // A token of the list replaces the setting with the same content, so that its properties stay.
        let listed: BTreeMap<&str, &Token> =
            self.decoder.values().map(|token| (token.content.as_str(), token)).collect();
        for named in self.standard.values_mut().flatten() {
            if let Some(token) = listed.get(named.content()) {
                *named = Named::Token((*token).clone());
            }
        }
        let specific = self.specific.iter().map(|(_, named)| named);
        let stated = self.standard.values().flatten().chain(specific);
        let stated = stated.chain(self.extra.iter().flatten()).chain(self.additional.iter().flatten());
        let mut by_folder: BTreeSet<String> = stated.map(|named| named.content().to_owned()).collect();
        by_folder.extend(listed.keys().map(|content| (*content).to_owned()));
        let mut named = Vec::new();
        for name in STANDARD {
            let value = self.standard.remove(name).unwrap_or_else(|| defaults::default_token(class, name, files));
            named.extend(value.map(|value| (name.to_owned(), defaults::adapt_token(class, name, value))));
        }
        named.append(&mut self.specific);
        let extra = defaults::extra_tokens(class, files, self.extra, self.additional)?;
        let all = named.iter().map(|(_, named)| named).chain(&extra).map(|named| named.content().to_owned());
        let by_class = all.filter(|content| !by_folder.contains(content)).collect();
        Ok(Stated { decoder: self.decoder, named, extra, by_class })
    }
}

fn decoder(files: &Files, value: &Value) -> Result<BTreeMap<i64, Token>, TokenizerError> {
    let wrong = |what: String| files.setting("added_tokens_decoder", what);
    let entries = value.as_object().ok_or_else(|| wrong("is not an object of tokens by their numbers".to_owned()))?;
    let entry = |(id, value): (&String, &Value)| {
        let id = id.trim().parse().map_err(|_| wrong(format!("has the number {id:?}; expected a whole number")))?;
        let token = Token::read(value).ok_or_else(|| wrong(format!("{id} is not a token: {value}")))?;
        Ok((id, token))
    };
    entries.iter().map(entry).collect()
}

fn nullable(files: &Files, file: &str, name: &str, value: &Value) -> Result<Option<Named>, TokenizerError> {
    if value.is_null() { Ok(None) } else { token(files, file, name, value).map(Some) }
}

/// Reads a text or an object with `content`. Transformers itself fails on an object without `"__type": "AddedToken"`.
fn token(files: &Files, file: &str, name: &str, value: &Value) -> Result<Named, TokenizerError> {
    let found = match value.as_str() {
        Some(content) => Some(Named::Text(content.to_owned())),
        None => Token::read(value).map(Named::Token),
    };
    found.ok_or_else(|| not_a_token(files, file, name, value))
}

/// Reads a text, or an object whose token counts as special.
fn special(files: &Files, file: &str, name: &str, value: &Value) -> Result<Named, TokenizerError> {
    if let Value::String(content) = value {
        return Ok(Named::Text(content.clone()));
    }
    let mut value = value.clone();
    value.as_object_mut().into_iter().for_each(|object| _ = object.insert("special".to_owned(), true.into()));
    Token::read(&value).map(Named::Token).ok_or_else(|| not_a_token(files, file, name, &value))
}

fn tokens(files: &Files, name: &str, list: &[Value]) -> Result<Vec<Named>, TokenizerError> {
    list.iter().map(|value| token(files, "tokenizer_config.json", name, value)).collect()
}

fn not_a_token(files: &Files, file: &str, name: &str, value: &Value) -> TokenizerError {
    let what = format!("is {value}; expected a token: a text, or an object with \"content\"");
    TokenizerError::Setting { path: files.path(file), setting: name.to_owned(), what }
}
