//! Spans of tokens, such as names in a text, read from a label for each token.
//!
//! Labels carry a prefix: `B-` begins a span, `I-` continues it, `E-` ends it, `S-` is a span of one token; `O` is outside.
//! Labels are read as in `seqeval`'s default mode (`seqeval.metrics.sequence_labeling.get_entities`, version 1.2.2), which
//! follows CoNLL's `conlleval`. The mode is lenient: an `I-` or `E-` without a span to continue begins a new span.

/// Labels that form spans.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpanLabels {
    /// Position in a span, and type of the span (an index into `types`), for each label.
    labels: Vec<(Position, Option<usize>)>,
    types: Vec<String>,
}

/// A span. Two spans are equal if their type, first token and last token are equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span {
    /// First token.
    pub first: usize,
    /// Last token.
    pub last: usize,
    /// Index of the type in [`SpanLabels::types`].
    pub kind: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Position {
    Outside,
    Begin,
    Inside,
    End,
    Single,
}

impl SpanLabels {
    /// Reads the names of labels; `None` if one of them has no known prefix, or none forms a span.
    #[must_use]
    pub fn read(names: &[String]) -> Option<Self> {
        let mut types: Vec<String> = names.iter().filter_map(|name| Some(split(name)?.1.to_owned())).collect();
        types.sort();
        types.dedup();
        let label = |name: &String| {
            if name == "O" {
                return Some((Position::Outside, None));
            }
            let (position, kind) = split(name)?;
            Some((position, types.binary_search_by(|known| known.as_str().cmp(kind)).ok()))
        };
        let labels = names.iter().map(label).collect::<Option<Vec<_>>>()?;
        (!types.is_empty()).then_some(Self { labels, types })
    }

    /// Returns the names of the types, ascending.
    #[must_use]
    pub fn types(&self) -> &[String] {
        &self.types
    }

    /// Returns the spans of a text, ascending, from the label of each token. An unknown label is outside of all spans.
    #[must_use]
    pub fn spans(&self, labels: &[usize]) -> Vec<Span> {
        const OUTSIDE: (Position, Option<usize>) = (Position::Outside, None);
        let mut spans = Vec::new();
        let (mut before, mut first) = (OUTSIDE, 0);
        let known = labels.iter().map(|label| self.labels.get(*label).copied().unwrap_or(OUTSIDE));
        for (at, label) in known.chain([OUTSIDE]).enumerate() {
            if let Some(kind) = before.1.filter(|_| is_end(before, label)) {
                spans.push(Span { first, last: at - 1, kind });
            }
            if is_start(before, label) {
                first = at;
            }
            before = label;
        }
        spans
    }
}

/// Returns true if the span of the previous token does not continue with this token.
fn is_end(before: (Position, Option<usize>), label: (Position, Option<usize>)) -> bool {
    let closes = matches!(before.0, Position::End | Position::Single);
    let opens = matches!(label.0, Position::Begin | Position::Single | Position::Outside);
    closes || opens || before.1 != label.1
}

/// Returns true if a span begins with this token.
fn is_start(before: (Position, Option<usize>), label: (Position, Option<usize>)) -> bool {
    label.1.is_some() && is_end(before, label)
}

fn split(name: &str) -> Option<(Position, &str)> {
    let (prefix, kind) = name.split_once('-')?;
    let position = match prefix {
        "B" => Position::Begin,
        "I" => Position::Inside,
        "E" => Position::End,
        "S" => Position::Single,
        _ => return None,
    };
    (!kind.is_empty()).then_some((position, kind))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn labels_without_prefixes_form_no_spans() {
        assert_eq!(SpanLabels::read(&names(&["O", "PER", "LOC"])), None);
        assert_eq!(SpanLabels::read(&names(&["O"])), None);
        assert_eq!(SpanLabels::read(&names(&["O", "B-"])), None);
        assert_eq!(SpanLabels::read(&names(&["O", "B-X-Y", "I-A"])).unwrap().types(), ["A", "X-Y"]);
    }

    #[test]
    fn spans_are_those_that_seqeval_finds() {
        let labels = SpanLabels::read(&names(&["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-PER"])).unwrap();
        let found = |text: &[usize]| -> Vec<(&str, usize, usize)> {
            let spans = labels.spans(text);
            spans.iter().map(|span| (labels.types()[span.kind].as_str(), span.first, span.last)).collect()
        };
        // get_entities([[labels[i] for i in text]]) of seqeval 1.2.2, texts drawn by random.seed(19).
        assert_eq!(
            found(&[5, 0, 6, 4, 0, 4, 1, 3, 2, 4, 2, 4]),
            [
                ("LOC", 0, 0),
                ("PER", 2, 2),
                ("LOC", 3, 3),
                ("LOC", 5, 5),
                ("PER", 6, 6),
                ("LOC", 7, 7),
                ("PER", 8, 8),
                ("LOC", 9, 9),
                ("PER", 10, 10),
                ("LOC", 11, 11)
            ]
        );
        assert_eq!(
            found(&[1, 4, 2, 0, 2, 3, 2, 2, 6, 0, 6, 2]),
            [
                ("PER", 0, 0),
                ("LOC", 1, 1),
                ("PER", 2, 2),
                ("PER", 4, 4),
                ("LOC", 5, 5),
                ("PER", 6, 7),
                ("PER", 8, 8),
                ("PER", 10, 10),
                ("PER", 11, 11)
            ]
        );
        assert_eq!(
            found(&[2, 0, 4, 4, 1, 0, 1, 0, 4, 3, 3, 6]),
            [
                ("PER", 0, 0),
                ("LOC", 2, 3),
                ("PER", 4, 4),
                ("PER", 6, 6),
                ("LOC", 8, 8),
                ("LOC", 9, 9),
                ("LOC", 10, 10),
                ("PER", 11, 11)
            ]
        );
        assert_eq!(found(&[]), []);
        assert_eq!(found(&[9, 1, 9]), [("PER", 1, 1)], "unknown labels are outside");
    }
}
