//! One record in its format's form: named fields, and the meanings of the names.

use crate::columns::{Columns, Needs, advice};
use crate::error::{DataError, Place};
use crate::format::field_text;
use csv::ByteRecord;
use serde_json::Value;

/// Names of a field with the label.
pub const LABEL: [&str; 7] = ["label", "class", "class index", "category", "intent", "quality", "score"];
/// Names of a field with the text.
const TEXT: [&str; 5] = ["text", "sentence", "utterance", "content", "review"];
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
const WORDS: [&str; 2] = ["tokens", "words"];
/// Names of a field with the labels of words.
pub const WORD_LABELS: [&str; 3] = ["labels", "ner_tags", "tags"];

/// Number of characters of a wrong label that an error shows.
const SHOWN_CHARACTERS: usize = 40;

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

/// A record's fields; each can be taken once.
pub struct Row<'a> {
    place: &'a Place,
    named: Named<'a>,
    cells: Cells<'a>,
    /// Names of fields that have no meaning or no value.
    others: &'a [String],
}

/// Values of the fields, one for each name.
pub(crate) enum Cells<'a> {
    /// Unchecked text.
    Bytes(&'a ByteRecord),
    /// JSON values.
    Values(&'a mut [Value]),
}

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

fn both(names: &[String], pair: (&str, &str)) -> Option<(usize, usize)> {
    position(names, pair.0).zip(position(names, pair.1))
}

fn is_named(name: &str, known: &str) -> bool {
    name.eq_ignore_ascii_case(known)
}

impl<'a> Row<'a> {
    pub(crate) fn new(place: &'a Place, named: Named<'a>, cells: Cells<'a>) -> Self {
        Self { place, named, cells, others: &[] }
    }

    /// Notes the names of fields that have no meaning or no value.
    pub(crate) fn with_others(self, others: &'a [String]) -> Self {
        Self { others, ..self }
    }

    pub(crate) fn place(&self) -> &'a Place {
        self.place
    }

    pub(crate) fn named(&self) -> Named<'a> {
        self.named
    }

    /// Takes a text that is not blank.
    pub(crate) fn text(&mut self, at: usize) -> Result<String, DataError> {
        let text = self.any_text(at)?;
        if text.trim().is_empty() { Err(DataError::MissingText { place: self.place_of(at) }) } else { Ok(text) }
    }

    /// Takes a text that may be blank.
    pub(crate) fn any_text(&mut self, at: usize) -> Result<String, DataError> {
        let value = self.take(at)?;
        self.string(at, value, "a string")
    }

    /// Takes a text from one field or two; it is not blank.
    pub(crate) fn single(&mut self, text: &SingleText) -> Result<String, DataError> {
        let fields = match text {
            SingleText::Field(at) => return self.text(*at),
            SingleText::Joined(fields) => fields,
        };
        let parts = fields.iter().map(|&at| self.any_text(at)).collect::<Result<Vec<_>, _>>()?;
        if parts.iter().all(|part| part.trim().is_empty()) {
            return Err(DataError::MissingText {
                place: fields.first().map_or(self.place.clone(), |&at| self.place_of(at)),
            });
        }
        Ok(parts.join(self.named.columns.separator()))
    }

    /// Takes a label that is not blank.
    pub(crate) fn label(&mut self, at: usize) -> Result<String, DataError> {
        let value = self.take(at)?;
        self.name(at, value, "a string or a whole number")
    }

    /// Takes labels, none of them blank.
    pub(crate) fn labels(&mut self, at: usize) -> Result<Vec<String>, DataError> {
        let expected = "an array of strings or whole numbers";
        let values = self.array(at, expected)?;
        values.into_iter().map(|value| self.name(at, value, expected)).collect()
    }

    /// Takes words, none of them blank.
    pub(crate) fn words(&mut self, at: usize) -> Result<Vec<String>, DataError> {
        let expected = "an array of strings";
        let values = self.array(at, expected)?;
        let word = |value| match self.string(at, value, expected)? {
            word if word.trim().is_empty() => Err(DataError::BlankWord { place: self.place_of(at) }),
            word => Ok(word),
        };
        values.into_iter().map(word).collect()
    }

    /// Takes one finite number or several, from JSON, or from a text that contains such JSON.
    pub(crate) fn numbers(&mut self, at: usize) -> Result<Vec<f32>, DataError> {
        let mut value = self.take(at)?;
        if let Some(text) = value.as_str()
            && let Ok(said) = serde_json::from_str(text.trim())
        {
            value = said;
        }
        let values = if let Value::Array(values) = &value { values } else { std::slice::from_ref(&value) };
        if values.is_empty() || value.as_str().is_some_and(|text| text.trim().is_empty()) {
            return Err(self.missing_label_at(at));
        }
        values.iter().map(|value| number(value).ok_or_else(|| self.not_a_number(at, value))).collect()
    }

    /// Returns the error of a record without a field for the label.
    pub(crate) fn missing_label(&self, wanted: &'static str) -> DataError {
        self.missing(wanted, Needs::TextAndLabel, &LABEL, DataError::MissingLabel { place: self.place.clone() })
    }

    /// Returns the error of a record without a field for the text.
    pub(crate) fn missing_text(&self, wanted: &'static str, needs: Needs) -> DataError {
        self.missing(wanted, needs, &TEXT, DataError::MissingText { place: self.place.clone() })
    }

    /// Returns the error of a record without fields for words and their labels.
    pub(crate) fn missing_words(&self, wanted: &'static str) -> DataError {
        self.missing(wanted, Needs::Words, &WORDS, DataError::MissingWords { place: self.place.clone() })
    }

    /// Returns the error of a record that lacks every field in `usual`. The error is `blank` if such a field exists without a
    /// value; otherwise it lists the names that were found.
    fn missing(&self, wanted: &'static str, needs: Needs, usual: &[&str], blank: DataError) -> DataError {
        let Named { names, columns } = self.named;
        let found: Vec<String> = names.iter().chain(self.others).cloned().collect();
        let place = self.place.clone();
        if let Some(name) = columns.missing_from(&found) {
            return DataError::NoSuchColumn { place, what: "key", name: name.to_owned(), found: shown(&found) };
        }
        let is_blank = |name: &&str| usual.contains(name) || columns.named().any(|named| named == *name);
        if found.is_empty() || self.others.iter().any(|name| is_blank(&name.to_ascii_lowercase().as_str())) {
            return blank;
        }
        let advice = advice(&found, columns, needs);
        DataError::UnknownColumns { place, what: "keys", found: shown(&found), wanted, advice }
    }

    pub(crate) fn uneven(&self, words: usize, labels: usize) -> DataError {
        DataError::UnevenLabels { place: self.place.clone(), words, labels }
    }

    fn missing_label_at(&self, at: usize) -> DataError {
        DataError::MissingLabel { place: self.place_of(at) }
    }

    fn not_a_number(&self, at: usize, found: &Value) -> DataError {
        let text = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
        let found = text.chars().take(SHOWN_CHARACTERS).collect();
        DataError::NotANumber { place: self.place_of(at), key: self.named.names[at].clone(), found }
    }

    /// Takes the value of field `at`.
    fn take(&mut self, at: usize) -> Result<Value, DataError> {
        match &mut self.cells {
            Cells::Bytes(record) => {
                field_text(&record[at], &at_field(self.place, at)).map(|text| Value::String(text.to_owned()))
            }
            Cells::Values(values) => Ok(std::mem::take(&mut values[at])),
        }
    }

    fn array(&mut self, at: usize, expected: &'static str) -> Result<Vec<Value>, DataError> {
        let value = self.take(at)?;
        let found = type_name(&value);
        if let Value::Array(values) = value { Ok(values) } else { Err(self.wrong_type(at, expected, found)) }
    }

    fn string(&self, at: usize, value: Value, expected: &'static str) -> Result<String, DataError> {
        let found = type_name(&value);
        let Value::String(text) = value else { return Err(self.wrong_type(at, expected, found)) };
        if text.contains('\0') { Err(DataError::Nul { place: self.place_of(at) }) } else { Ok(text) }
    }

    /// Returns the name of a class: a text, or a whole number.
    fn name(&self, at: usize, value: Value, expected: &'static str) -> Result<String, DataError> {
        if let Some(number) = value.as_number() {
            let whole = number.is_i64() || number.is_u64();
            return if whole { Ok(number.to_string()) } else { Err(self.wrong_type(at, expected, "a fraction")) };
        }
        match self.string(at, value, expected)?.trim() {
            "" => Err(self.missing_label_at(at)),
            name => Ok(name.to_owned()),
        }
    }

    fn wrong_type(&self, at: usize, expected: &'static str, found: &'static str) -> DataError {
        DataError::WrongType { place: self.place_of(at), key: self.named.names[at].clone(), expected, found }
    }

    /// Returns the place of field `at`. Tables have a column for it; a JSON object has only its line.
    fn place_of(&self, at: usize) -> Place {
        match self.cells {
            Cells::Bytes(_) => at_field(self.place, at),
            Cells::Values(_) => self.place.clone(),
        }
    }
}

pub(crate) fn at_field(place: &Place, at: usize) -> Place {
    Place { column: at + 1, ..place.clone() }
}

/// Returns the names as an error shows them: only the first few, and only the start of a long name.
pub(crate) fn shown(names: &[String]) -> Vec<String> {
    const SHOWN: usize = 20;
    let mut shown: Vec<String> =
        names.iter().take(SHOWN).map(|name| name.chars().take(SHOWN_CHARACTERS).collect()).collect();
    if names.len() > SHOWN {
        shown.push("…".to_owned());
    }
    shown
}

fn number(value: &Value) -> Option<f32> {
    let number =
        value.as_str().map_or_else(|| value.as_f64().map(|number| number as f32), |text| text.trim().parse().ok());
    number.filter(|number| number.is_finite())
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
