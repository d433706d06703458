//! The meanings of the names of fields: the usual ones, and those that a user gives.

use crate::columns::Columns;

/// Names of a field with the label.
pub const LABEL: [&str; 7] = ["label", "class", "class index", "category", "intent", "quality", "score"];
/// Names of a field with the text.
pub(crate) const TEXT: [&str; 5] = ["text", "sentence", "utterance", "content", "review"];
/// Names of the two fields of a pair.
const PAIRS: [(&str, &str); 7] = [
    ("text", "text_pair"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("#1 string", "#2 string"),
];
const HEADING: (&str, &str) = ("title", "description");
const COMPLETION: (&str, &str) = ("prompt", "completion");
/// Names of a field with words.
pub(crate) const WORDS: [&str; 2] = ["tokens", "words"];
/// Names of a field with the labels of words.
pub const WORD_LABELS: [&str; 3] = ["labels", "ner_tags", "tags"];

/// Description of the names above for examples with a label.
pub(crate) const LABELLED: &str = "one column for the label (label, class, class index, category, intent, quality or score) and one for the \
     text (text, sentence, utterance, content or review), or two (title and description; for a pair text and text_pair, \
     sentence1 and sentence2, question and sentence, premise and hypothesis, #1 String and #2 String)";
/// Description of the names above for texts without a label.
pub(crate) const PLAIN: &str = "one column for the text (text, sentence, utterance, content or review), or two (prompt and completion; title and \
     description)";

/// Description of the names above for texts, or pairs of texts, whose label does not matter.
pub(crate) const UNLABELLED: &str = "one column for the text (text, sentence, utterance, content or review), or two (title and \
     description; for a pair text and text_pair, sentence1 and sentence2, question and sentence, premise and hypothesis, \
     #1 String and #2 String)";
/// Description of the names above for words whose labels do not matter.
pub(crate) const UNLABELLED_WORDS: &str = "one array of words (tokens or words), or one text (text, sentence, utterance, content or review) with words between spaces";

/// The names of a record's fields, with the meanings that the user gave them.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    pub(crate) names: &'a [String],
    pub(crate) columns: &'a Columns,
}

/// Description of the names above for words with labels.
pub(crate) const WORDS_AND_LABELS: &str = "in a .jsonl file (or use .conll; a table has no room for words with a label each) one \
     array for the words (tokens or words) and one for their labels (labels, ner_tags or tags)";

/// Fields of a record's text, or of its two texts.
pub(crate) enum Texts {
    Single(SingleText),
    Pair(usize, usize),
}

pub(crate) enum SingleText {
    Field(usize),
    /// Two fields or more, joined like a title and its description.
    Joined(Vec<usize>),
}

/// Returns true if a field of this name has a meaning.
pub(crate) fn is_known(name: &str, columns: &Columns) -> bool {
    columns.named().any(|named| is_named(name, named)) || is_usual(name)
}

/// Returns true if a field of this name has a meaning by default.
pub(crate) fn is_usual(name: &str) -> bool {
    let pairs = PAIRS.iter().chain([&HEADING, &COMPLETION]).flat_map(|(first, second)| [first, second]);
    LABEL.iter().chain(&TEXT).chain(&WORDS).chain(&WORD_LABELS).chain(pairs).any(|known| is_named(name, known))
}

pub(crate) fn label(named: &Named<'_>) -> Option<usize> {
    match &named.columns.label {
        Some(label) => position(named.names, label),
        None => first(named.names, &LABEL),
    }
}

/// Finds the fields of the texts. Pairs come first, because a name of a pair may also be the name of a single text.
pub(crate) fn texts(named: &Named<'_>) -> Option<Texts> {
    let columns = named.columns;
    if let (Some(second), [first, ..]) = (&columns.pair, columns.text.as_slice()) {
        return both(named.names, (first, second)).map(|(first, second)| Texts::Pair(first, second));
    }
    let usual = || PAIRS.iter().find_map(|&pair| both(named.names, pair));
    let pair = if columns.text.is_empty() { usual() } else { None };
    let pair = pair.map(|(first, second)| Texts::Pair(first, second));
    pair.or_else(|| single_text(named).map(Texts::Single))
}

pub(crate) fn single_text(named: &Named<'_>) -> Option<SingleText> {
    if let [text] = named.columns.text.as_slice() {
        return position(named.names, text).map(SingleText::Field);
    }
    if !named.columns.text.is_empty() {
        let fields = named.columns.text.iter().map(|text| position(named.names, text));
        return fields.collect::<Option<_>>().map(SingleText::Joined);
    }
    let heading = || both(named.names, HEADING).map(|(title, body)| SingleText::Joined(vec![title, body]));
    first(named.names, &TEXT).map(SingleText::Field).or_else(heading)
}

pub(crate) fn completion(named: &Named<'_>) -> Option<(usize, usize)> {
    match (&named.columns.prompt, named.columns.text.as_slice()) {
        (None, []) => both(named.names, COMPLETION),
        (None, _) => None,
        (Some(prompt), []) => both(named.names, (prompt, COMPLETION.1)),
        (Some(prompt), [text, ..]) => both(named.names, (prompt, text)),
    }
}

pub(crate) fn tagged(named: &Named<'_>) -> Option<(usize, usize)> {
    let labels = match &named.columns.label {
        Some(labels) => position(named.names, labels),
        None => first(named.names, &WORD_LABELS),
    };
    words(named).zip(labels)
}

pub(crate) fn words(named: &Named<'_>) -> Option<usize> {
    match named.columns.text.first() {
        Some(words) => position(named.names, words),
        None => first(named.names, &WORDS),
    }
}

/// Finds the field with the first of the `wanted` names that the record has.
fn first(names: &[String], wanted: &[&str]) -> Option<usize> {
    wanted.iter().find_map(|wanted| position(names, wanted))
}

/// Finds the field of this name.
pub(crate) fn position(names: &[String], wanted: &str) -> Option<usize> {
    names.iter().position(|name| is_named(name, wanted))
}

/// Returns the first column that the user names and that is not among `found`.
pub(crate) fn missing_from<'a>(columns: &'a Columns, found: &[String]) -> Option<&'a str> {
    columns.named().find(|name| position(found, name).is_none())
}

fn both(names: &[String], pair: (&str, &str)) -> Option<(usize, usize)> {
    position(names, pair.0).zip(position(names, pair.1))
}

fn is_named(name: &str, known: &str) -> bool {
    name.eq_ignore_ascii_case(known)
}
