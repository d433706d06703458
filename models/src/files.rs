//! Opens files at untrusted paths: a path may lead to a pipe or a device, and a file may have any length.
//!
//! The errors come from `std::io` and do not name the file; the caller adds the name.

use skiff_base::foreign::{Foreign, START_BYTES};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// Same as [`std::fs::read`], but refuses a file of more than `limit` bytes.
///
/// # Errors
/// A path to anything but a regular file; a file that is longer or cannot be read.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path)?;
    let too_long = || io::Error::new(ErrorKind::FileTooLarge, format!("the file is longer than {limit} bytes"));
    let length = file.metadata()?.len();
    if length > limit {
        return Err(too_long());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).map_err(|_| too_long())?);
    // The reported length is not trusted: a file may grow, and the kernel's own files report a length of zero.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_long()) } else { Ok(bytes) }
}

/// Same as [`read_bounded`], for a file that holds a JSON object. Refuses contents of another kind, such as a Git LFS pointer or
/// a web page, and a truncated file. The error says what to do.
///
/// # Errors
/// The errors of [`read_bounded`], and contents that cannot be a JSON object.
pub fn read_json_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let bytes = read_bounded(path, limit)?;
    if let Some(foreign) = Foreign::recognise(&bytes) {
        return Err(io::Error::new(ErrorKind::InvalidData, foreign));
    }
    let fault = match bytes.trim_ascii() {
        [b'{', .., b'}'] | [b'[', ..] => return Ok(bytes),
        [b'{', ..] => "the file is cut off before the end of its JSON object: download or copy it again",
        [0xef, 0xbb, 0xbf, ..] => {
            "the file begins with a byte order mark, which JSON does not allow: save it as UTF-8 without one"
        }
        _ => "the file does not begin with a JSON object: take the file that belongs to the model",
    };
    Err(io::Error::new(ErrorKind::InvalidData, fault))
}

/// Recognises wrong contents of the file at `path`. Returns `None` if the contents are not recognised or cannot be read.
#[must_use]
pub fn foreign_start(path: &Path) -> Option<Foreign> {
    let mut start = Vec::with_capacity(START_BYTES);
    open_regular(path).ok()?.take(START_BYTES as u64).read_to_end(&mut start).ok()?;
    Foreign::recognise(&start)
}

/// Opens a file for reading. Refuses a pipe before opening it, because opening would wait for a writer.
///
/// # Errors
/// A path to anything but a regular file; a file that cannot be opened.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let found = fs::metadata(path)?;
    if found.is_dir() {
        return Err(io::Error::new(
            ErrorKind::IsADirectory,
            "it is a folder, not a regular file: name the file inside",
        ));
    }
    if !found.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use std::process::Command;

    #[test]
    fn a_file_is_read_up_to_its_limit_and_not_beyond() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        let error = read_bounded(&path, 4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("longer than 4 bytes"), "{error}");
        assert_eq!(read_bounded(&folder.path().join("other"), 5).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_file_that_says_it_is_empty_is_bounded_all_the_same() {
        assert!(!read_bounded(Path::new("/proc/self/status"), 1 << 20).unwrap().is_empty());
        let error = read_bounded(Path::new("/proc/self/status"), 4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
    }

    #[test]
    fn pipes_devices_and_folders_are_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        for path in [pipe.as_path(), &link, Path::new("/dev/zero"), folder.path()] {
            let error = read_bounded(path, 1 << 20).unwrap_err();
            assert!(error.to_string().contains("not a regular file"), "{}", path.display());
        }
    }

    #[test]
    fn what_stands_in_the_place_of_a_json_object_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let read = |contents: &str| {
            fs::write(&path, contents).unwrap();
            read_json_bounded(&path, 1 << 20).map_err(|error| error.to_string())
        };
        for sound in ["{}", " {\"a\": [1]}\r\n", "[1]"] {
            assert_eq!(read(sound).unwrap(), sound.as_bytes());
        }
        for (contents, says) in [
            ("", "the file is empty"),
            ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
            ("<html><title>404</title></html>", "web page (\"404\")"),
            ("{\"hidden_size\": 12, \"id2lab", "cut off"),
            ("{", "cut off"),
            ("Entry not found", "does not begin with a JSON object"),
            ("\u{feff}{}", "byte order mark"),
        ] {
            let error = read(contents).unwrap_err();
            assert!(error.contains(says), "{contents}: {error}");
        }
    }
}
