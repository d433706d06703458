//! Writes lines about how a build treated the checkpoint.

use skiff_models::pack::{Built, Ignored, Tie};
use std::collections::BTreeMap;
use std::io::Write;

/// Maximum number of names in a line.
const SHOWN: usize = 4;

/// Writes where the head comes from, and which tensors of the checkpoint are left out, with the reasons.
pub(crate) fn write(out: &mut dyn Write, built: &Built) -> std::io::Result<()> {
    if let Some(classes) = &built.classes {
        writeln!(out, "head          {classes}")?;
    }
    if !built.drawn.is_empty() {
        writeln!(out, "drawn         {}", shown(built.drawn.iter().map(String::as_str)))?;
    }
    match built.tie {
        Tie::AsConfigured => {}
        Tie::Differs => writeln!(
            out,
            "untied        lm_head.weight differs from the word table, though tie_word_embeddings is true; each is used, as in \
             transformers 5"
        )?,
        Tie::HeadAlone => writeln!(
            out,
            "tied          the checkpoint has lm_head.weight and no word table; it serves as both, as in transformers 5"
        )?,
    }
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Ignored { name, reason } in &built.ignored {
        by_reason.entry(reason).or_default().push(name);
    }
    for (reason, names) in by_reason {
        writeln!(out, "left out      {}: {reason}", shown(names.into_iter()))?;
    }
    Ok(())
}

fn shown<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_of_names_end_in_their_number() {
        assert_eq!(shown(["a", "b"].into_iter()), "a, b");
        assert_eq!(shown(["a", "b", "c", "d", "e", "f"].into_iter()), "a, b, c, d and 2 more");
    }
}
