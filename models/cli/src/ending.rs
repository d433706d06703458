//! The token that ends a language model's texts.

use anyhow::{Context, bail};
use serde_json::Value;
use skiff_models::files::read_bounded;
use skiff_models::pack::EndToken;
use skiff_models::tokenizer::{self, TokenizerError};
use std::path::Path;
use tokenizers::Tokenizer;

/// Maximum size of a file of settings, in bytes.
const MAX_BYTES: u64 = 64 << 20;
/// Value of `--end-token` that turns it off.
const NONE: &str = "none";

/// Returns the token that `asked` names; otherwise the tokenizer's own end token; otherwise the end token in `config.json`.
/// `None` if it is turned off, or if no file names one.
///
/// Reference: `AutoTokenizer` takes `eos_token` from these files, and TRL's `SFTTrainer` appends it to texts and completions.
pub(crate) fn end_token(checkpoint: &Path, asked: Option<&str>) -> anyhow::Result<Option<EndToken>> {
    if asked == Some(NONE) {
        return Ok(None);
    }
    let path = checkpoint.join("tokenizer.json");
    let resolved = match tokenizer::read(checkpoint) {
        // The builder says how to get one.
        Err(TokenizerError::Missing { .. }) => return Ok(None),
        resolved => resolved?,
    };
    let tokenizer = Tokenizer::from_bytes(&resolved.json)
        .map_err(|error| anyhow::anyhow!("{} is not a tokenizer of the tokenizers library: {error}", path.display()))?;
    let of_files = || {
        let files = ["tokenizer_config.json", "special_tokens_map.json"].into_iter();
        files.filter_map(|name| named(settings(&checkpoint.join(name)).transpose()?)).next().transpose()
    };
    let text = match asked {
        Some(asked) => Some(asked.to_owned()),
        None => of_files()?,
    };
    if let Some(text) = text {
        let Some(id) = tokenizer.token_to_id(&text) else {
            bail!(
                "the end token {text:?} is not in {}; give another one with --end-token, or --end-token none",
                path.display()
            );
        };
        return Ok(Some(EndToken { text, id }));
    }
    let config = settings(&checkpoint.join("config.json"))?;
    let id = config.and_then(|config| number(config.get("eos_token_id")?));
    Ok(id.and_then(|id| Some(EndToken { text: tokenizer.id_to_token(id)?, id })))
}

/// Reads a file of settings; `None` if it is missing.
fn settings(path: &Path) -> anyhow::Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let reading = || format!("reading {}", path.display());
    let text = read_bounded(path, MAX_BYTES).with_context(reading)?;
    serde_json::from_slice(&text).map(Some).with_context(reading)
}

/// Returns the `eos_token` of a tokenizer's settings: a text, or an object with a text.
fn named(settings: anyhow::Result<Value>) -> Option<anyhow::Result<String>> {
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => return Some(Err(error)),
    };
    let token = settings.get("eos_token")?;
    let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
    Some(Ok(text.to_owned()))
}

/// Returns the number of the end token, or the first number of a list.
fn number(id: &Value) -> Option<u32> {
    let id = id.as_array().map_or(Some(id), |ids| ids.first())?;
    u32::try_from(id.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use serde_json::json;
    use std::fs;

    /// Writes a folder with a tokenizer of four tokens and these files.
    fn checkpoint(files: &[(&str, Value)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"word": 0, "<end>": 1, "<stop>": 2, "<unk>": 3}, "unk_token": "<unk>"},
        });
        fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content.to_string()).unwrap();
        }
        folder
    }

    fn found(files: &[(&str, Value)], asked: Option<&str>) -> Option<(String, u32)> {
        let folder = checkpoint(files);
        end_token(folder.path(), asked).unwrap().map(|EndToken { text, id }| (text, id))
    }

    #[test]
    fn the_tokenizers_own_end_comes_before_the_models() {
        let own = ("tokenizer_config.json", json!({"eos_token": {"content": "<end>", "lstrip": false}}));
        let map = ("special_tokens_map.json", json!({"eos_token": "<stop>"}));
        let config = ("config.json", json!({"eos_token_id": [2, 1]}));
        let (end, stop) = (Some(("<end>".to_owned(), 1)), Some(("<stop>".to_owned(), 2)));
        assert_eq!(found(&[own.clone(), map.clone(), config.clone()], None), end);
        assert_eq!(found(&[("tokenizer_config.json", json!({"eos_token": null})), map], None), stop);
        assert_eq!(found(&[config], None), stop);
        assert_eq!(found(&[("config.json", json!({"eos_token_id": null}))], None), None);
        assert_eq!(found(std::slice::from_ref(&own), Some("<stop>")), stop);
        assert_eq!(found(&[own], Some("none")), None);
    }

    #[test]
    fn an_end_that_the_tokenizer_does_not_know_is_refused() {
        let folder = checkpoint(&[("tokenizer_config.json", json!({"eos_token": "<end>"}))]);
        let message = end_token(folder.path(), Some("</s>")).unwrap_err().to_string();
        assert!(message.contains("\"</s>\"") && message.contains("--end-token none"), "{message}");
    }
}
