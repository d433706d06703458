//! Returns the special tokens that a class of transformers has even if the folder names none.

use super::TokenizerError;
use super::added::Token;
use super::class::Class;
use super::files::Files;
use super::named::{Named, STANDARD};

/// Returns the class's own special token for a name, if it has one. Two classes take the padding token from `tokenizer.json`.
pub(super) fn default_token(class: Class, name: &str, files: &Files) -> Option<Named> {
    const END: &str = "<|endoftext|>";
    if matches!(class, Class::Backend | Class::Llama) && name == "pad_token" {
        let padding = files.tokenizer.as_ref()?.pointer("/padding/pad_token")?;
        return padding.as_str().map(|token| Named::Text(token.to_owned()));
    }
    let names: &[&str] = match class {
        Class::Backend => return None,
        // In this order: bos, eos, unk, sep, pad, cls, mask.
        Class::Bert | Class::DistilBert => &["", "", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"],
        Class::Roberta | Class::XlmRoberta | Class::Camembert => {
            &["<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"]
        }
        Class::MpNet => &["<s>", "</s>", "[UNK]", "</s>", "<pad>", "<s>", "<mask>"],
        Class::Deberta | Class::DebertaV2 => &["[CLS]", "[SEP]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"],
        Class::Albert => &["[CLS]", "[SEP]", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"],
        Class::T5 => &["", "</s>", "<unk>", "", "<pad>", "", ""],
        Class::Gpt2 => &[END, END, END, "", "", "", ""],
        Class::GptNeoX => &[END, END, END, "", "<|padding|>", "", ""],
        Class::Llama => &["<s>", "</s>", "<unk>", "", "", "", ""],
        Class::Gemma => &["<bos>", "<eos>", "<unk>", "", "<pad>", "", "<mask>"],
        Class::Qwen2 => &["", END, END, "", END, "", ""],
    };
    let at = STANDARD.iter().position(|standard| *standard == name)?;
    names.get(at).filter(|name| !name.is_empty()).map(|name| Named::Text((*name).to_owned()))
}

/// Gives a special token the properties that its class gives to a token set as plain text.
pub(super) fn adapt_token(class: Class, name: &str, token: Named) -> Named {
    let Named::Text(content) = &token else { return token };
    let lstrip = name == "mask_token";
    match class == Class::MpNet || (class == Class::Camembert && lstrip) {
        true => Named::Token(Token { lstrip, ..Token::special(content) }),
        false => token,
    }
}

/// Returns the special tokens without names, with those that the class always adds.
pub(super) fn extra_tokens(
    class: Class,
    files: &Files,
    extra: Option<Vec<Named>>,
    additional: Option<Vec<Named>>,
) -> Result<Vec<Named>, TokenizerError> {
    let text = |content: &str| Named::Text(content.to_owned());
    let mut additional = additional;
    if class == Class::Camembert && additional.is_none() {
        additional = Some(["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"].map(text).into());
    }
    if class == Class::T5 {
        let tokens = additional.get_or_insert_default();
        if !tokens.iter().any(|token| token.content().contains("<extra_id_")) {
            tokens.extend((0..extra_ids(files)?).map(|at| text(&format!("<extra_id_{at}>"))));
        }
    }
    Ok(extra.or(additional).unwrap_or_default())
}

fn extra_ids(files: &Files) -> Result<u64, TokenizerError> {
    const MOST: u64 = 1 << 16;
    let Some(value) = files.value("extra_ids") else { return Ok(100) };
    let count = value.as_u64().filter(|count| *count <= MOST);
    count.ok_or_else(|| files.setting("extra_ids", format!("is {value}; expected a number of tokens")))
}
