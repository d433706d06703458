//! JSON Lines: one object on each line.

use crate::columns::Columns;
use crate::error::{DataError, Place};
use crate::lines::Lines;
use crate::names::{Named, is_known};
use crate::row::{Cells, Row};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use std::fmt;
use std::io::Read;
use std::ops::Range;

pub(crate) struct JsonLines {
    lines: Lines,
    object: Object,
}

/// Fields of an object that have a meaning and are not null.
#[derive(Default)]
struct Object {
    names: Vec<String>,
    values: Vec<Value>,
    /// Names of the other fields, for errors; at most [`MOST_OTHERS`].
    others: Vec<String>,
}

/// Maximum number of unknown fields whose names are kept.
const MOST_OTHERS: usize = 20;

impl JsonLines {
    pub(crate) fn new(source: Box<dyn Read + Send>) -> Self {
        Self { lines: Lines::new(source), object: Object::default() }
    }

    /// Moves to the next line that is not blank. Returns false at the end.
    pub(crate) fn advance(&mut self, place: &mut Place, columns: &Columns) -> Result<bool, DataError> {
        while let Some(line) = self.lines.next(place)? {
            if !line.trim().is_empty() {
                let mut json = serde_json::Deserializer::from_str(line);
                let read = Fields(columns).deserialize(&mut json).and_then(|object| json.end().map(|()| object));
                self.object = read.map_err(|source| {
                    place.column = source.column();
                    DataError::Json { place: place.clone(), advice: advice(line, &source), source }
                })?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn span(&self) -> Range<u64> {
        self.lines.span()
    }

    pub(crate) fn row<'a>(&'a mut self, place: &'a Place, columns: &'a Columns) -> Row<'a> {
        let Object { names, values, others } = &mut self.object;
        Row::new(place, Named { names, columns }, Cells::Values(values)).with_others(others)
    }
}

/// Returns the end of a sentence that says what to do about a line that is not one object.
fn advice(line: &str, error: &serde_json::Error) -> &'static str {
    if line.trim_start().starts_with('[') {
        return "; this is a JSON array: `jq -c '.[]' FILE > NEW.jsonl` writes its records, one on each line";
    }
    if error.is_eof() {
        return "; this object does not end on its line: `jq -c . FILE > NEW.jsonl` writes each object on one line";
    }
    ""
}

/// Reads an object's fields that have a meaning.
struct Fields<'a>(&'a Columns);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = Object;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Object, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut object = Object::default();
        while let Some(name) = map.next_key::<String>()? {
            if !is_known(&name, self.0) {
                map.next_value::<IgnoredAny>()?;
                if object.others.len() < MOST_OTHERS {
                    object.others.push(name);
                }
                continue;
            }
            if object.names.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
                return Err(A::Error::custom(format!("the key {name:?} stands twice")));
            }
            let value: Value = map.next_value()?;
            if value.is_null() {
                object.others.push(name);
            } else {
                object.names.push(name);
                object.values.push(value);
            }
        }
        Ok(object)
    }
}
