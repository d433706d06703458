//! Reads any bytes as examples of every kind. Whatever is accepted must be complete and within the size limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_data::format::{Format, MAX_RECORD_BYTES};
use skiff_data::{Example, Passage, Rated, Reader, Record, Tagged};
use std::io::Cursor;
use std::path::Path;

fuzz_target!(|input: (u8, u8, Vec<u8>)| {
    let (format, kind, bytes) = input;
    let formats = [Format::Csv, Format::Tsv, Format::JsonLines, Format::Conll, Format::Lines];
    let format = formats[usize::from(format) % formats.len()];
    match kind % 4 {
        0 => check(format, bytes, |Example { text, pair, label }| {
            check_text(&text);
            pair.iter().for_each(|pair| check_text(pair));
            check_text(&label);
        }),
        1 => check(format, bytes, |Rated { text, pair, numbers }| {
            check_text(&text);
            pair.iter().for_each(|pair| check_text(pair));
            assert!(!numbers.is_empty() && numbers.iter().all(|number| number.is_finite()));
        }),
        2 => check(format, bytes, |Tagged { words, labels }| {
            assert!(!words.is_empty() && words.len() == labels.len());
            words.iter().chain(&labels).for_each(|text| check_text(text));
        }),
        _ => check(format, bytes, |Passage { prompt, text }| {
            assert!(!prompt.contains('\0'));
            check_text(&text);
        }),
    }
});

fn check<R: Record>(format: Format, bytes: Vec<u8>, example: fn(R)) {
    let reader = Reader::<R>::new(Path::new("fuzz"), format, Box::new(Cursor::new(bytes)));
    reader.filter_map(Result::ok).for_each(example);
}

/// A title and a description are joined by two characters.
fn check_text(text: &str) {
    assert!(!text.trim().is_empty() && !text.contains('\0') && text.len() <= MAX_RECORD_BYTES + 2);
}
