//! One record in its format's form: a value for each named field.

use crate::advice::{Needs, advice};
use crate::error::{DataError, Place};
use crate::format::field_text;
use crate::names::{LABEL, Named, SingleText, TEXT, WORDS, missing_from};
use csv::ByteRecord;
use serde_json::Value;

/// Number of characters of a wrong label that an error shows.
const SHOWN_CHARACTERS: usize = 40;

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
        if let Some(name) = missing_from(columns, &found) {
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
