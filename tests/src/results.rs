//! Results of benchmarks for programs: one JSON file that several benchmarks fill.

use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Returns the argument of this process that follows `name`.
///
/// # Panics
/// If nothing follows it.
#[must_use]
pub fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.next().map(|name| arguments.next().unwrap_or_else(|| panic!("{name} wants a value")))
}

/// Sets `key` of the object in the file that `--json` names, if it names one; the file's other keys stay.
///
/// # Panics
/// If the file does not hold an object, or cannot be written.
pub fn store(key: &str, value: Value) {
    let Some(path) = argument("--json").map(PathBuf::from) else { return };
    let mut all = read(&path);
    all.insert(key.to_owned(), value);
    let text = serde_json::to_vec_pretty(&all).expect("JSON can be written");
    std::fs::write(&path, text).unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
}

fn read(path: &Path) -> Map<String, Value> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Map::new(),
        Err(error) => panic!("reading {}: {error}", path.display()),
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{} is not a JSON object: {error}", path.display()))
}
