//! A token that a setting names.

use super::added::Token;

/// Names of the special tokens of every tokenizer, in the order in which they are added.
pub(super) const STANDARD: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token that a setting names.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Named {
    Text(String),
    Token(Token),
}

impl Named {
    pub(super) fn content(&self) -> &str {
        match self {
            Self::Text(content) => content,
            Self::Token(token) => &token.content,
        }
    }

    pub(super) fn to_token(&self) -> Token {
        match self {
            Self::Text(content) => Token::special(content),
            Self::Token(token) => token.clone(),
        }
    }
}
