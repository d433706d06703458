//! Recognises contents that users often have instead of a model's or a data set's file: a Git LFS pointer, a web page, an
//! archive, nothing at all.
//!
//! The first [`START_BYTES`] of a file are enough. Text and JSON are not recognised here, because they may be the right contents.

use std::fmt;

/// Number of bytes at the start of a file that [`Foreign::recognise`] looks at.
pub const START_BYTES: usize = 1024;

/// Contents of another kind than the file should have. `Display` says what was found and what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Foreign {
    /// The file is empty.
    Empty,
    /// The file holds only zeros. An interrupted download that reserved its space leaves such a file.
    Zeros,
    /// A pointer of Git LFS.
    LfsPointer {
        /// Size of the real file in bytes, if the pointer has one.
        bytes: Option<u64>,
    },
    /// A web page, or an error message in HTML or XML.
    WebPage {
        /// Start of the page's title, or of its text.
        says: String,
    },
    /// A file of another kind.
    Kind {
        /// The kind, with its article.
        kind: &'static str,
        /// The remedy.
        remedy: &'static str,
    },
}

impl std::error::Error for Foreign {}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the file is empty: download it again, and check that the disk is not full"),
            Self::Zeros => {
                f.write_str("the file begins with zeros only, as after an interrupted download: download it again")
            }
            Self::LfsPointer { bytes } => {
                f.write_str("the file is a Git LFS pointer, not the file itself")?;
                if let Some(bytes) = bytes {
                    write!(f, ", which has {bytes} bytes")?;
                }
                f.write_str(": run `git lfs install` and then `git lfs pull` in its folder, or download the file")
            }
            Self::WebPage { says } => {
                f.write_str("the file is a web page")?;
                if !says.is_empty() {
                    write!(f, " ({says:?})")?;
                }
                f.write_str(
                    ", not the file itself: download it again from the address of the file (on Hugging Face /resolve/ in place of \
                     /blob/), and log in if it needs an account",
                )
            }
            Self::Kind { kind, remedy } => write!(f, "the file is {kind}: {remedy}"),
        }
    }
}

const UNPACK: &str = "unpack it and use the file inside";
const CONVERT: &str =
    "load the model with transformers and save it with save_pretrained, which writes model.safetensors";

/// First bytes of some kinds of files, each with the kind and the remedy.
const KINDS: [(&[u8], &str, &str); 10] = [
    (
        b"PK\x03\x04",
        "a ZIP archive, such as PyTorch's .bin and .pt or Excel's .xlsx",
        "save weights as safetensors (with transformers' save_pretrained), and tables as CSV in UTF-8",
    ),
    (b"\x1f\x8b", "compressed with gzip", "unpack it with gunzip"),
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"GGUF", "a GGUF file of llama.cpp", "take the model's folder with safetensors that it was made from"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as TensorFlow and Keras write weights", CONVERT),
    (b"PAR1", "a Parquet table", "convert it with `skiff-pack data`"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word document", "save the table as CSV in UTF-8"),
];

impl Foreign {
    /// Recognises a file by its first bytes. `start` must hold at least [`START_BYTES`], or the whole file if it is shorter.
    #[must_use]
    pub fn recognise(start: &[u8]) -> Option<Self> {
        if start.is_empty() {
            return Some(Self::Empty);
        }
        if start.len() >= 64 && start.iter().all(|&byte| byte == 0) {
            return Some(Self::Zeros);
        }
        if let Some(&(_, kind, remedy)) = KINDS.iter().find(|(first, ..)| start.starts_with(first)) {
            return Some(Self::Kind { kind, remedy });
        }
        if is_pickle(start) {
            return Some(Self::Kind { kind: "a pickle of Python, as old PyTorch writes weights", remedy: CONVERT });
        }
        let text = String::from_utf8_lossy(&start[..start.len().min(START_BYTES)]);
        let text = text.trim_start_matches('\u{feff}').trim_start();
        if text.starts_with("version https://git-lfs.github.com/spec/")
            || text.starts_with("version https://hawser.github.com/spec/")
        {
            let size = text.lines().find_map(|line| line.strip_prefix("size "));
            return Some(Self::LfsPointer { bytes: size.and_then(|size| size.trim().parse().ok()) });
        }
        let lower = text.to_ascii_lowercase();
        let page =
            ["<!doctype html", "<html", "<head", "<?xml", "<error>"].iter().any(|first| lower.starts_with(first));
        page.then(|| Self::WebPage { says: headline(text, &lower) })
    }
}

/// Returns true for the first two bytes of a pickle of protocol 2 to 5, followed by an opcode with which PyTorch begins its
/// files.
fn is_pickle(start: &[u8]) -> bool {
    matches!(start, [0x80, 2..=5, b'}' | b']' | b'c' | b'(' | 0x95 | 0x8a, ..])
}

/// Returns the title of a page, or the message of an error in XML. `lower` is `text` in lower case.
fn headline(text: &str, lower: &str) -> String {
    const SHOWN: usize = 60;
    let between = |open: &str, close: &str| {
        let begin = lower.find(open)? + open.len();
        let length = lower[begin..].find(close)?;
        Some(text[begin..begin + length].split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let found = between("<title>", "</title>").or_else(|| between("<message>", "</message>"));
    found.unwrap_or_default().chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: &[u8]) -> String {
        Foreign::recognise(bytes).map_or_else(String::new, |foreign| foreign.to_string())
    }

    #[test]
    fn a_pointer_of_git_lfs_is_named_with_its_size_and_the_command() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00ff\nsize 437967012\n";
        assert_eq!(Foreign::recognise(pointer.as_bytes()), Some(Foreign::LfsPointer { bytes: Some(437_967_012) }));
        let windows = format!("\u{feff}{}", pointer.replace('\n', "\r\n"));
        assert_eq!(Foreign::recognise(windows.as_bytes()), Some(Foreign::LfsPointer { bytes: Some(437_967_012) }));
        assert!(said(pointer.as_bytes()).contains("`git lfs pull`"));
        assert!(said(&pointer.as_bytes()[..45]).contains("Git LFS pointer, not the file itself:"));
    }

    #[test]
    fn pages_are_named_with_their_title() {
        for page in [
            "<!DOCTYPE html>\n<html><head><title>Log\n in</title>",
            "\r\n <HTML><Title>Log in</Title>",
            "<html lang=en><title>Log in</title>",
        ] {
            assert!(said(page.as_bytes()).contains("a web page (\"Log in\")"), "{page}");
        }
        let refused =
            "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";
        assert!(said(refused.as_bytes()).contains("Request has expired"));
        assert!(said("<!doctype html>\u{130}".as_bytes()).contains("a web page, not"));
    }

    #[test]
    fn archives_and_other_kinds_are_named_with_a_remedy() {
        for (start, says) in [
            (b"PK\x03\x04\x14\0".as_slice(), "a ZIP archive"),
            (b"\x80\x02}q\x00", "a pickle of Python"),
            (b"\x80\x04\x95\x10", "a pickle of Python"),
            (b"\x1f\x8b\x08", "gunzip"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"\x89HDF\r\n\x1a\n", "save_pretrained"),
            (b"PAR1\x15\x04", "skiff-pack data"),
            (b"", "empty"),
            (&[0; 512], "zeros"),
        ] {
            assert!(said(start).contains(says), "{says}: {}", said(start));
        }
    }

    #[test]
    fn the_right_files_are_not_taken_for_others() {
        for start in [
            b"{\"version\": 1}".as_slice(),
            b"label,text\n1,<html>\n",
            b"version,text\n",
            b"\x88\0\0\0\0\0\0\0{\"__metadata__\"",
            b"\x80\x02\0\0\0\0\0\0{\"a\":",
            b"\xe9t\xe9",
            b" ",
        ] {
            assert_eq!(Foreign::recognise(start), None, "{start:?}");
        }
    }
}
