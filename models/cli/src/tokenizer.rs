//! Checks that devices can load the checkpoint's tokenizer, and reports the effects of the settings beside `tokenizer.json`.

use crate::probes;
use anyhow::{Context, anyhow, ensure};
use skiff_models::files::read_bounded;
use skiff_models::pack::Manifest;
use skiff_models::tokenizer::{ResolvedTokenizer, read};
use std::path::Path;
use tokenizers::Tokenizer;

/// Largest accepted size of a `tokenizer.json`, in bytes; the largest known ones have 35 MB.
const MAX_BYTES: u64 = 256 << 20;
/// Number of tokens of an example that a message shows.
const SHOWN: usize = 12;

/// Effects of the settings beside `tokenizer.json`.
#[derive(Default)]
pub(crate) struct Told {
    /// The changes, in a sentence, if there are any.
    pub(crate) changes: Option<String>,
    /// `model_max_length`, if it is a limit.
    pub(crate) max_tokens: Option<usize>,
}

/// Loads the tokenizer at `path` as the agent does, and compares its ids with the rows of the model's word embedding. Returns the
/// number of tokens.
pub(crate) fn check(path: &Path, vocabulary: Option<usize>) -> anyhow::Result<usize> {
    let bytes = read_bounded(path, MAX_BYTES).with_context(|| format!("reading {}", path.display()))?;
    let tokenizer = load(&bytes, path)?;
    check_numbers(&tokenizer, path, vocabulary)?;
    Ok(tokenizer.get_vocab_size(true))
}

/// Applies the settings in the folder `checkpoint`, checks the result like [`check`], and returns their effects.
///
/// # Errors
/// A setting that cannot be applied; a tokenizer that devices cannot load or that does not fit the model.
pub(crate) fn examine(checkpoint: &Path, vocabulary: Option<usize>) -> anyhow::Result<Told> {
    let path = checkpoint.join("tokenizer.json");
    let resolved = read(checkpoint)?;
    let tokenizer = load(&resolved.json, &path)?;
    check_numbers(&tokenizer, &path, vocabulary)?;
    let changes = match &resolved.alone {
        _ if resolved.changes.is_empty() => None,
        Some(alone) => Some(told(&resolved, &load(alone, &path)?, &tokenizer)),
        None => Some(format!(
            "the folder has no tokenizer.json; the pack has the one that transformers makes from the vocabulary ({})",
            resolved.class
        )),
    };
    Ok(Told { changes, max_tokens: resolved.max_tokens })
}

/// Describes the limit that cuts the pack's examples, if it is smaller than the model's positions.
pub(crate) fn limit(manifest: &Manifest, stated: Option<usize>) -> Option<String> {
    let (most, positions) = (manifest.layout.max_tokens, manifest.design.layout().max_tokens);
    let stated = stated.filter(|stated| *stated != positions)?;
    Some(match stated < positions {
        true => format!(
            "examples are cut to {most} tokens: model_max_length in tokenizer_config.json; the model has {positions} positions"
        ),
        false => format!(
            "examples are cut to {most} tokens: the model's positions; model_max_length in tokenizer_config.json is {stated}"
        ),
    })
}

fn load(bytes: &[u8], path: &Path) -> anyhow::Result<Tokenizer> {
    Tokenizer::from_bytes(bytes)
        .map_err(|error| anyhow!("{} is not a tokenizer of the tokenizers library: {error}", path.display()))
}

fn check_numbers(tokenizer: &Tokenizer, path: &Path, vocabulary: Option<usize>) -> anyhow::Result<()> {
    let largest = tokenizer.get_vocab(true).into_iter().max_by_key(|(_, id)| *id);
    if let (Some((token, largest)), Some(vocabulary)) = (largest, vocabulary) {
        ensure!(
            (largest as usize) < vocabulary,
            "{} has a token of number {largest} ({token:?}), but the model knows {vocabulary} (vocab_size); call \
             resize_token_embeddings before you save the checkpoint, or take the tokenizer that belongs to it",
            path.display()
        );
    }
    Ok(())
}

/// Compares both tokenizers on probe texts, and describes the difference with the settings that cause it.
fn told(resolved: &ResolvedTokenizer, alone: &Tokenizer, tokenizer: &Tokenizer) -> String {
    let texts = probes::texts(tokenizer);
    let found = probes::compare(alone, tokenizer, &texts);
    let changes = resolved.changes.iter().map(|change| format!("{} ({})", change.part, change.because));
    let changes = changes.collect::<Vec<_>>().join("; ");
    let ResolvedTokenizer { class, chosen_by, .. } = resolved;
    let Some(example) = found.example else {
        return format!(
            "transformers loads the tokenizer as {class} ({chosen_by}), which changes {changes}; all {} probe texts \
             keep the tokens of tokenizer.json",
            texts.len()
        );
    };
    let shown = |ids: &[u32]| {
        let more = if ids.len() > SHOWN { ", ..." } else { "" };
        let ids = ids.iter().take(SHOWN).map(u32::to_string).collect::<Vec<_>>().join(", ");
        format!("[{ids}{more}]")
    };
    format!(
        "transformers loads the tokenizer as {class} ({chosen_by}), and tokenizer.json alone disagrees on {} of {} probe \
         texts: {:?} is {} there, {} with the settings. The pack has the tokenizer of transformers. Changed: {changes}",
        found.different,
        texts.len(),
        example.text,
        shown(&example.alone),
        shown(&example.resolved),
    )
}
