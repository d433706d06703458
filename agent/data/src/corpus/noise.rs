//! Changes to a command between the thought and the text: polite words, typing errors and errors of speech recognition.

use skiff_base::random::Random;

/// Probability of each change to an utterance.
struct Rates {
    opening: f64,
    closing: f64,
    typed: f64,
    spoken: f64,
}

const RATES: Rates = Rates { opening: 0.30, closing: 0.20, typed: 0.20, spoken: 0.25 };

const GREETINGS: [&str; 10] =
    ["hey", "ok", "hi", "hello", "excuse me", "listen", "assistant", "hey there", "good morning", "ok then"];

const REQUESTS: [&str; 10] = [
    "please",
    "could you",
    "can you",
    "could you please",
    "would you",
    "would you please",
    "i want you to",
    "i need you to",
    "go ahead and",
    "will you",
];

const CLOSINGS: [&str; 8] =
    ["please", "thanks", "thank you", "if you can", "will you", "cheers", "as soon as you can", "for me"];

const FILLERS: [&str; 8] = ["um", "uh", "like", "er", "well", "so", "you know", "i mean"];

const SMALL_WORDS: [&str; 7] = ["the", "a", "an", "my", "to", "is", "of"];

/// Words that a speech recogniser hears, each with a word that it may write instead.
const HOMOPHONES: [(&str, &str); 34] = [
    ("to", "two"),
    ("for", "four"),
    ("two", "to"),
    ("four", "for"),
    ("eight", "ate"),
    ("by", "buy"),
    ("buy", "by"),
    ("weather", "whether"),
    ("whether", "weather"),
    ("flour", "flower"),
    ("mail", "male"),
    ("week", "weak"),
    ("hour", "our"),
    ("red", "read"),
    ("read", "red"),
    ("blue", "blew"),
    ("write", "right"),
    ("right", "write"),
    ("bread", "bred"),
    ("pears", "pairs"),
    ("there", "their"),
    ("no", "know"),
    ("need", "knead"),
    ("light", "lite"),
    ("lights", "lites"),
    ("alarm", "a lamb"),
    ("dim", "dimmer"),
    ("iron", "iran"),
    ("heat", "heed"),
    ("oven", "of and"),
    ("hear", "here"),
    ("rain", "reign"),
    ("meeting", "meat in"),
    ("wake", "weak"),
];

const KEY_ROWS: [&str; 3] = ["qwertyuiop", "asdfghjkl", "zxcvbnm"];

/// Changes `words` as people do when they write, or a speech recogniser when it listens.
pub(super) fn add(words: &str, is_order: bool, random: &mut Random) -> String {
    let mut text = words.to_owned();
    if random.chance(RATES.opening) {
        let opening = if is_order && random.chance(0.7) { random.choose(&REQUESTS) } else { random.choose(&GREETINGS) };
        text = format!("{} {text}", opening.copied().unwrap_or_default());
    }
    if random.chance(RATES.closing) {
        text = format!("{text} {}", random.choose(&CLOSINGS).copied().unwrap_or_default());
    }
    if random.chance(RATES.spoken) {
        spoken(&text, random)
    } else {
        let text = if random.chance(RATES.typed) { mistyped(&text, random) } else { text };
        written(text, random)
    }
}

/// Changes `words` as a speech recogniser does: no capitals, no marks, numbers as words, and one of its errors.
fn spoken(text: &str, random: &mut Random) -> String {
    let mut words: Vec<String> = text.split(' ').map(number_as_words).collect();
    let place = random.below(words.len() + 1);
    match random.below(3) {
        0 => words.insert(place, random.choose(&FILLERS).copied().unwrap_or_default().to_owned()),
        1 => {
            if let Some(small) = words.iter().position(|word| SMALL_WORDS.contains(&word.as_str())) {
                words.remove(small);
            }
        }
        _ => {
            let misheard = |word: &str| HOMOPHONES.iter().find(|(said, _)| *said == word).map(|(_, heard)| *heard);
            if let Some((word, heard)) = words.iter_mut().find_map(|word| misheard(word).map(|heard| (word, heard))) {
                heard.clone_into(word);
            }
        }
    }
    words.join(" ")
}

/// Returns `25` as `twenty five` and `6:30` as `six thirty`; leaves anything else unchanged.
fn number_as_words(word: &str) -> String {
    let spell = |digits: &str| digits.parse::<usize>().ok().filter(|number| *number < 100).map(spelled);
    match word.split_once(':') {
        Some((hour, minute)) => spell(hour).zip(spell(minute)).map(|(hour, minute)| format!("{hour} {minute}")),
        None => spell(word),
    }
    .unwrap_or_else(|| word.to_owned())
}

/// Returns the words for a number below 100.
fn spelled(number: usize) -> String {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 10] = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    match (number / 10, number % 10) {
        (0 | 1, _) => SMALL[number % 20].to_owned(),
        (tens, 0) => TENS[tens % 10].to_owned(),
        (tens, ones) => format!("{} {}", TENS[tens % 10], SMALL[ones]),
    }
}

/// Adds one or two typing errors, in words of four letters or more.
fn mistyped(text: &str, random: &mut Random) -> String {
    let mut words: Vec<Vec<char>> = text.split(' ').map(|word| word.chars().collect()).collect();
    for _ in 0..=random.below(2) {
        let mut long: Vec<&mut Vec<char>> = words.iter_mut().filter(|word| word.len() >= 4).collect();
        let chosen = random.below(long.len());
        if let Some(word) = long.get_mut(chosen) {
            slip(word, random);
        }
    }
    words.iter().map(|word| word.iter().collect::<String>()).collect::<Vec<_>>().join(" ")
}

fn slip(word: &mut Vec<char>, random: &mut Random) {
    let at = 1 + random.below(word.len() - 1);
    match random.below(4) {
        0 => word[at] = neighbour(word[at], random),
        1 => {
            word.remove(at);
        }
        2 => word.insert(at, word[at]),
        _ => word.swap(at - 1, at),
    }
}

/// Returns a key beside `letter`, or `letter` itself if there is none.
fn neighbour(letter: char, random: &mut Random) -> char {
    let row = KEY_ROWS.iter().find_map(|row| row.find(letter).map(|at| (row.as_bytes(), at)));
    let Some((row, at)) = row else { return letter };
    let beside = if at == 0 || (at + 1 < row.len() && random.chance(0.5)) { at + 1 } else { at - 1 };
    char::from(row[beside])
}

/// Changes a text as people write it: mostly unchanged, some with a capital, a mark at the end, or all in capitals.
fn written(text: String, random: &mut Random) -> String {
    let capital = |text: &str| {
        let mut letters = text.chars();
        letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
    };
    match random.below(20) {
        0..5 => capital(&text),
        5..8 => format!("{}.", capital(&text)),
        8 => format!("{text}!"),
        9 => text.to_uppercase(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_spelled() {
        for (digits, words) in
            [("5", "five"), ("12", "twelve"), ("20", "twenty"), ("98", "ninety eight"), ("0", "zero")]
        {
            assert_eq!(number_as_words(digits), words);
        }
        assert_eq!(number_as_words("6:30"), "six thirty");
        for other in ["100", "98.5", "the", "10:x", "3rd", ""] {
            assert_eq!(number_as_words(other), other);
        }
    }

    #[test]
    fn keys_have_neighbours_in_their_row() {
        let mut random = Random::new(1);
        assert_eq!(neighbour('q', &mut random), 'w');
        assert_eq!(neighbour('p', &mut random), 'o');
        assert!(['s', 'f'].contains(&neighbour('d', &mut random)));
        assert_eq!(neighbour('é', &mut random), 'é');
    }

    proptest! {
        #[test]
        fn noise_leaves_text_and_is_the_same_for_a_seed(words in "[a-zé0-9:]{1,8}( [a-zé0-9:]{1,8}){0,9}", order: bool, seed: u64) {
            let noisy = add(&words, order, &mut Random::new(seed));
            prop_assert!(!noisy.trim().is_empty());
            prop_assert_eq!(add(&words, order, &mut Random::new(seed)), noisy);
        }

        #[test]
        fn a_slip_costs_a_word_one_letter_at_most(word in "[a-z]{4,12}", seed: u64) {
            let mut slipped: Vec<char> = word.chars().collect();
            slip(&mut slipped, &mut Random::new(seed));
            prop_assert!(slipped.len().abs_diff(word.len()) <= 1);
            let kept = slipped.iter().filter(|letter| word.contains(**letter)).count();
            prop_assert!(kept + 1 >= word.len());
        }
    }
}
