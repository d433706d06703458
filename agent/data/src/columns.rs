//! The columns that a user names, and advice for names that the readers do not know.

use crate::row::{self, Named};

/// Names of a file's columns, or keys of its objects, if they differ from the usual ones. Upper and lower case are equal.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "clap", derive(clap::Args), command(next_help_heading = "Columns"))]
pub struct Columns {
    /// Column or key of the text, or of the words. Several columns, separated by commas, are joined like a title and its
    /// description [default: text, sentence, utterance, content or review].
    #[cfg_attr(
        feature = "clap",
        arg(id = "text_column", long = "text-column", value_name = "NAMES", value_delimiter = ',')
    )]
    pub text: Vec<String>,
    /// Column or key of a pair's second text; --text-column names the first.
    #[cfg_attr(feature = "clap", arg(long = "pair-column", value_name = "NAME", requires = "text_column"))]
    pub pair: Option<String>,
    /// Column or key of the prompt before the text, for language models.
    #[cfg_attr(feature = "clap", arg(long = "prompt-column", value_name = "NAME"))]
    pub prompt: Option<String>,
    /// Column or key of the label, of the numbers, or of the words' labels [default: label, class, class index, category, intent,
    /// quality or score].
    #[cfg_attr(feature = "clap", arg(long = "label-column", value_name = "NAME"))]
    pub label: Option<String>,
    /// Names of all columns of a CSV or TSV file without a header, for example label,text.
    #[cfg_attr(feature = "clap", arg(long = "columns", value_name = "NAMES", value_delimiter = ','))]
    pub header: Vec<String>,
    /// Text between columns that are joined to one text, such as a title and a description; `None` for [`SEPARATOR`].
    #[cfg_attr(feature = "clap", arg(skip))]
    pub separator: Option<String>,
}

/// Default text between columns that are joined.
pub const SEPARATOR: &str = ". ";

impl Columns {
    /// Returns the text between columns that are joined.
    pub(crate) fn separator(&self) -> &str {
        self.separator.as_deref().unwrap_or(SEPARATOR)
    }

    /// Returns the names of the columns that every file must have.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        let single = [&self.pair, &self.prompt, &self.label];
        self.text.iter().map(String::as_str).chain(single.into_iter().filter_map(Option::as_deref))
    }

    /// Returns the first column that is named and not among `found`.
    pub(crate) fn missing_from(&self, found: &[String]) -> Option<&str> {
        self.named().find(|name| row::position(found, name).is_none())
    }
}

/// Contents of a record, as far as an error needs them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// A text or a pair, and a label.
    TextAndLabel,
    /// Words with a label each.
    Words,
    /// A text, perhaps after a prompt.
    Text,
}

/// Words in the names of columns that often hold the label.
const LABEL_LIKE: [&str; 14] = [
    "label",
    "class",
    "category",
    "intent",
    "score",
    "sentiment",
    "target",
    "emotion",
    "topic",
    "tag",
    "polarity",
    "rating",
    "star",
    "toxic",
];
/// Words in the names of columns that often hold the text.
const TEXT_LIKE: [&str; 19] = [
    "text",
    "sentence",
    "utterance",
    "content",
    "review",
    "tweet",
    "comment",
    "message",
    "body",
    "sms",
    "document",
    "headline",
    "abstract",
    "post",
    "article",
    "query",
    "input",
    "title",
    "description",
];
/// Names of fields with a prompt and with the answer to it.
const PROMPTS: [(&str, &str); 5] = [
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("input", "output"),
    ("query", "response"),
];
/// Names of fields with a whole conversation.
const CHATS: [&str; 3] = ["messages", "conversations", "conversation"];
/// Greatest number of changed letters between a name and one that it resembles.
const FEW_CHANGES: usize = 2;

/// Returns the end of a sentence that suggests columns among `found`, and the options that select them.
pub(crate) fn advice(found: &[String], columns: &Columns, needs: Needs) -> String {
    if needs == Needs::Text {
        if let Some(chat) = CHATS.iter().find(|chat| row::position(found, chat).is_some()) {
            return format!(
                "; {chat:?} holds a chat, which is not read: write each answer as a record with prompt and completion"
            );
        }
        let both = |(first, second): &&(&str, &str)| {
            row::position(found, first).is_some() && row::position(found, second).is_some()
        };
        if let Some((prompt, text)) = PROMPTS.iter().find(both) {
            return format!("; for a prompt and its completion give --prompt-column {prompt} --text-column {text}");
        }
    }
    let named = Named { names: found, columns };
    let mut options = Vec::new();
    let lacks_label = if needs == Needs::Words { row::tagged(&named).is_none() } else { row::label(&named).is_none() };
    if needs != Needs::Text && lacks_label {
        options.extend(alike(found, &LABEL_LIKE).map(|name| format!("--label-column {name:?}")));
    }
    if needs != Needs::Words && row::texts(&named).is_none() {
        options.extend(alike(found, &TEXT_LIKE).map(|name| format!("--text-column {name:?}")));
    }
    if options.is_empty() {
        return "; or say which they are with --text-column and --label-column".to_owned();
    }
    format!("; or say which they are, for example with {}", options.join(" "))
}

/// Returns the first of the names `found` that contains one of `words` or resembles it.
fn alike<'a>(found: &'a [String], words: &[&str]) -> Option<&'a String> {
    let close = |name: &str, word: &str| name.len() > 3 && strsim::osa_distance(name, word) <= FEW_CHANGES;
    let fits = |name: &&String| {
        let name = name.to_ascii_lowercase();
        words.iter().any(|word| name.contains(word) || close(&name, word))
    };
    found.iter().find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advised(found: &[&str], needs: Needs) -> String {
        let found: Vec<String> = found.iter().map(|&name| name.to_owned()).collect();
        advice(&found, &Columns::default(), needs)
    }

    #[test]
    fn a_name_that_resembles_a_usual_one_is_proposed() {
        let said = advised(&["id", "airline_sentiment", "text"], Needs::TextAndLabel);
        assert_eq!(said, "; or say which they are, for example with --label-column \"airline_sentiment\"");
        assert!(advised(&["lable", "text"], Needs::TextAndLabel).ends_with("--label-column \"lable\""));
        assert!(advised(&["Tweet", "y"], Needs::TextAndLabel).ends_with("--text-column \"Tweet\""));
        assert!(advised(&["a", "b"], Needs::TextAndLabel).ends_with("--text-column and --label-column"));
    }

    #[test]
    fn prompts_and_chats_of_other_tools_are_known() {
        let said = advised(&["instruction", "input", "output"], Needs::Text);
        assert!(said.ends_with("--prompt-column instruction --text-column output"), "{said}");
        assert!(advised(&["Messages"], Needs::Text).contains("chat"));
    }
}
