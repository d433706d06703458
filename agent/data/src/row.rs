//! One record in its format's form: named fields, and the meanings of the names.

use crate::error::{DataError, Place};
use crate::format::field_text;
use csv::ByteRecord;
use serde_json::Value;

/// Names of a field with the label.
const LABEL: [&str; 7] = ["label", "class", "class index", "category", "intent", "quality", "score"];
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
const WORD_LABELS: [&str; 3] = ["labels", "ner_tags", "tags"];

/// Number of characters of a wrong label that an error shows.
const SHOWN_CHARACTERS: usize = 40;

/// Description of the names above for examples with a label.
pub(crate) const LABELLED: &str = "one column for the label (label, class, class index, category, intent, quality or score) and one for the \
     text (text, sentence, utterance, content or review), or two (title and description; for a pair text and text_pair, \
     sentence1 and sentence2, question and sentence, premise and hypothesis, #1 String and #2 String)";
/// Description of the names above for texts without a label.
pub(crate) const PLAIN: &str = "one column for the text (text, sentence, utterance, content or review), or two (prompt and completion; title and \
     description)";

/// A record's fields; each can be taken once.
pub struct Row<'a> {
    place: &'a Place,
    names: &'a [String],
    cells: Cells<'a>,
}

/// Values of the fields, one for each name.
pub(crate) enum Cells<'a> {
    /// Unchecked text.
    Bytes(&'a ByteRecord),
    /// JSON values.
    Values(&'a mut [Value]),
}

/// Fields of a record's text, or of its two texts.
#[derive(Clone, Copy)]
pub(crate) enum Texts {
    Single(SingleText),
    Pair(usize, usize),
}

#[derive(Clone, Copy)]
pub(crate) enum SingleText {
    Field(usize),
    TitleAndDescription(usize, usize),
}

/// Returns true if a field of this name has a meaning.
pub(crate) fn is_known(name: &str) -> bool {
    let pairs = PAIRS.iter().chain([&HEADING, &COMPLETION]).flat_map(|(first, second)| [first, second]);
    LABEL.iter().chain(&TEXT).chain(&WORDS).chain(&WORD_LABELS).chain(pairs).any(|known| is_named(name, known))
}

pub(crate) fn label(names: &[String]) -> Option<usize> {
    first(names, &LABEL)
}

/// Finds the fields of the texts. Pairs come first, because a name of a pair may also be the name of a single text.
pub(crate) fn texts(names: &[String]) -> Option<Texts> {
    let pair = PAIRS.iter().find_map(|&pair| both(names, pair)).map(|(first, second)| Texts::Pair(first, second));
    pair.or_else(|| single_text(names).map(Texts::Single))
}

pub(crate) fn single_text(names: &[String]) -> Option<SingleText> {
    let heading = || both(names, HEADING).map(|(title, body)| SingleText::TitleAndDescription(title, body));
    first(names, &TEXT).map(SingleText::Field).or_else(heading)
}

pub(crate) fn completion(names: &[String]) -> Option<(usize, usize)> {
    both(names, COMPLETION)
}

pub(crate) fn tagged(names: &[String]) -> Option<(usize, usize)> {
    first(names, &WORDS).zip(first(names, &WORD_LABELS))
}

/// Finds the field with the first of the `wanted` names that the record has.
fn first(names: &[String], wanted: &[&str]) -> Option<usize> {
    wanted.iter().find_map(|wanted| names.iter().position(|name| is_named(name, wanted)))
}

fn both(names: &[String], pair: (&str, &str)) -> Option<(usize, usize)> {
    first(names, &[pair.0]).zip(first(names, &[pair.1]))
}

fn is_named(name: &str, known: &str) -> bool {
    name.eq_ignore_ascii_case(known)
}

impl<'a> Row<'a> {
    pub(crate) fn new(place: &'a Place, names: &'a [String], cells: Cells<'a>) -> Self {
        Self { place, names, cells }
    }

    pub(crate) fn names(&self) -> &'a [String] {
        self.names
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
    pub(crate) fn single(&mut self, text: SingleText) -> Result<String, DataError> {
        let (title, description) = match text {
            SingleText::Field(at) => return self.text(at),
            SingleText::TitleAndDescription(title, description) => (title, description),
        };
        let (heading, body) = (self.any_text(title)?, self.any_text(description)?);
        if heading.trim().is_empty() && body.trim().is_empty() {
            return Err(DataError::MissingText { place: self.place_of(title) });
        }
        Ok(format!("{heading}. {body}"))
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

    /// Takes one finite number or several, as JSON or as the same in a text.
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

    pub(crate) fn missing_label(&self) -> DataError {
        DataError::MissingLabel { place: self.place.clone() }
    }

    pub(crate) fn missing_text(&self) -> DataError {
        DataError::MissingText { place: self.place.clone() }
    }

    pub(crate) fn missing_words(&self) -> DataError {
        DataError::MissingWords { place: self.place.clone() }
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
        DataError::NotANumber { place: self.place_of(at), key: self.names[at].clone(), found }
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
        DataError::WrongType { place: self.place_of(at), key: self.names[at].clone(), expected, found }
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
