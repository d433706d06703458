//! Writes lines about how a build treated the checkpoint.

use skiff_models::pack::{Built, Ignored, Tie};
use skiff_screen::text::Facts;
use std::collections::BTreeMap;

/// Maximum number of names in a line.
const SHOWN: usize = 4;

/// Returns where the head comes from, and which tensors of the checkpoint are left out, with the reasons.
pub(crate) fn facts(built: &Built) -> Facts {
    let mut facts = Facts::new();
    if let Some(classes) = &built.classes {
        facts.add("head", classes.to_string());
    }
    if !built.drawn.is_empty() {
        facts.add("drawn", shown(built.drawn.iter().map(String::as_str)));
    }
    match built.tie {
        Tie::AsConfigured => {}
        Tie::Differs => facts.add(
            "untied",
            "lm_head.weight differs from the word table, though tie_word_embeddings is true; each is used, as in transformers 5",
        ),
        Tie::HeadAlone => facts.add(
            "tied",
            "the checkpoint has lm_head.weight and no word table; it serves as both, as in transformers 5",
        ),
    }
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Ignored { name, reason } in &built.ignored {
        by_reason.entry(reason).or_default().push(name);
    }
    for (reason, names) in by_reason {
        facts.add("left out", format!("{}: {reason}", shown(names.into_iter())));
    }
    facts
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
