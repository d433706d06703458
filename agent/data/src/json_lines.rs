//! JSON Lines: one object on each line.

use crate::error::{DataError, Place};
use crate::lines::Lines;
use crate::row::{Cells, Row, is_known};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
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
}

impl JsonLines {
    pub(crate) fn new(source: Box<dyn Read + Send>) -> Self {
        Self { lines: Lines::new(source), object: Object::default() }
    }

    /// Moves to the next line that is not blank. Returns false at the end.
    pub(crate) fn advance(&mut self, place: &mut Place) -> Result<bool, DataError> {
        while let Some(line) = self.lines.next(place)? {
            if !line.trim().is_empty() {
                self.object = serde_json::from_str(line).map_err(|source| {
                    place.column = source.column();
                    DataError::Json { place: place.clone(), source }
                })?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn span(&self) -> Range<u64> {
        self.lines.span()
    }

    pub(crate) fn row<'a>(&'a mut self, place: &'a Place) -> Row<'a> {
        Row::new(place, &self.object.names, Cells::Values(&mut self.object.values))
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut object = Object::default();
        while let Some(name) = map.next_key::<String>()? {
            if !is_known(&name) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if object.names.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
                return Err(A::Error::custom(format!("the key {name:?} stands twice")));
            }
            let value: Value = map.next_value()?;
            if !value.is_null() {
                object.names.push(name);
                object.values.push(value);
            }
        }
        Ok(object)
    }
}
