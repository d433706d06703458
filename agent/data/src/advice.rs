//! Advice for names of fields that the readers do not know.

use crate::columns::Columns;
use crate::names::{self, Named};

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
        if let Some(chat) = CHATS.iter().find(|chat| names::position(found, chat).is_some()) {
            return format!(
                "; {chat:?} holds a chat, which is not read: write each answer as a record with prompt and completion"
            );
        }
        let both = |(first, second): &&(&str, &str)| {
            names::position(found, first).is_some() && names::position(found, second).is_some()
        };
        if let Some((prompt, text)) = PROMPTS.iter().find(both) {
            return format!("; for a prompt and its completion give --prompt-column {prompt} --text-column {text}");
        }
    }
    let named = Named { names: found, columns };
    let mut options = Vec::new();
    let lacks_label =
        if needs == Needs::Words { names::tagged(&named).is_none() } else { names::label(&named).is_none() };
    if needs != Needs::Text && lacks_label {
        options.extend(alike(found, &LABEL_LIKE).map(|name| format!("--label-column {name:?}")));
    }
    if needs != Needs::Words && names::texts(&named).is_none() {
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
