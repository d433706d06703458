//! Finds the name and the licence of a checkpoint, if its folder contains them.

use crate::files::read_bounded;
use std::path::{Component, Path};

/// Maximum size of the checkpoint's model card, in bytes.
const MAX_CARD_BYTES: u64 = 4 << 20;
/// Name of the pack's file with the licence's name.
pub(super) const LICENSE_FILE: &str = "license.txt";
/// Maximum size of that file, in bytes.
pub(super) const MAX_LICENSE_BYTES: u64 = 256;
/// Maximum length of a base model's name, in bytes: a path.
const MAX_NAME_BYTES: usize = 4096;

/// Returns what is wrong with a base model's name, if anything. Settings and model cards contain the name.
pub(super) fn name_problem(name: &str) -> Option<String> {
    match name.len() {
        0 => Some("the base model's name is empty".to_owned()),
        1..=MAX_NAME_BYTES if !name.chars().any(char::is_control) => None,
        1..=MAX_NAME_BYTES => Some(format!("the base model's name {name:?} has control characters")),
        long => Some(format!("the base model's name has {long} bytes, expected at most {MAX_NAME_BYTES}")),
    }
}

/// Returns the name under which other programs load the checkpoint in `folder`: the repository's, if the folder is in the cache
/// of the Hugging Face hub, otherwise the path as it was given.
///
/// A relative path begins with `./`. Without it, programs would look for a repository of that name when the folder is missing,
/// and would load another model without a warning.
pub(super) fn name_of(folder: &Path) -> String {
    if let Some(name) = std::path::absolute(folder).ok().as_deref().and_then(hub_name) {
        return name;
    }
    let path = folder.to_string_lossy().trim_end_matches('/').to_owned();
    match folder.components().next() {
        Some(Component::Normal(_)) => format!("./{path}"),
        None => ".".to_owned(),
        Some(Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir) => path,
    }
}

/// Returns `OWNER/NAME` for a path that contains `models--OWNER--NAME/snapshots/`.
fn hub_name(path: &Path) -> Option<String> {
    let parts: Vec<&str> = path.components().filter_map(|part| part.as_os_str().to_str()).collect();
    let pair = parts.windows(2).rev().find(|pair| pair[0].starts_with("models--") && pair[1] == "snapshots")?;
    Some(pair[0].strip_prefix("models--")?.replace("--", "/")).filter(|name| is_hub_name(name))
}

/// Returns true if a name may be the name of a repository on the Hugging Face hub, and is not a path.
pub(super) fn is_hub_name(name: &str) -> bool {
    let is_part = |part: &str| {
        let plain = part.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter));
        plain && !part.is_empty() && !part.starts_with(['.', '-'])
    };
    name.len() <= 96 && name.split('/').count() <= 2 && name.split('/').all(is_part)
}

/// Returns the licence that the checkpoint's model card names, for example `apache-2.0`; `None` if there is no card, or if it
/// names none or several.
pub(super) fn license_of(folder: &Path) -> Option<String> {
    let text = String::from_utf8(read_bounded(&folder.join("README.md"), MAX_CARD_BYTES).ok()?).ok()?;
    let mut lines = text.trim_start_matches('\u{feff}').lines().map(str::trim_end);
    if lines.next() != Some("---") {
        return None;
    }
    let header: Vec<&str> = lines.take_while(|line| *line != "---").collect();
    let at = header.iter().position(|line| line.starts_with("license:"))?;
    let value = header[at].strip_prefix("license:")?.trim();
    let items: Vec<&str> = match value {
        "" => header[at + 1..].iter().map_while(|line| line.trim_start().strip_prefix("- ")).collect(),
        value => vec![value],
    };
    let [only] = items.as_slice() else { return None };
    let licence = only.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
    is_license(licence).then(|| licence.to_owned())
}

/// Returns true if this may be a licence's name on the Hugging Face hub.
pub(super) fn is_license(name: &str) -> bool {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || ".+-".contains(letter);
    (1..=64).contains(&name.len()) && name.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    #[test]
    fn a_folder_in_the_hubs_cache_has_the_repositorys_name_and_others_their_path() {
        for (path, name) in [
            ("/home/a/.cache/huggingface/hub/models--org--some-model/snapshots/0a1b", "org/some-model"),
            ("/hub/models--gpt2/snapshots/0a1b/", "gpt2"),
            ("/data/models--org--model", "/data/models--org--model"),
            ("/data/bert/", "/data/bert"),
            ("bert", "./bert"),
            ("org/model/", "./org/model"),
            ("./bert", "./bert"),
            ("../bert", "../bert"),
        ] {
            assert_eq!(name_of(Path::new(path)), name, "{path}");
            assert_eq!(is_hub_name(name), path.contains("/snapshots/"), "{name}");
        }
    }

    #[test]
    fn the_licence_is_that_of_the_model_cards_header() {
        let licence = |card: &str| {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("README.md"), card).unwrap();
            license_of(folder.path())
        };
        for (card, expected) in [
            ("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model", Some("apache-2.0")),
            ("---\r\nlicense: 'mit'  # ours\r\n---\r\n", Some("mit")),
            ("---\nlicense:\n  - llama3.2\ntags:\n- a\n---\n", Some("llama3.2")),
            ("---\nlicense:\n- mit\n- apache-2.0\n---\n", None),
            ("---\nlanguage: en\n---\nlicense: mit\n", None),
            ("# A model\nlicense: mit\n", None),
            ("---\nlicense: see [here](http://example.org)\n---\n", None),
        ] {
            assert_eq!(licence(card).as_deref(), expected, "{card}");
        }
        assert_eq!(license_of(Path::new("/nowhere")), None);
    }
}
