//! The checkpoint's tokenizer.

use anyhow::{anyhow, ensure};
use std::path::Path;
use tokenizers::Tokenizer;

/// Largest accepted size of a `tokenizer.json`, in bytes; the largest known ones have 35 MB.
const MAX_BYTES: u64 = 256 << 20;

/// Loads the tokenizer at `path` as the agent does, and compares its ids with the rows of the model's word embedding. Returns the
/// number of tokens.
pub(crate) fn check(path: &Path, vocabulary: Option<usize>) -> anyhow::Result<usize> {
    let found =
        std::fs::metadata(path).map_err(|error| anyhow!(error).context(format!("reading {}", path.display())))?;
    ensure!(found.is_file(), "{} is not a file", path.display());
    ensure!(found.len() <= MAX_BYTES, "{} has {} bytes, more than any tokenizer", path.display(), found.len());
    let tokenizer = Tokenizer::from_file(path)
        .map_err(|error| anyhow!("{} is not a tokenizer of the tokenizers library: {error}", path.display()))?;
    let largest = tokenizer.get_vocab(true).into_values().max();
    if let (Some(largest), Some(vocabulary)) = (largest, vocabulary) {
        ensure!(
            (largest as usize) < vocabulary,
            "{} has a token of number {largest}, but the model knows {vocabulary} (vocab_size); call \
             resize_token_embeddings before you save the checkpoint, or take the tokenizer that belongs to it",
            path.display()
        );
    }
    Ok(tokenizer.get_vocab_size(true))
}
