//! Turns a template into words.

use super::slots::SLOTS;
use skiff_base::random::Random;

/// A parsed template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Template {
    /// Whether the template is an order, which can follow "could you".
    pub(super) is_order: bool,
    pieces: Vec<Piece>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    Words(String),
    Slot(String),
    /// One of several choices. Optional words have a choice without pieces.
    Either(Vec<Vec<Self>>),
}

impl Template {
    /// Parses `template`: `{slot}`, `(a|b)`, `[a|b]`, and `!` in front.
    pub(super) fn parse(template: &str) -> Self {
        let is_order = template.starts_with('!');
        let mut rest = template.trim_start_matches('!');
        Self { is_order, pieces: sequence(&mut rest) }
    }

    /// Draws one wording.
    pub(super) fn draw(&self, random: &mut Random) -> String {
        let mut words = String::new();
        draw(&self.pieces, random, &mut words);
        join(&words)
    }
}

/// Reads pieces up to the end, a closing mark or a bar. The mark or bar stays in `rest`.
fn sequence(rest: &mut &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while let Some(mark) = rest.chars().next() {
        match mark {
            '{' => {
                let (name, after) = rest[1..].split_once('}').unwrap_or((&rest[1..], ""));
                pieces.push(Piece::Slot(name.to_owned()));
                *rest = after;
            }
            '(' => pieces.push(Piece::Either(alternatives(rest))),
            '[' => {
                let mut either = alternatives(rest);
                either.push(Vec::new());
                pieces.push(Piece::Either(either));
            }
            '|' | ')' | ']' => break,
            _ => {
                let (words, after) = rest.split_at(rest.find(['{', '(', '[', '|', ')', ']']).unwrap_or(rest.len()));
                pieces.push(Piece::Words(words.to_owned()));
                *rest = after;
            }
        }
    }
    pieces
}

/// Reads `(a|b)` or `[a|b]` from `rest`, which begins with the opening mark.
fn alternatives(rest: &mut &str) -> Vec<Vec<Piece>> {
    let mut either = Vec::new();
    loop {
        *rest = &rest[1..];
        either.push(sequence(rest));
        if !rest.starts_with('|') {
            *rest = rest.get(1..).unwrap_or("");
            return either;
        }
    }
}

fn draw(pieces: &[Piece], random: &mut Random, words: &mut String) {
    for piece in pieces {
        match piece {
            Piece::Words(fixed) => words.push_str(fixed),
            Piece::Slot(name) => words.push_str(random.choose(values(name)).copied().unwrap_or(name)),
            Piece::Either(either) => {
                if let Some(chosen) = random.choose(either) {
                    draw(chosen, random, words);
                }
            }
        }
    }
}

fn values(slot: &str) -> &'static [&'static str] {
    SLOTS.iter().find(|known| known.name == slot).map_or(&[], |known| known.values)
}

/// Joins words by one space, without spaces at the ends.
fn join(words: &str) -> String {
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::intents::INTENTS;
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// Returns every wording of `pieces`, without filling the slots.
    fn skeletons(pieces: &[Piece]) -> Vec<String> {
        pieces.iter().fold(vec![String::new()], |starts, piece| {
            let ends = match piece {
                Piece::Words(fixed) => vec![fixed.clone()],
                Piece::Slot(name) => vec![format!("{{{name}}}")],
                Piece::Either(either) => either.iter().flat_map(|pieces| skeletons(pieces)).collect(),
            };
            starts.iter().flat_map(|start| ends.iter().map(move |end| format!("{start}{end}"))).collect()
        })
    }

    fn all_skeletons(templates: &[&str]) -> BTreeSet<String> {
        templates
            .iter()
            .flat_map(|template| skeletons(&Template::parse(template).pieces))
            .map(|words| join(&words))
            .collect()
    }

    #[test]
    fn a_template_gives_all_its_wordings_and_no_others() {
        let template = Template::parse("!turn (on|off) [the] a[{room}|b (c|d)]");
        assert!(template.is_order);
        let wordings: BTreeSet<String> = skeletons(&template.pieces).iter().map(|words| join(words)).collect();
        assert_eq!(wordings.len(), 16);
        assert!(wordings.contains("turn on the a{room}") && wordings.contains("turn off ab d"));
    }

    #[test]
    fn every_slot_of_a_template_has_values_and_every_slot_is_used() {
        let mut used = BTreeSet::new();
        for template in INTENTS.iter().flat_map(|intent| intent.train.iter().chain(intent.test)) {
            for rest in template.split('{').skip(1) {
                let name = rest.split('}').next().unwrap_or(rest);
                assert!(!values(name).is_empty(), "slot {name:?} of {template:?} is unknown");
                used.insert(name);
            }
        }
        assert_eq!(used.len(), SLOTS.len());
    }

    #[test]
    fn no_wording_belongs_to_two_intents_and_none_of_the_test_part_to_training() {
        let mut owners: BTreeMap<String, BTreeSet<(&str, &str)>> = BTreeMap::new();
        for intent in &INTENTS {
            for (part, templates) in [("train", intent.train), ("test", intent.test)] {
                for skeleton in all_skeletons(templates) {
                    owners.entry(skeleton).or_default().insert((intent.name, part));
                }
            }
        }
        owners.retain(|_, owners| owners.len() > 1);
        assert!(owners.is_empty(), "{owners:#?}");
    }

    #[test]
    fn wordings_hold_no_marks() {
        let mut random = Random::new(1);
        for template in INTENTS.iter().flat_map(|intent| intent.train.iter().chain(intent.test)) {
            for _ in 0..20 {
                let wording = Template::parse(template).draw(&mut random);
                assert!(
                    !wording.is_empty() && !wording.contains(['{', '}', '(', ')', '[', ']', '|', '!']),
                    "{wording:?}"
                );
            }
        }
    }
}
