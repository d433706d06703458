//! Texts folded at words, so that a terminal does not break them inside a word.

use std::fmt::Write as _;
use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm};

/// Least room for words, in columns, however deep they are indented.
const LEAST_ROOM: usize = 16;

/// Folds `text` to `width` columns. Lines after the first begin with `indent` blanks. Without a width, lines stay whole.
#[must_use]
pub fn fold(text: &str, indent: usize, width: Option<usize>) -> String {
    let Some(width) = width else { return text.to_owned() };
    let blanks = " ".repeat(indent);
    let options = Options::new(width.max(indent + LEAST_ROOM))
        .subsequent_indent(&blanks)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit);
    text.split('\n').map(|line| textwrap::fill(line, &options)).collect::<Vec<_>>().join("\n")
}

/// Returns a line of a list of facts: `name`, blanks up to column `indent`, and `value` folded beside it.
#[must_use]
pub fn fact(name: &str, indent: usize, value: &str, width: Option<usize>) -> String {
    let gap = indent.saturating_sub(1);
    fold(&format!("{name:<gap$} {value}"), indent, width) + "\n"
}

/// A list of named facts, with the values in one column.
#[derive(Clone, Debug, Default)]
pub struct Facts(Vec<(String, String)>);

impl Facts {
    /// Returns an empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fact at the end.
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// Returns the list, folded to `width` columns.
    #[must_use]
    pub fn text(&self, width: Option<usize>) -> String {
        let indent = self.0.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0) + 2;
        self.0.iter().fold(String::new(), |mut text, (name, value)| {
            let _ = write!(text, "{}", fact(name, indent, value, width));
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_whole_and_later_lines_are_indented() {
        let text = fold("kitchen: refused an order, the battery is low", 4, Some(24));
        assert_eq!(text, "kitchen: refused an\n    order, the battery\n    is low");
        assert_eq!(fold("a line\nand another", 0, Some(80)), "a line\nand another");
        assert_eq!(fold("a b", 0, None), "a b");
    }

    #[test]
    fn values_stand_in_one_column() {
        let mut facts = Facts::new();
        facts.add("pack", "minilm.pack");
        facts.add("digest", "every file is as the manifest says");
        assert_eq!(facts.text(None), "pack    minilm.pack\ndigest  every file is as the manifest says\n");
        assert_eq!(
            facts.text(Some(24)),
            "pack    minilm.pack\ndigest  every file is as\n        the manifest\n        says\n"
        );
    }
}
