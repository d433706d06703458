//! Settings for layers by the ends of their names, in the order of the search.

use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;

/// Ends of names, each with a value. The first end that fits a name counts, as in Hugging Face PEFT's `get_pattern_key`.
///
/// In files the patterns are a map whose order counts. Patterns collected from pairs are sorted: longer ends come before shorter
/// ones, because they are more specific.
#[derive(Clone, PartialEq, Debug)]
pub struct Patterns<T>(Vec<(String, T)>);

/// Maximum number of patterns in a file.
const MAX_PATTERNS: usize = 4096;

impl<T> Patterns<T> {
    /// Returns the value of the first pattern that fits `name`: the whole name, or its end after a dot.
    pub fn first(&self, name: &str) -> Option<&T> {
        self.0.iter().find(|(end, _)| super::ends_with_parts(name, end)).map(|(_, value)| value)
    }

    /// Returns true if there are no patterns.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the ends, in their order.
    pub fn ends(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(end, _)| end.as_str())
    }

    /// Returns the values, in the order of the ends.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }

    /// Returns the patterns whose end `keep` accepts, in their order.
    pub(crate) fn retained(&self, mut keep: impl FnMut(&str) -> bool) -> Self
    where
        T: Clone,
    {
        Self(self.0.iter().filter(|(end, _)| keep(end)).cloned().collect())
    }

    /// Appends a pattern, or replaces the value of an existing end, like Python's dictionaries.
    fn put(&mut self, end: String, value: T) {
        match self.0.iter_mut().find(|(known, _)| *known == end) {
            Some((_, known)) => *known = value,
            None => self.0.push((end, value)),
        }
    }
}

impl<T> Default for Patterns<T> {
    /// Returns an empty list of patterns.
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> FromIterator<(String, T)> for Patterns<T> {
    /// Collects the pairs and sorts the longest end first. If an end has two values, the last one counts.
    fn from_iter<I: IntoIterator<Item = (String, T)>>(pairs: I) -> Self {
        let mut patterns = Self::default();
        pairs.into_iter().for_each(|(end, value)| patterns.put(end, value));
        patterns.0.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        patterns
    }
}

impl<T, const N: usize> From<[(String, T); N]> for Patterns<T> {
    /// Collects the pairs in their order.
    fn from(pairs: [(String, T); N]) -> Self {
        pairs.into_iter().collect()
    }
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (end, value) in &self.0 {
            map.serialize_entry(end, value)?;
        }
        map.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

struct InOrder<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
    type Value = Patterns<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from ends of names to numbers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Patterns<T>, A::Error> {
        let mut patterns = Patterns::default();
        while let Some((end, value)) = map.next_entry()? {
            patterns.put(end, value);
            if patterns.0.len() > MAX_PATTERNS {
                return Err(A::Error::custom(format!("more than {MAX_PATTERNS} patterns")));
            }
        }
        Ok(patterns)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    const SHORT_FIRST: &str = r#"{"self.query":4,"layer.1.attention.self.query":2}"#;

    #[test]
    fn a_file_keeps_its_order_and_the_first_that_fits_holds() {
        let patterns: Patterns<usize> = serde_json::from_str(SHORT_FIRST).unwrap();
        assert_eq!(patterns.first("bert.encoder.layer.1.attention.self.query"), Some(&4));
        assert_eq!(patterns.first("bert.encoder.layer.1.attention.myself.query"), None);
        assert_eq!(serde_json::to_string(&patterns).unwrap(), SHORT_FIRST);
    }

    #[test]
    fn pairs_are_looked_at_longest_first() {
        let pairs = [("query", 1), ("layer.1.attention.self.query", 2), ("self.query", 4), ("query", 8)];
        let patterns: Patterns<usize> = pairs.into_iter().map(|(end, value)| (end.to_owned(), value)).collect();
        assert_eq!(patterns.first("layer.1.attention.self.query"), Some(&2));
        assert_eq!(patterns.first("layer.2.attention.self.query"), Some(&4));
        assert_eq!(patterns.first("layer.2.query"), Some(&8));
    }

    #[test]
    fn a_key_given_twice_has_the_first_ones_place_and_the_last_ones_value() {
        let patterns: Patterns<usize> = serde_json::from_str(r#"{"a":1,"b":2,"a":3}"#).unwrap();
        assert_eq!(serde_json::to_string(&patterns).unwrap(), r#"{"a":3,"b":2}"#);
    }
}
