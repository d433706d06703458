//! Any bytes are read or refused; what is read is neither blank nor longer than the limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_data::Reader;
use skiff_data::reader::{Format, MAX_RECORD_BYTES};
use std::io::Cursor;
use std::path::Path;

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (choice, bytes) = input;
    let format = [Format::Csv, Format::Tsv, Format::JsonLines][usize::from(choice) % 3];
    let reader = Reader::new(Path::new("fuzz"), format, Box::new(Cursor::new(bytes)));
    for example in reader.filter_map(Result::ok) {
        assert!(!example.text.trim().is_empty() && !example.label.trim().is_empty());
        assert!(!example.text.contains('\0') && example.text.len() <= MAX_RECORD_BYTES + 2);
    }
});
